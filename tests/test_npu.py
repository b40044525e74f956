"""Ascend, through the real torch_npu over an emulated CANN: the calls, the types, the copies and their order.

What it cannot show is speed, an NPU's own numerics, and which operators a card has (docs/ASCEND.md).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from tests import frozen
from tests.conftest import ROOT, metrics
from tests.emulated_card import EmulatedCard

# 21 pictures: steps of 8, 8 and 5.
SMALL = (
    "--blocks", "0,0,0", "--image-size", "107", "--batch-size", "8", "--workers", "1", "--lr", "0.001",
    "--amp-dtype", "float16", "--loss-scale", "128", "--print-freq", "1",
)  # fmt: skip
WROTE = {"O0": "npu", "O2": "cpu"}  # whose checkpoint both go on from, in their second epoch


def on_npu(environment: dict[str, str], *command: object) -> dict[str, Any]:
    """What tests/on_npu.py prints last."""
    done = subprocess.run(
        [sys.executable, "tests/on_npu.py", *map(str, command)],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": f"{ROOT}:{environment.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def losses(output: Path) -> list[float]:
    return [line["step_loss"] for line in metrics(output, "train")]


@pytest.fixture(scope="module")
def trained(card: EmulatedCard, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of runs, named DEVICE-LEVEL-EPOCH, and that of the card's reports."""
    home = tmp_path_factory.mktemp("trained")
    reports = home / "reports"

    def run(device: str, level: str, epoch: int) -> list[str]:
        output = home / f"{device}-{level}-{epoch}"
        going_on = ("--resume", home / f"{WROTE[level]}-{level}-1" / "checkpoint.pth.tar") if epoch == 2 else ()
        where = ("--data", folder / "val", "--output", output)
        options = ("--device", device, "--opt-level", level, "--epochs", epoch)
        return [str(word) for word in (*where, *options, *going_on, *SMALL)]

    for level in WROTE:
        assert train.main(run("cpu", level, 1)) == 0
    runs = [run("npu", level, epoch) for epoch in (1, 2) for level in WROTE]
    on_npu(card.environment(report=reports), "trains", *map(json.dumps, runs))
    for level in WROTE:
        assert train.main(run("cpu", level, 2)) == 0
    return home, reports


@pytest.mark.parametrize(("level", "first", "later"), [("O0", 1e-5, 1e-2), ("O2", 1e-3, 3e-2)])
def test_losses_are_those_of_the_cpu(trained: tuple[Path, Path], level: str, first: float, later: float) -> None:
    """Also from the other's checkpoint. At first they differ by rounding, which batch norms of 8 pictures amplify."""
    home, _ = trained
    for epoch in (1, 2):
        cpu, npu = (losses(home / f"{device}-{level}-{epoch}") for device in ("cpu", "npu"))
        assert len(cpu) == len(npu) == 3
        assert npu[0] == pytest.approx(cpu[0], rel=first)
        assert npu == pytest.approx(cpu, rel=later)
        assert len(set(cpu)) == 3


def test_every_batch_is_one_pinned_asynchronous_copy(trained: tuple[Path, Path]) -> None:
    """Of uint8, beside one of the labels; nothing else goes to the card without the host waiting."""
    _, reports = trained
    (report,) = EmulatedCard.report(reports)
    pixels, runs = 107 * 107 * 3, 4
    wanted = {8 * pixels: 2 * runs, 5 * pixels: runs, 8 * 8: 2 * runs, 5 * 8: runs}
    ours = [copy for copy in report["to_device"] if copy["asynchronous"]]
    assert {copy["bytes"]: copy["count"] for copy in ours} == wanted
    assert all(copy["pinned"] and not copy["on_default_stream"] for copy in ours)
    images = [copy for copy in report["to_device"] if copy["bytes"] in (8 * pixels, 5 * pixels)]
    assert all(copy["asynchronous"] for copy in images)


def test_the_checkpoint_is_on_the_host_in_fp32(trained: tuple[Path, Path]) -> None:
    home, _ = trained
    state = torch.load(home / "npu-O2-1/checkpoint.pth.tar", weights_only=True)
    assert {value.dtype for value in state["state_dict"].values()} == {torch.float32, torch.int64}
    assert {value.device.type for value in state["state_dict"].values()} == {"cpu"}
    assert state["amp"] == {"loss_scaler0": {"loss_scale": 128.0, "unskipped": 0}}
    assert state["opt_level"] == "O2"


@pytest.mark.soak
def test_batches_arrive_whole_because_of_the_events(card: EmulatedCard, shards: Path) -> None:
    """Copies begin late on purpose: without either of the two waits the pixels are wrong, so this test sees them."""
    result = on_npu(card.environment(copy_delay_us=20_000), "feeds", shards)
    assert all(result["whole"])
    assert all(result["staged"])
    assert not all(result["without wait"])
    assert not all(result["without hold"])
    assert result["busy"][0] == 0 <= result["busy"][1] < 0.05  # the card had work for longer than the host waited
    assert result["idle"][1] >= 0.05
    assert 0.3 < result["stall"] < 0.7  # by the card's clock, half of the time; this process waited nearly all of it
    assert result["workers with torch"] == 0
    assert result["workers on all cores"]


@pytest.mark.soak
def test_two_ranks_over_hccl_train_as_one_on_the_cpu(card: EmulatedCard, folder: Path, tmp_path: Path) -> None:
    """As test_ranks.py has it over gloo: 21 pictures in global batches of 20, of which every second has 1 picture."""
    flags = (
        "--data", folder / "val", "--blocks", "0,0,0", "--image-size", 107, "--batch-size", 20, "--workers", 2,
        "--lr", 0.01, "--epochs", 2,
    )  # fmt: skip
    argv = [str(flag) for flag in flags]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    frozen.main([str(tmp_path / "one"), *argv, "--device", "cpu"])
    environment = card.environment(2, report=tmp_path / "report")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "tests/frozen.py", tmp_path / "two", *argv, "--device", "npu",
        ],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": f"{ROOT}:{environment['PYTHONPATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    alone = torch.load(tmp_path / "one/0.pt")
    first, second = (torch.load(tmp_path / f"two/{rank}.pt") for rank in range(2))
    for mine, theirs in zip(alone["losses"], first["losses"], strict=True):
        assert theirs[2] == pytest.approx(mine[2], rel=1e-4)
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)
    reports = [report for report in card.report(tmp_path / "report") if report["rank"] is not None]
    assert [report["rank"] for report in reports] == [0, 1]


def test_a_chip_in_saturation_mode_skips_by_its_flag(card: EmulatedCard) -> None:
    """Its gradients stay finite, so nothing but the flag tells."""
    result = on_npu(card.environment(soc="Ascend910A"), "saturates")
    assert result["flag"]
    assert result["finite"] == [True, True, True]
    assert result["stepped"] == [True, False, True]
    assert result["scales"] == [2**16, 2**15, 2**15]


def test_what_is_missing_is_one_clear_line(card: EmulatedCard, tmp_path: Path) -> None:
    """No CANN, and no card. (No torch_npu, and a wrong pair: test_device.py.)"""
    without_cann = on_npu({"PYTHONPATH": str(card.wheel)}, "finds", "npu", "auto")
    assert "torch_npu 2.13.0 cannot be loaded (" in without_cann["npu"]
    assert "CANN is not set up" in without_cann["npu"]
    assert without_cann["auto"] != "npu"
    without_card = on_npu(card.environment(0), "finds", "npu", "auto")
    assert "torch_npu 2.13.0 sees no card" in without_card["npu"]
    assert without_card["auto"] != "npu"
    beyond = on_npu(card.environment(2), "finds", "npu:2", "npu:1", "auto")
    assert beyond == {"npu:2": "device npu:2 is not available: there is npu:0 to npu:1", "npu:1": "npu", "auto": "npu"}
    assert all("\n" not in line for found in (without_cann, without_card, beyond) for line in found.values())
