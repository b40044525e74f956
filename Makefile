# make demo, make test: each alone, on a machine with Python 3.11+ and make, and nothing else prepared.

PYTHON ?= python3
# Another build or version of torch: make demo TORCH=torch==2.9.1
TORCH ?= torch==2.13.0
PILLOW ?= pillow==13.0.0
PILLOW_SIMD ?= pillow-simd==12.1.1.post0
DEMO ?= demo

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

TORCH_NPU := 2.13.0
TORCH_NPU_READY := $(VENV)/.torch_npu

PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready

.PHONY: demo test soak kills fuzz bench lint format clean help
.DELETE_ON_ERROR:

help:
	@echo "make demo    make pictures, shard them, train, evaluate: about 5 minutes on two cores"
	@echo "make test    the tests;  make lint: style and types;  make format: apply the style"
	@echo "make soak    the tests that take longest: ranks that are killed, restarts, the acceptance run"
	@echo "make kills   training and sharding, killed a hundred times at random moments: about 10 minutes"
	@echo "make fuzz    110,000 damaged pictures, tars, manifests, indexes and checkpoints, instead of the 2,000 of make test"
	@echo "make bench DATA=FOLDER   our loader beside its peers on an ImageNet folder of a few hundred pictures (gigabytes to install)"
	@echo "make clean   remove $(VENV), $(PEERS) and $(DEMO)"

# pip's copy of a wheel built here could be used on a machine without AVX2: hence no cache for pillow-simd.
$(READY): requirements.txt requirements-dev.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Headrace needs Python 3.11 or later, this is {sys.version.split()[0]}: make PYTHON=python3.12")'
	@echo "installing into $(VENV) (once; a few hundred MB)"
	@$(PYTHON) -m venv $(VENV)
	@grep -v '^torch==' requirements.txt > $(VENV)/requirements.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH) -r $(VENV)/requirements.txt -r requirements-dev.txt
	@if CC="$${CC:-cc} $$(grep -qsw avx2 /proc/cpuinfo && echo -mavx2)" \
	    $(PY) -m pip install --quiet --disable-pip-version-check --no-cache-dir $(PILLOW_SIMD) > $(VENV)/pillow-simd.log 2>&1 \
	    && $(PY) -c 'import PIL.Image' 2>> $(VENV)/pillow-simd.log; then \
	  echo "built pillow-simd for this processor"; \
	else \
	  $(PY) -m pip uninstall --quiet --yes pillow-simd 2> /dev/null; \
	  $(PY) -m pip install --quiet --disable-pip-version-check $(PILLOW) && \
	  echo "note: pillow-simd could not be built ($(VENV)/pillow-simd.log), Pillow is used: make_shards.py --jpeg recode takes a third longer"; \
	fi
	@touch $@

demo: $(READY)
	@$(PY) tools/demo.py $(DEMO)

# The real torch_npu, for tests/emulated_card.py. Not in the environment itself: every import of torch would import it.
$(TORCH_NPU_READY): $(READY)
	@rm -rf $(VENV)/torch_npu
	@if [ "$(TORCH)" != "torch==$(TORCH_NPU)" ]; then \
	  echo "note: torch_npu $(TORCH_NPU) does not pair with $(TORCH): what needs it is not tested"; \
	elif $(PY) -m pip install --disable-pip-version-check --retries 1 --only-binary :all: --no-deps \
	    --target $(VENV)/torch_npu torch-npu==$(TORCH_NPU) > $(VENV)/torch_npu.log 2>&1; then \
	  touch $@; \
	else \
	  echo "note: torch_npu $(TORCH_NPU) cannot be had here ($(VENV)/torch_npu.log): what needs it is not tested"; \
	fi

test: $(READY) $(TORCH_NPU_READY)
	@$(PY) -m pytest -n 2 --dist loadfile

soak: $(READY) $(TORCH_NPU_READY)
	@$(PY) -m pytest -m soak

kills: $(READY)
	@HEADRACE_KILLS=34 $(PY) -m pytest -m soak -s tests/test_kills.py

fuzz: $(READY)
	@$(PY) -W ignore -m tests.fuzz --count 110000

# The peers have a full torch, for torchvision; FFCV is built where its libraries are (benchmarks/peers-requirements.txt).
$(PEERS_READY): benchmarks/peers-requirements.txt Makefile
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers-requirements.txt
	@$(PEERS)/bin/pip install --quiet --disable-pip-version-check ffcv==1.0.2 opencv-python==5.0.0.93 > $(PEERS)/ffcv.log 2>&1 \
	    || echo "note: FFCV could not be built ($(PEERS)/ffcv.log)"
	@CC="$${CC:-cc} $$(grep -qsw avx2 /proc/cpuinfo && echo -mavx2)" \
	    $(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --force-reinstall $(PILLOW_SIMD) \
	    > $(PEERS)/pillow-simd.log 2>&1 || echo "note: pillow-simd could not be built ($(PEERS)/pillow-simd.log)"
	@touch $@

bench: $(PEERS_READY)
	@test -n "$(DATA)" || { echo "make bench DATA=FOLDER: an ImageNet folder, train/<class>/<picture>"; exit 2; }
	@$(PEERS)/bin/python tools/bench_loaders.py --data "$(DATA)" --json bench.json

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(READY)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean:
	rm -rf $(VENV) $(PEERS) $(DEMO) build *.egg-info
