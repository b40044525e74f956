from __future__ import annotations

import ast
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import Batch, ConfigError, Loader, PipelineConfig, build_loader
from pipeline.backends import is_installed
from pipeline.ring import receive, share
from pipeline.shards import open_shards
from tests.conftest import ROOT

BACKENDS = ["pillow", *(["dali"] if is_installed("dali") else [])]


def build(root: Path, **options: Any) -> Loader:
    defaults: dict[str, Any] = {"shards": root, "batch_size": 8, "image_size": 64, "workers": 2}
    return build_loader(PipelineConfig(**defaults | options))


def epoch(loader: Iterable[Batch]) -> list[tuple[str, list[int], list[int]]]:
    """What one iteration hands out: hash of the pixels, labels, numbers."""
    return [
        (hashlib.sha256(b.images.numpy().tobytes()).hexdigest(), b.labels.tolist(), b.indices.tolist()) for b in loader
    ]


def numbers(batches: list[tuple[str, list[int], list[int]]]) -> list[int]:
    return [i for _, _, indices in batches for i in indices]


@pytest.mark.parametrize("backend", [BACKENDS[0], *(pytest.param(b, marks=pytest.mark.soak) for b in BACKENDS[1:])])
def test_fault_34_two_epochs_are_the_same_bit_for_bit_for_any_number_of_workers(shards: Path, backend: str) -> None:
    seen = []
    for workers in (1, 2, 4):
        with build(shards, workers=workers, backend=backend) as loader:
            seen.append((epoch(loader), epoch(loader)))
    assert seen[0] == seen[1] == seen[2]
    first, second = seen[0]
    assert sorted(numbers(first)) == sorted(numbers(second)) == list(range(42))
    assert numbers(first) != numbers(second)
    assert [len(b[1]) for b in first] == [8, 8, 8, 8, 8, 2]


def test_a_batch_is_what_the_contract_says(shards: Path) -> None:
    with build(shards) as loader:
        assert len(loader) == 6
        assert loader.classes == ("class0", "class1", "class2")
        labels = open_shards(shards, "train").labels
        for batch in loader:
            n = len(batch.labels)
            assert (batch.images.dtype, batch.labels.dtype, batch.indices.dtype) == (
                torch.uint8,
                torch.int64,
                torch.int64,
            )
            assert batch.images.shape == (n, 64, 64, 3)
            assert batch.images.is_contiguous()
            assert batch.labels.tolist() == labels[batch.indices.numpy()].tolist()


def test_a_batch_says_how_many_wait_behind_it(shards: Path) -> None:
    """Of four slots, once all are decoded and as long as none is given back."""
    with build(shards) as loader:
        batches = loader.held_batches()
        assert 0 <= next(batches).ready <= 3
        while any(flight.missing for flight in loader._flights):
            loader._collect()
        assert [next(batches).ready for _ in range(3)] == [2, 1, 0]


def test_a_folder_gives_the_same_pictures_as_its_shards(folder: Path, shards: Path) -> None:
    """Evaluation crops depend on the picture alone, so each picture can be matched by its pixels."""
    pictures = []
    places: list[dict[str, Any]] = [{"data": folder}, {"shards": shards}]
    for where in places:
        with build_loader(PipelineConfig(**where, split="val", batch_size=8, image_size=64, workers=2)) as loader:
            pictures.append(
                sorted(
                    (int(label), hashlib.sha256(image.numpy().tobytes()).hexdigest())
                    for batch in loader
                    for image, label in zip(batch.images, batch.labels, strict=True)
                )
            )
    assert pictures[0] == pictures[1]


def test_val_is_in_order_whole_and_the_same_every_time(shards: Path) -> None:
    with build(shards, split="val") as loader:
        first, second = epoch(loader), epoch(loader)
    assert first == second
    assert numbers(first) == list(range(21))


@pytest.mark.parametrize(("split", "world_sizes"), [("train", (1, 2, 4)), ("val", (1, 2, 3))])
def test_every_sample_exactly_once_over_all_ranks(shards: Path, split: str, world_sizes: tuple[int, ...]) -> None:
    batches: dict[int, list[set[int]]] = {}
    for world_size in world_sizes:
        ranks = []
        for rank in range(world_size):
            options = {"split": split, "rank": rank, "world_size": world_size, "batch_size": 12 // world_size}
            with build(shards, **options) as loader:
                ranks.append(epoch(loader))
        assert len({len(r) for r in ranks}) == 1
        assert sorted(i for r in ranks for i in numbers(r)) == list(range(42 if split == "train" else 21))
        batches[world_size] = [{i for r in ranks for i in r[step][2]} for step in range(len(ranks[0]))]
    assert all(sets == batches[1] for sets in batches.values())


def test_crops_do_not_depend_on_rank_or_batch_size(shards: Path) -> None:
    def by_number(**options: Any) -> dict[int, bytes]:
        with build(shards, **options) as loader:
            return {
                int(i): image.numpy().tobytes() for b in loader for i, image in zip(b.indices, b.images, strict=True)
            }

    whole = by_number()
    assert by_number(batch_size=5) == whole
    assert by_number(rank=0, world_size=2) | by_number(rank=1, world_size=2) == whole
    assert by_number(seed=1) != whole


@pytest.mark.parametrize(("batch_size", "world_size", "workers"), [(8, 1, 1), (4, 2, 2), (3, 1, 2)])
def test_resume_in_the_middle_of_an_epoch(shards: Path, batch_size: int, world_size: int, workers: int) -> None:
    with build(shards, seed=3) as loader:
        whole = [*epoch(loader), *epoch(loader)]
    with build(shards, seed=3) as loader:
        batches = iter(loader)
        head = [next(batches).indices.tolist() for _ in range(2)]
        state = loader.state_dict()
    assert head == [b[2] for b in whole[:2]]
    assert all(isinstance(value, (int, str)) for value in state.values())
    rest: list[int] = []
    after: list[int] = []
    for rank in range(world_size):
        options = {"batch_size": batch_size, "rank": rank, "world_size": world_size, "workers": workers}
        with build(shards, seed=3, **options) as loader:
            loader.load_state_dict(state)
            rest += numbers(epoch(loader))
            after += numbers(epoch(loader))
    assert sorted(rest) == sorted(set(range(42)) - {i for b in head for i in b})
    assert sorted(after) == list(range(42))
    if (batch_size, world_size) == (8, 1):
        assert rest == numbers(whole[2:6])
        assert after == numbers(whole[6:])


def test_position_at_the_end_of_an_epoch_is_the_next_epoch(shards: Path) -> None:
    with build(shards) as loader:
        for _ in loader:
            state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (1, 0)
        second = epoch(loader)
    with build(shards) as loader:
        loader.load_state_dict(state)
        assert epoch(loader) == second


def test_breaking_off_gives_up_the_rest_of_the_epoch(shards: Path) -> None:
    with build(shards) as loader:
        epoch(loader)
        second = epoch(loader)
    with build(shards) as loader:
        for _ in loader:
            break
        assert epoch(loader) == second


def test_a_state_of_other_data_is_refused(shards: Path) -> None:
    with build(shards) as loader:
        state = loader.state_dict()
        for *said, name, value in (
            ("seed", 1),
            ("number of pictures", "samples", 41),
            ("split", "val"),
            ("shuffle", "block of 32"),
            ("pictures are others", "data", "0123456789abcdef"),
            ("position", 42),
            ("epoch", -1),
            ("epoch", "0"),
        ):
            with pytest.raises(ConfigError, match=said[0] if said else name):
                loader.load_state_dict(state | {name: value})


def test_a_block_shuffle_is_each_sample_once_and_goes_on_in_the_middle(shards: Path) -> None:
    """Only the order is another: a sample's crop is the one that a global shuffle gives it."""
    block = {"shuffle": "block", "shuffle_window": 2}

    def by_number(**options: Any) -> dict[int, bytes]:
        with build(shards, **options) as loader:
            return {
                int(i): image.numpy().tobytes() for b in loader for i, image in zip(b.indices, b.images, strict=True)
            }

    assert by_number(**block) == by_number()
    with build(shards, **block) as loader:
        batches = iter(loader)
        head = [next(batches).indices.tolist() for _ in range(2)]
        state = loader.state_dict()
        with pytest.raises(ConfigError, match="shuffle 'block of 2' then and 'global' now"), build(shards) as other:
            other.load_state_dict(state)
    with build(shards, **block, batch_size=5) as loader:
        loader.load_state_dict(state)
        rest = numbers(epoch(loader))
    assert sorted(rest + [i for b in head for i in b]) == list(range(42))


def test_a_block_shuffle_of_single_files_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="single files"):
        build_loader(PipelineConfig(data=folder, shuffle="block", batch_size=8, image_size=64))


def test_more_batches_than_slots_cannot_be_held(shards: Path) -> None:
    with build(shards, slots=2) as loader:
        held = loader.held_batches()
        next(held), next(held)
        with pytest.raises(RuntimeError, match="release a batch"):
            next(held)


@pytest.mark.parametrize("slots", [2, 3])
def test_held_batches_released_one_late_are_the_same_epoch(shards: Path, slots: int) -> None:
    """How a device feed uses the loader: batch k + 1 is taken before batch k is given back."""
    with build(shards) as loader:
        want = [(b.images.clone(), b.indices.tolist()) for _ in range(2) for b in loader]
    got = []
    with build(shards, slots=slots) as loader:
        for _ in range(2):
            held: list[Any] = []
            for batch in loader.held_batches():
                held.append(batch)
                if len(held) > 1:
                    oldest = held.pop(0)
                    got.append((oldest.images.clone(), oldest.indices.tolist()))
                    loader.release()
            got.append((held[0].images.clone(), held[0].indices.tolist()))
            loader.release()
    assert [indices for _, indices in got] == [indices for _, indices in want]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(got, want, strict=True))


@pytest.mark.parametrize(("slots", "batch_size"), [(700, 1), (2, 400), (64, 3)])
def test_no_number_of_slots_blocks_the_queue(shards: Path, slots: int, batch_size: int) -> None:
    """The sockets between loader and workers hold a limited number of messages."""
    with build(shards, slots=slots, batch_size=batch_size) as loader:
        for _ in range(3):
            assert sorted(numbers(epoch(loader))) == list(range(42))


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(shards: Path) -> None:
    with build(shards, slots=2) as loader:
        for batch in loader:
            before = batch.images.clone()
            time.sleep(0.05)  # the workers are filling the other slot meanwhile
            assert torch.equal(batch.images, before)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def gone(pids: list[int], within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


def test_close_leaves_no_process_no_descriptor_and_no_shared_memory(shards: Path) -> None:
    build(shards).close()
    before = len(os.listdir("/proc/self/fd"))
    loader = build(shards)
    next(iter(loader))
    pids = loader.decode_pids
    deadline = time.monotonic() + 10  # one worker may have done it all while the other was still starting
    while not all("memfd:headrace" in maps(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in pids:  # the ring has no name: there is nothing in /dev/shm to be left there
        assert "/dev/shm" not in maps(pid)
        assert "memfd:headrace" in maps(pid)
    loader.close()
    loader.close()
    assert gone(pids, 0.5)
    assert len(os.listdir("/proc/self/fd")) == before
    assert "memfd:headrace" not in maps(os.getpid())
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(loader))


SCRIPT = """
import os, sys, time
sys.path.insert(0, {root!r})
from pipeline import PipelineConfig, build_loader
loader = build_loader(PipelineConfig(shards={shards!r}, batch_size=8, image_size=64, workers=2))
print(next(iter(loader)).images.shape[0], *loader.decode_pids, flush=True)
{then}
"""


@pytest.mark.parametrize("end", ["forgotten", "SIGKILL", "SIGINT", "error"])
def test_no_worker_outlives_its_trainer(shards: Path, end: str) -> None:
    """Also: a script needs no __main__ guard."""
    then = {"forgotten": "", "error": "raise SystemExit(3)"}.get(end, "time.sleep(60)")
    script = SCRIPT.format(root=str(ROOT), shards=str(shards), then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    n, *pids = process.stdout.readline().split()
    assert int(n) == 8
    if end.startswith("SIG"):
        process.send_signal(getattr(signal, end))
    _, errors = process.communicate(timeout=30)
    assert gone([int(pid) for pid in pids])
    assert "ResourceWarning" not in errors
    assert "Exception ignored" not in errors


def test_workers_do_not_import_torch(shards: Path) -> None:
    with build(shards) as loader:
        next(iter(loader))
        for pid in loader.decode_pids:
            assert "libtorch" not in maps(pid)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, was 0"),
        ({"workers": 0}, "workers"),
        ({"workers": "many"}, "workers"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, 1\], was 2"),
        ({"slots": 1}, "slots"),
        ({"image_size": True}, "image_size"),
        ({"shuffle": "some"}, "shuffle must be auto, global, block, was 'some'"),
        ({"shuffle_window": 0}, "shuffle_window"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"resize_size": 10}, "resize_size"),
        ({"on_error": "skip"}, "on_error must be fail, replace, was 'skip'"),
        ({"watchdog_s": 0}, "watchdog_s must be above 0, was 0"),
        ({"backend": "magic"}, "backend"),
        ({"split": "test"}, "no split 'test'; it has train, val"),
        ({"shards": "/nonexistent"}, "no such folder of shards: /nonexistent"),
        ({"data": "x"}, "one of the two"),
        ({"shards": None}, "one of the two"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(shards, **options)


def test_memory_does_not_grow(shards: Path) -> None:
    """Slots are used again and again: later epochs allocate nothing that stays."""

    def resident_kb() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    with build(shards) as loader:
        for _ in range(5):
            epoch(loader)
        before = resident_kb()
        for _ in range(40):
            epoch(loader)
        assert resident_kb() - before < 8_000


def test_shared_objects_arrive_and_their_arrays_are_not_copied() -> None:
    value: dict[str, Any] = {
        "a": np.arange(100_000),
        "b": [np.ones((3, 5), np.float32), "text"],
        "c": np.empty(0, np.int64),
    }
    fd = share(value)
    got = receive(fd)
    os.close(fd)
    assert got["b"][1] == "text"
    for mine, theirs in ((value["a"], got["a"]), (value["b"][0], got["b"][0]), (value["c"], got["c"])):
        assert np.array_equal(np.asarray(mine), theirs)
    assert not got["a"].flags.owndata
    assert not got["a"].flags.writeable


def imports(path: Path) -> set[str]:
    """The packages and modules that a file imports by their absolute names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_import_directions() -> None:
    """tools -> train.py -> model, pipeline. Those two import each other never; a tool, of the tools, its own folder."""
    packages = ("pipeline", "model", "train", "tools", "tests")
    files = {"pipeline": (ROOT / "pipeline").rglob("*.py"), "model": (ROOT / "model").rglob("*.py")}
    for path in [path for paths in files.values() for path in paths]:
        assert not {name.split(".")[0] for name in imports(path)} & set(packages), path
    assert not {name.split(".")[0] for name in imports(ROOT / "train.py")} & {"tools", "tests"}
    for path in (ROOT / "tools").rglob("*.py"):
        own = "tools.acceptance" if path.parent.name == "acceptance" or path.stem == "ascend_acceptance" else "none"
        for name in imports(path):
            assert name.split(".")[0] not in {"tools", "tests"} or name.startswith(own), f"{path} imports {name}"


def test_whole_decodes_are_counted_and_said_once(
    shards: Path, verbatim_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with build(shards, workers=1) as loader:
        crops = epoch(loader)
        assert (loader.read_whole, loader.damaged) == (0, 0)
    assert not caplog.records
    for _ in range(2):
        with build(verbatim_shards, workers=1) as loader:
            assert epoch(loader) == crops  # the same pixels
            assert loader.read_whole >= 42
    assert sum("not crop-addressed" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_tile_is_delivered_as_the_whole_decode_has_it_and_counted(
    backend: str, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "dst"
    shutil.copytree(shards, root)
    source = open_shards(root, "train")
    tar = root / "train-000000.tar"
    record = source.records[1]
    data = bytearray(tar.read_bytes())
    data[int(record["offset"]) + int(record["bytes"]) // 2] ^= 0x10
    tar.write_bytes(data)
    name = source.name(1).rpartition(": ")[2]
    with build(root, workers=1, backend=backend, crop_scale=(0.9, 1.0)) as loader:
        assert sorted(numbers(epoch(loader))) == list(range(42))
        assert loader.damaged >= 1
    assert any(name in record.message for record in caplog.records)
