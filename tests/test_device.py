from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import ConfigError, Loader, PipelineConfig, build_loader, host
from pipeline.device import DEVICES, find_device
from pipeline.sim import Cards, Consumption
from tests.conftest import ROOT

no_torch_npu = pytest.mark.skipif(
    importlib.util.find_spec("torch_npu") is not None, reason="torch_npu is installed in this environment"
)


def test_auto_takes_the_first_there_is() -> None:
    assert find_device("cpu").torch_device == torch.device("cpu")
    assert find_device("auto").kind == next(kind for kind, device in DEVICES.items() if device.load() is None)


@pytest.mark.parametrize("wrong", ["tpu", "cuda:x", "cpu:1", "cuda:99", "sim", "sim:", "sim:0", "sim:4x0", "sim:fast"])
def test_a_device_that_is_none_is_one_clear_line(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"device|sim takes a rate") as error:
        find_device(wrong)
    assert "\n" not in str(error.value)


@no_torch_npu
def test_torch_npu_is_absent() -> None:
    release = torch.__version__.partition("+")[0]
    with pytest.raises(ConfigError, match=rf"torch_npu is not installed: pip install torch-npu=={release}$"):
        find_device("npu")


@no_torch_npu
def test_torch_npu_does_not_pair_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known from what pip has written down, before anything is loaded."""
    (tmp_path / "torch_npu-2.1.0.post3.dist-info").mkdir()
    (tmp_path / "torch_npu-2.1.0.post3.dist-info/METADATA").write_text("Name: torch_npu\nVersion: 2.1.0.post3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.metadata.version("torch_npu") == "2.1.0.post3"
    with pytest.raises(ConfigError, match=r"torch_npu 2\.1\.0\.post3 does not pair with torch ") as error:
        find_device("npu:3")
    assert "\n" not in str(error.value)
    assert "torch_npu" not in sys.modules


def train(loader: Loader, cards: Cards) -> Consumption:
    """An epoch of them."""
    cards.forget()
    for batch in loader:
        cards.take(len(batch.labels))
    return cards.seen


def test_the_simulated_cards_take_pictures_at_their_rate(shards: Path) -> None:
    device = find_device("sim:474.6x8")
    assert device.images_per_s == pytest.approx(3796.8)
    with build_loader(PipelineConfig(shards=shards, batch_size=8, image_size=64, workers=1)) as loader:
        first, second = (train(loader, cards) for cards in [Cards(50.0, slots=4)] for _ in range(2))
        assert (first.images, second.images) == (2, 42)  # but for the 4 batches of the ring, and the first of all
        assert max(first.images_per_s, second.images_per_s) <= 50.0001  # whatever the machine: they take no more
        assert 0 <= second.wait_s <= second.seconds
    with build_loader(PipelineConfig(shards=shards, batch_size=8, image_size=64, workers=1)) as loader:
        cards = Cards(1e9, slots=4)
        assert train(loader, cards).stall > 0.9
        assert train(loader, cards).stall > 0.9
    with build_loader(PipelineConfig(shards=shards, batch_size=64, image_size=64, workers=1)) as loader:
        cards = Cards(1e9, slots=4)
        assert [train(loader, cards).images for _ in range(7)] == [0, 0, 0, 0, 0, 42, 42]


def test_what_a_card_binds_this_thread_to_is_not_the_workers_fate(shards: Path) -> None:
    """torch_npu binds the thread that opens a card to one core; decode processes run on all that there were."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core")
    code = (
        "import os, sys\n"
        "from pipeline import PipelineConfig, build_loader, host\n"
        "everything = os.sched_getaffinity(0)\n"
        "host.hold_cores()\n"
        "os.sched_setaffinity(0, {min(everything)})\n"  # as torch_npu does
        "with build_loader(PipelineConfig(shards=sys.argv[1], batch_size=8, image_size=64)) as loader:\n"
        "    next(iter(loader))\n"
        "    assert loader.workers == host.available_cores() - 1 or host.available_cores() == 1\n"
        "    assert host.available_cores() > 1 or host.cpu_quota()\n"
        "    assert all(os.sched_getaffinity(pid) == everything for pid in loader.decode_pids)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(shards)], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert host._held is None, "the tests' own process must not be changed"
