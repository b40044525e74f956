"""Killed with SIGKILL at random moments, again and again: what comes out is what an undisturbed run gives.

``HEADRACE_KILLS``: how often each test kills. `make soak` does it a few times; `make kills` a hundred times in all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.writer import WriterConfig, write_shards
from tests.conftest import ROOT
from tests.photos import write_photos

KILLS = int(os.environ.get("HEADRACE_KILLS", "4"))
EPOCHS, SAMPLES, BATCH = 2, 42, 6
# A checkpoint every second step.
SMALL = (
    "--device", "cpu", "--blocks", "0,0,0", "--image-size", "75", "--batch-size", BATCH, "--lr", "0.01",
    "--lr-schedule", "step", "--epochs", EPOCHS, "--print-freq", "1", "--checkpoint-every", "2", "--resume", "auto",
)  # fmt: skip
pytestmark = pytest.mark.soak


def ended(command: list[object], *, kill_after_s: float | None, **environment: str) -> bool:
    """Run a command to its end; or kill it, and all that it has started, after a while. Whether it came to its end."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, out
    return True


class Journal:
    """What was handed out by tests/journal.py, in all attempts."""

    def __init__(self, path: Path):
        self.path = path

    def effective(self) -> dict[tuple[int, int], list[int]]:
        """The samples of each global batch, by epoch and end: of the last attempt that came to it."""
        batches: dict[tuple[int, int], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the kill came in the middle of a line
                attempt, epoch, end, _, indices = json.loads(line)
                batches[epoch, end][attempt] += indices
        return {key: sorted(by[max(by, key=int)]) for key, by in batches.items()}


def train_with_kills(shards: Path, output: Path, rng: random.Random, kills: int, worlds: list[int]) -> int:
    """One run, of as many attempts as it takes. Returns how many of them were killed."""
    for attempt in itertools.count():  # all but the last were killed
        world = rng.choice(worlds)
        ranks = ("--multiprocessing-distributed", "--device-list", "0,1") if world == 2 else ()
        command = [
            "tests/journal.py", "--shards", shards, *SMALL, "--workers", rng.choice([1, 2, 4]), "--output", output,
            *ranks,
        ]  # fmt: skip
        moment = rng.uniform(0.5, 9.0 * world) if attempt < kills else None
        environment = {"HEADRACE_JOURNAL": str(output.with_suffix(".journal")), "HEADRACE_ATTEMPT": str(attempt)}
        if ended(command, kill_after_s=moment, **environment):
            return attempt
    raise AssertionError


def runs(shards: Path, folder: Path, seed: int, worlds: list[int]) -> Iterator[Path]:
    """Runs that are killed KILLS times in all; each to its end."""
    rng, killed = random.Random(seed), 0
    while killed < KILLS:
        output = folder / f"killed-{killed}"
        before = time.monotonic()
        killed += train_with_kills(shards, output, rng, KILLS - killed, worlds)
        print(f"{killed} of {KILLS} kills, {time.monotonic() - before:.0f} s")
        yield output


def undisturbed(shards: Path, folder: Path) -> Path:
    train_with_kills(shards, folder / "whole", random.Random(0), 0, [1])
    return folder / "whole"


def check_epochs(output: Path, whole: Path) -> None:
    got, want = (Journal(of.with_suffix(".journal")).effective() for of in (output, whole))
    assert got == want
    for epoch in range(EPOCHS):
        samples = [i for (e, _), indices in got.items() if e == epoch for i in indices]
        assert sorted(samples) == list(range(SAMPLES))


def test_fault_33_a_killed_run_sees_every_sample_once_and_ends_with_the_same_model(
    shards: Path, tmp_path: Path
) -> None:
    """One rank; 1, 2 or 4 workers by chance. The last checkpoint is the same file, to the last bit."""
    whole = undisturbed(shards, tmp_path)
    for output in runs(shards, tmp_path, 1, [1]):
        check_epochs(output, whole)
        assert (output / "checkpoint.pth.tar").read_bytes() == (whole / "checkpoint.pth.tar").read_bytes()


def test_fault_32_and_33_one_rank_and_two_by_turns_see_every_sample_once(shards: Path, tmp_path: Path) -> None:
    """Which model comes of it hangs on where it was killed, for batch norm sees each rank's own pictures."""
    whole = undisturbed(shards, tmp_path)
    for output in runs(shards, tmp_path, 2, [1, 2]):
        check_epochs(output, whole)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_fault_23_killed_while_sharding_leaves_nothing_half_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    many = write_photos(tmp_path / "many", classes=2, train=120, val=2)
    whole = tmp_path / "whole"
    write_shards(WriterConfig(source=many, destination=whole, shard_mb=0.2, workers=2))
    want = content(whole)
    rng, killed = random.Random(3), 0
    while killed < KILLS:
        destination = tmp_path / f"killed-{killed}"
        done = False
        while not done:
            command = ["tools/make_shards.py", many, destination, "--shard-mb", 0.2, "--resume"]
            moment = rng.uniform(0.1, 6.0) if killed < KILLS else None
            done = ended([*command, "--workers", rng.choice([1, 2, 4])], kill_after_s=moment)
            killed += not done
            for name, data in content(destination).items() if destination.exists() else ():
                assert name.startswith(".") or data == want[name], f"{name} is visible, and is not what it will be"
        assert content(destination) == want
