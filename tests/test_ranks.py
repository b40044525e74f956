"""Several processes train as one: same samples, same losses, one model; and they end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import frozen
from tests.conftest import ROOT, Run, metrics

SMALL = (
    "--device", "cpu", "--blocks", "0,0,0", "--image-size", "75", "--batch-size", "16", "--workers", "2",
    "--lr", "0.01", "--lr-schedule", "step", "--print-freq", "1",
)  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
SPAWN = ("--multiprocessing-distributed", "--device-list", "0,1")


def start(*command: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out


def test_two_ranks_train_as_one(folder: Path, tmp_path: Path) -> None:
    """21 pictures in global batches of 20: every second step has 1 picture, and one of the ranks none.

    The two take their pictures through the model in two parts, which makes no difference either.
    """
    data = ("--data", folder / "val", *SMALL, "--image-size", 107, "--batch-size", 20, "--epochs", 2)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    frozen.main([str(word) for word in (tmp_path / "one", *data)])
    finish(start(*TORCHRUN, "tests/frozen.py", tmp_path / "two", *data, "--accumulate", 2))
    alone = torch.load(tmp_path / "one/0.pt")
    first, second = (torch.load(tmp_path / f"two/{rank}.pt") for rank in range(2))
    assert [size for size, _, _ in alone["losses"]] == [20, 1, 20, 1]
    assert [n for _, n, _ in first["losses"]] == [10, 0, 10, 0]
    assert [n for _, n, _ in second["losses"]] == [10, 1, 10, 1]
    for mine, theirs in zip(alone["losses"], first["losses"], strict=True):
        assert theirs[2] == pytest.approx(mine[2], rel=1e-5)
    assert len({loss for _, _, loss in alone["losses"]}) == 4, "nothing was learnt"
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def spawned(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output and folder of two epochs on two ranks."""
    output = tmp_path_factory.mktemp("spawned")
    argv = ("train.py", "--shards", shards, *SMALL, "--epochs", 2, "--output", output, *SPAWN)
    return finish(start(*argv, PYTHONWARNINGS="error")), output


def test_log_lines_are_those_of_the_original_for_several_cards(spawned: tuple[str, Path]) -> None:
    out, output = spawned
    number = r"\d+\.\d{3}"
    assert len(re.findall(r"^\[cpu id: 0 \] Epoch: \[\d\]\[\d/3\]\tTime ", out, re.MULTILINE)) == 6
    assert len(re.findall(rf"^\[cpu id: 0 \] \[batch_size: 8 \] \* FPS@all {number}$", out, re.MULTILINE)) == 2
    assert len(re.findall(rf"^\[cpu id: 0 \] \[AVG-ACC\] \* Acc@1 {number} Acc@5 {number}$", out, re.MULTILINE)) == 2
    assert [line["world_size"] for line in metrics(output, "run")] == [2]
    assert len(metrics(output, "train")) == 6  # rank 0 writes, and no other


def test_every_picture_is_scored_once_by_any_number_of_ranks(
    spawned: tuple[str, Path], shards: Path, run_here: Run, tmp_path: Path
) -> None:
    """What two ranks scored together, one scores alone, from the checkpoint."""
    _, output = spawned
    together = metrics(output, "val")[-1]
    done = run_here(
        "train.py", "--shards", shards, *SMALL, "--evaluate", "--resume", output / "checkpoint.pth.tar",
        "--output", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (alone,) = metrics(tmp_path, "val")
    assert together["acc1"] / 100 * 21 == pytest.approx(round(together["acc1"] / 100 * 21), abs=1e-6)
    assert together["acc1"] == pytest.approx(alone["acc1"])
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank -> process number, of those a launcher has started."""
    found: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            environment = dict(
                part.split("=", 1) for part in (status.parent / "environ").read_text().split("\0") if "=" in part
            )
        except (OSError, ValueError):
            continue
        if parent == launcher and "spawn_main" in (status.parent / "cmdline").read_text():
            found[len(found)] = int(status.parent.name)
        elif parent == launcher and "RANK" in environment:
            found[int(environment["RANK"])] = int(status.parent.name)
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


@pytest.mark.soak
def test_one_rank_that_is_killed_ends_all(shards: Path, tmp_path: Path) -> None:
    """In seconds, with a line that says so; and no decode process is left."""
    process = start("train.py", "--shards", shards, *SMALL, "--epochs", 99, "--output", tmp_path, *SPAWN)
    assert process.stdout is not None
    while "Epoch: [0][2/3]" not in process.stdout.readline():
        assert process.poll() is None
    ranks = list(ranks_of(process.pid).values())
    assert len(ranks) == 2
    decoding = [child for rank in ranks for child in children_of(rank)]
    assert decoding
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode == 128 + signal.SIGKILL
    assert "was ended by SIGKILL" in out.splitlines()[-1]
    assert "Traceback" not in out
    while any(is_running(pid) for pid in (*ranks, *decoding)):
        assert time.monotonic() - killed < 30


@pytest.mark.soak
@pytest.mark.parametrize("launcher", [SPAWN, TORCHRUN])
def test_fault_24_a_signal_to_the_launcher_stops_all_ranks_in_one_step(
    shards: Path, tmp_path: Path, run_here: Run, launcher: tuple[str, ...]
) -> None:
    """They save once, and one rank alone goes on from there. torchrun itself exits with 1, whatever its ranks say."""
    common = ("--shards", shards, *SMALL, "--batch-size", 6, "--epochs", 2, "--output", tmp_path, "--resume", "auto")
    spawned = launcher == SPAWN
    process = start(*(("train.py", *common, *launcher) if spawned else (*launcher, "train.py", *common)))
    assert process.stdout is not None
    while "Epoch: [0][1/7]" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (143 if spawned else 1)
    (stopped,) = re.findall(r"SIGTERM: stopped after sample (\d+) of epoch 0, saved as", out)
    done = run_here("train.py", *common)
    assert done.returncode == 0, done.stderr
    assert f"(epoch 0, sample {stopped}" in done.stdout
    steps = [line["step"] for line in metrics(tmp_path, "train")]
    assert steps == [*range(7), *range(7)]


def test_what_is_wrong_for_all_is_said_once(shards: Path, tmp_path: Path) -> None:
    process = start("train.py", "--shards", tmp_path / "missing", *SMALL, "--output", tmp_path / "out", *SPAWN)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out.startswith("train.py: error: no such folder of shards")
    assert len(out.splitlines()) == 1


@pytest.mark.soak
def test_torchrun_starts_anew_from_the_last_checkpoint(spawned: tuple[str, Path], shards: Path, tmp_path: Path) -> None:
    """A rank is killed in the second epoch; the run ends with the very model of the run that was left alone."""
    process = start(
        *TORCHRUN, "--max-restarts", 1, "train.py", "--shards", shards, *SMALL, "--epochs", 2, "--output", tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    while "Epoch: [1][0/3]" not in process.stdout.readline():
        assert process.poll() is None
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    out = finish(process)
    assert re.search(rf"=> resumed from {tmp_path}/checkpoint-000001-\w+\.pth\.tar \(epoch 1", out)
    got, want = (
        torch.load(output / "checkpoint.pth.tar", weights_only=True)["state_dict"] for output in (tmp_path, spawned[1])
    )
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)
