"""Faults 1 (at load), 14, 25 and 26: damaged pictures, and decode workers that die or hang."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import DataError, Loader, PipelineConfig
from pipeline.crop_jpeg import CRC_AT, CRC_END, PREFIX, header_crc
from pipeline.folder import Folder
from pipeline.manifest import read_manifest
from pipeline.shards import open_shards
from pipeline.source import open_source
from tests.conftest import ROOT
from tests.faulty import Deadly, Stalling, faulty
from tests.test_loader import BACKENDS, SCRIPT, alive, build, epoch, gone, numbers

Epoch = list[tuple[str, list[int], list[int]]]


def faulty_loader(config: PipelineConfig, kind: type[Folder], **fields: Any) -> Loader:
    """A loader that reads a folder with a fault."""
    folder = open_source(config)
    assert isinstance(folder, Folder)
    return Loader(config, source=faulty(kind, folder, **fields))


@pytest.fixture(scope="module")
def undisturbed(shards: Path) -> list[Epoch]:
    """Two epochs."""
    with build(shards, workers=1) as loader:
        return [epoch(loader), epoch(loader)]


def kill(loader: Loader, who: slice) -> None:
    """SIGKILL, and the time after which the loader looks whether its workers are alive."""
    pids = loader.decode_pids[who]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert not any(alive(pid) for pid in pids) or gone(pids)
    time.sleep(0.6)


FIRST, ALL = slice(1), slice(None)


@pytest.mark.parametrize(
    ("workers", "who", "moments"),
    [(1, FIRST, {(0, 0), (0, 3)}), (2, FIRST, {(0, 2), (1, 0)}), (4, ALL, {(1, 1)})],
    ids=["the-only-one", "one-of-two", "all-four"],
)
def test_fault_25_a_killed_worker_costs_no_pixel(
    shards: Path,
    undisturbed: list[Epoch],
    caplog: pytest.LogCaptureFixture,
    workers: int,
    who: slice,
    moments: set[tuple[int, int]],
) -> None:
    """``moments``: (epoch, batch) before which the kill comes, (0, 0) while the workers are still starting."""
    got: list[Epoch] = []
    with build(shards, workers=workers, slots=2) as loader:
        first = loader.decode_pids
        for number in range(2):
            got.append([])
            for step in range(len(loader)):
                if (number, step) in moments:
                    kill(loader, who)
                if step == 0:
                    batches = iter(loader)
                batch = next(batches)
                got[-1] += epoch([batch])
            assert next(batches, None) is None
        last = loader.decode_pids
        assert not set(first) & set(last)
    assert got == undisturbed
    assert gone(first + last, 1)
    lines = [r.message for r in caplog.records if "was killed by SIGKILL; " in r.message]
    assert len(lines) == len(moments)
    assert all("memory was short" in line and "no sample is lost" in line for line in lines)


@pytest.mark.soak
def test_fault_25_workers_killed_at_random_cost_no_pixel(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kill follows the first batch after the last one within 0.3 s, for half a minute. Pictures are replaced too."""
    rng, handed_out, ended = random.Random(25), threading.Event(), threading.Event()
    got: list[Epoch] = []

    def kill_at_random(loader: Loader) -> None:
        while not ended.is_set():
            handed_out.wait()
            handed_out.clear()
            time.sleep(rng.uniform(0, 0.3))
            with contextlib.suppress(ProcessLookupError, IndexError):  # it has just been ended, or none is started yet
                os.kill(rng.choice(loader.decode_pids), signal.SIGKILL)

    with build(broken, workers=2, batch_size=5, on_error="replace") as loader:
        killer = threading.Thread(target=kill_at_random, args=(loader,), daemon=True)
        killer.start()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            got.append([])
            for batch in loader:
                got[-1] += epoch([batch])
                handed_out.set()
        ended.set()
        handed_out.set()
        killer.join()
    with build(broken, workers=2, batch_size=5, on_error="replace") as loader:
        assert got == [epoch(loader) for _ in got]
    assert sum("no sample is lost" in record.message for record in caplog.records) > 3


@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGSEGV])
def test_fault_25_a_picture_that_kills_its_decoder_ends_the_run_with_its_name(
    folder: Path, fatal: signal.Signals
) -> None:
    config = PipelineConfig(data=folder, split="val", batch_size=4, image_size=64, workers=1)
    seen: list[int] = []
    with faulty_loader(config, Deadly, faulty=18, signal=int(fatal)) as loader:
        name = loader.source.name(18)
        with pytest.raises(DataError) as error:
            seen.extend(i for batch in loader for i in batch.indices.tolist())
        assert gone(loader.decode_pids, 1)
    assert seen == list(range(16))
    for part in (f"killed by {fatal.name}; the last sample it began is {name}; 3 restarts", "did not bring one batch"):
        assert part in str(error.value)


def test_fault_25_a_worker_that_exits_by_itself_ends_the_run(folder: Path) -> None:
    config = PipelineConfig(data=folder, split="val", batch_size=4, image_size=64, workers=1)
    with faulty_loader(config, Deadly, faulty=0, signal=0) as loader, pytest.raises(DataError, match="exit code 3"):
        epoch(loader)


def test_fault_24_and_25_sigterm_and_ctrl_c_are_not_the_workers(shards: Path, undisturbed: list[Epoch]) -> None:
    """From the first moment on: schedulers send SIGTERM to every process of a job, terminals SIGINT."""
    with build(shards) as loader:
        pids = loader.decode_pids
        got = []
        for _ in range(2):
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
            got.append(epoch(loader))
        assert got == undisturbed
        assert loader.decode_pids == pids
        assert all(alive(pid) for pid in pids)
    assert gone(pids, 1)


@pytest.mark.soak
@pytest.mark.parametrize("end", ["SIGKILL", "SIGINT"])
def test_fault_25_no_worker_outlives_a_trainer_that_ends_amid_a_restart(shards: Path, end: str) -> None:
    then = "os.kill(loader.decode_pids[0], 9); time.sleep(0.6)\nwhile True: [0 for _ in loader]"
    script = SCRIPT.format(root=str(ROOT), shards=str(shards), then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = {int(pid) for pid in process.stdout.readline().split()[1:]}
    new: set[int] = set()
    deadline = time.monotonic() + 30
    while not new and time.monotonic() < deadline:
        time.sleep(0.005)
        new = {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()} - first
    assert new
    process.send_signal(getattr(signal, end))
    process.communicate(timeout=30)
    assert gone([*first, *new])


def test_fault_26_a_stopped_worker_is_replaced(
    shards: Path, undisturbed: list[Epoch], caplog: pytest.LogCaptureFixture
) -> None:
    with build(shards, workers=1, slots=2, watchdog_s=2) as loader:
        batches = iter(loader)
        got = epoch([next(batches)])
        pids = loader.decode_pids
        os.kill(pids[0], signal.SIGSTOP)
        got += epoch(batches)
        assert got == undisturbed[0]
        assert gone(pids, 1)
    assert sum(f"decode process {pids[0]} has hung for 2 s" in record.message for record in caplog.records) == 1


def test_fault_26_a_worker_that_hangs_shows_its_stack_and_its_sample(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    config = PipelineConfig(data=folder, split="val", batch_size=4, image_size=64, workers=1, watchdog_s=2)
    with faulty_loader(config, Stalling, faulty=10, been_here=tmp_path / "here") as loader:
        name = loader.source.name(10)
        assert numbers(epoch(loader)) == list(range(21))
    (line,) = [record.message for record in caplog.records if "has hung for 2 s" in record.message]
    assert f"the last sample it began is {name}." in line
    assert "in wait_for_the_storage" in capfd.readouterr().err


def test_fault_26_a_worker_that_waits_for_its_trainer_does_not_hang(shards: Path) -> None:
    with build(shards, slots=2, watchdog_s=0.5) as loader:
        batches = iter(loader)
        next(batches)
        pids = loader.decode_pids
        time.sleep(1.5)
        next(batches)
        time.sleep(1.5)
        assert len(list(batches)) == 4
        assert loader.decode_pids == pids


def place(root: Path, number: int, split: str = "train") -> tuple[Path, int, int]:
    """Tar, offset and length of the header of a sample."""
    source = open_shards(root, split)
    record = source.records[number]
    shard = int(np.searchsorted(source.first, number, side="right")) - 1
    return root / source.shard_names[shard], int(record["offset"]), int(record["header"])


def write_at(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def broken(shards: Path, tmp_path: Path) -> Path:
    """Shards of which no decoder takes samples 5, 6 and the last, 41; nor 20, the last, of val."""
    root = tmp_path / "broken"
    shutil.copytree(shards, root)
    for split, number in (("train", 5), ("train", 6), ("train", 41), ("val", 20)):
        path, offset, _ = place(root, number, split)
        write_at(path, offset, bytes(64))
    return root


@pytest.mark.parametrize("backend", BACKENDS)
def test_fault_01_a_damaged_picture_ends_the_run_with_its_name(broken: Path, backend: str) -> None:
    names = [open_shards(broken, "train").name(number) for number in (5, 6, 41)]
    with build(broken, backend=backend) as loader, pytest.raises(DataError, match="--on-error replace") as error:
        epoch(loader)
    assert any(str(error.value).startswith(f"{name}: ") for name in names)


def stand_in(root: Path, split: str, number: int, damaged: set[int]) -> int:
    """The sample that follows in its shard, after whose last one comes its first."""
    counts = [info.samples for info in read_manifest(root).splits[split]]
    for first, end in itertools.pairwise(itertools.accumulate(counts, initial=0)):
        if first <= number < end:
            following = [*range(number + 1, end), *range(first, number)]
            return int(next(i for i in following if i not in damaged))
    raise AssertionError


@pytest.mark.parametrize(("backend", "workers"), [("pillow", 1), ("pillow", 2), *[(b, 1) for b in BACKENDS[1:]]])
def test_fault_01_the_next_sample_replaces_a_damaged_picture(
    shards: Path, broken: Path, backend: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With its own label, crop and number; all others stay as they were; over two ranks as over one."""
    with build(shards, workers=1) as loader:
        whole = {
            int(i): (int(label), image.numpy().tobytes())
            for batch in loader
            for i, label, image in zip(batch.indices, batch.labels, batch.images, strict=True)
        }
        order = list(whole)
    standing = {number: stand_in(broken, "train", number, {5, 6, 41}) for number in (5, 6, 41)}
    got: list[list[int]] = []
    ranks = 2 if workers == 2 else 1
    replaced = 0
    for rank in range(ranks):
        options = {"rank": rank, "world_size": ranks, "batch_size": 8 // ranks}
        with build(broken, workers=workers, backend=backend, on_error="replace", **options) as loader:
            got.append([])
            for batch in loader:
                for i, label, image in zip(batch.indices, batch.labels, batch.images, strict=True):
                    assert whole[int(i)] == (int(label), image.numpy().tobytes())
                    got[-1].append(int(i))
            replaced += loader.replaced
    assert replaced == 3
    want = [standing.get(i, i) for i in order]
    assert sorted(i for rank_got in got for i in rank_got) == sorted(want)
    if ranks == 1:
        assert got == [want]
    name = open_shards(broken, "train").name
    for gone_, there in standing.items():
        (line,) = [r.message for r in caplog.records if r.message.startswith(f"replaced picture: {name(gone_)}: ")]
        assert line.endswith(f"; {name(there)} takes its place")


def test_fault_01_a_replaced_picture_of_val_is_said_to_count_in_the_score(
    broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with build(broken, split="val", workers=1, on_error="replace") as loader:
        assert numbers(epoch(loader)) == [*range(20), stand_in(broken, "val", 20, {20})]
        assert loader.replaced == 1
    assert sum("counts twice in the score" in record.message for record in caplog.records) == 1


def test_fault_01_a_data_set_of_damaged_pictures_is_not_replaced_for_ever(broken: Path) -> None:
    for number in range(20):
        path, offset, _ = place(broken, number, "val")
        write_at(path, offset, bytes(64))
    with (
        build(broken, split="val", workers=1, on_error="replace") as loader,
        pytest.raises(DataError, match="cannot be decoded, nor can the 6 samples that follow it"),
    ):
        epoch(loader)


def test_fault_14_a_missing_or_wrong_index_in_a_picture_costs_a_whole_decode(
    shards: Path, undisturbed: list[Epoch], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pixels stay, bit for bit: what is damaged is only our segment, which decoders skip."""
    root = tmp_path / "dst"
    shutil.copytree(shards, root)
    named = []
    for number in range(3):
        path, offset, length = place(root, number)
        data = path.read_bytes()[offset : offset + length]
        header, rows = bytearray(data), PREFIX.size
        if number == 0:  # missing
            header[6:14] = bytes(8)
        elif number == 1:  # wrong
            header[CRC_AT] ^= 1
        else:  # out of order, by a writer who then computes the CRC
            header[rows + 8 : rows + 16], header[rows + 16 : rows + 24] = (
                data[rows + 16 : rows + 24],
                data[rows + 8 : rows + 16],
            )
            header[CRC_AT:CRC_END] = header_crc(bytes(header)).to_bytes(4)
        write_at(path, offset, bytes(header))
        named.append(open_shards(root, "train").name(number))
    with build(root) as loader:
        assert epoch(loader) == undisturbed[0]
        assert (loader.damaged, loader.read_whole) == (3, 3)
    for name in named:
        assert sum(name in record.message for record in caplog.records) == 1
