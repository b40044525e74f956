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

.PHONY: demo test lint format clean help
.DELETE_ON_ERROR:

help:
	@echo "make demo    make pictures, shard them, train, evaluate: about 5 minutes on two cores"
	@echo "make test    the tests;  make lint: style and types;  make format: apply the style"
	@echo "make clean   remove $(VENV) and $(DEMO)"

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
	  echo "note: pillow-simd could not be built ($(VENV)/pillow-simd.log), Pillow is used: about 1.7 times the CPU time a picture"; \
	fi
	@touch $@

demo: $(READY)
	@$(PY) tools/demo.py $(DEMO)

test: $(READY)
	@$(PY) -m pytest

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(READY)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
