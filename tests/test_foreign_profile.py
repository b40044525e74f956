"""Loaders that are not ours, under the profiler: plain torch DataLoaders, slow where a test wants it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline import ConfigError, DataError
from pipeline.profiler import ForeignReport, profile
from pipeline.profiler.any_batch import copied, image_side, images_of
from pipeline.profiler.any_loader import Loop
from pipeline.profiler.cpu_clock import Use
from pipeline.profiler.foreign import profile_named
from pipeline.profiler.why import why_slow
from tests.conftest import ROOT


class Pictures(Dataset[tuple[Tensor, int]]):
    """64 small ones, each of which takes its time, asleep or at work."""

    def __init__(self, sleep_s: float = 0.0, work_s: float = 0.0, root: Path | None = None):
        self.sleep_s, self.work_s, self.root = sleep_s, work_s, root

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(self.sleep_s)
        end = time.thread_time() + self.work_s
        while time.thread_time() < end:
            pass
        return torch.zeros(3, 32, 32), index


def loader(workers: int = 0, **options: Any) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(Pictures(**options), batch_size=8, num_workers=workers, persistent_workers=workers > 0)


def quick(batches: Any, step_s: float = 0.0, **options: Any) -> ForeignReport:
    return profile(batches, lambda _: time.sleep(step_s), seconds=2.0, **options)


def test_a_step_that_is_slow_is_not_the_loaders_fault() -> None:
    report = quick(loader(), step_s=0.1)
    assert report.demand < 8 / 0.1
    assert report.stall_fraction < 0.2
    assert report.head_room < 1.5
    if report.cause != "neighbour":  # other tests may take its core while it is handed a batch
        assert (report.verdict, report.cause) == ("compute", "step")
        assert report.sentence.startswith("NOT INPUT-BOUND")
    assert not report.switches


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_sleeps_waits_for_something(workers: int) -> None:
    report = quick(loader(workers, sleep_s=0.004), step_s=0.004)
    assert (report.verdict, report.cause) == ("io", "waiting")
    # 32 ms asleep for each batch: in the main process, before 4 in the step; or in two others, beside it.
    assert report.stall_fraction == pytest.approx(1 - 4 / (36 if workers == 0 else 16), abs=0.15)
    truth = 8 * max(1, workers) / 0.032
    assert 0.5 * truth < report.supply < 1.1 * truth
    assert report.head_room == pytest.approx(report.demand / report.together)
    assert str(report).startswith(report.sentence)
    assert json.loads(json.dumps(report.as_json()))["verdict"] == report.verdict


def test_a_device_that_works_on_its_own_is_waited_for() -> None:
    """The step returns at once: how long this process waits for a batch says nothing, until it waits for the device."""
    queue: SimpleQueue[float | None] = SimpleQueue()
    idle = threading.Event()

    def work() -> None:
        while (seconds := queue.get()) is not None:
            time.sleep(seconds)
            idle.set()

    def step(_: Any) -> None:
        idle.clear()
        queue.put(0.02)

    def wait() -> None:
        idle.wait()

    device = threading.Thread(target=work)
    device.start()
    report = profile(loader(sleep_s=0.0025), step, seconds=2.0, synchronize=wait)
    queue.put(None)
    device.join()
    assert report.demand == pytest.approx(8 / 0.02, rel=0.3)
    assert report.stall_fraction == pytest.approx(0.5, abs=0.15)


def test_the_start_of_workers_is_reported_and_not_counted() -> None:
    """New ones for each epoch of 8 batches, which take 0.4 s to begin: beside the 0.064 s that the batches take."""
    slow = DataLoader(Pictures(sleep_s=0.002), batch_size=8, num_workers=2, worker_init_fn=slow_start)
    report = profile(slow, demand=1e5, seconds=2.0)
    assert report.supply > 3 * 64 / 0.464
    assert min(report.first_batch_s, report.epoch_start_s) > 0.4
    assert report.workers == 2


def slow_start(_: int) -> None:
    time.sleep(0.4)


def test_the_main_process_at_work_is_named() -> None:
    report = quick(loader(work_s=0.002), step_s=0.001)
    assert (report.verdict, report.cause) == ("cpu", "main")
    assert report.cpu_us_per_image > 1500


def test_workers_at_work_are_seen() -> None:
    report = profile(loader(workers=1, work_s=0.004), demand=1e6, seconds=2.0)
    assert report.verdict == "cpu"
    assert report.cause in ("decode", "workers", "neighbour")  # as other tests leave cores to it
    assert report.stall_fraction > 0.8
    assert report.cpu_us_per_image > 3500
    assert any(name.startswith("worker") and used > 0.1 for name, used in report.cores_by_process.items())


def test_a_switch_is_measured_on_the_loaders_own_pictures(folder: Path) -> None:
    report = quick(loader(sleep_s=0.001, root=folder))
    names = [switch.name for switch in report.switches]
    assert names == ["headrace, on the pictures as they are", "headrace, on crop-addressed shards"]
    for switch in report.switches:
        assert switch.low <= switch.images_per_s <= switch.high
        assert switch.images_per_s == pytest.approx(switch.faster * report.supply)
        assert switch.cpu_us > 0
        assert switch.training_images_per_s == min(report.demand, switch.images_per_s)
        assert switch.cores == 1  # as many as load for the loader itself
    assert [switch.making_s_per_million > 0 for switch in report.switches] == [False, True]
    assert "make_shards.py" in str(report)


@pytest.mark.soak
def test_a_script_needs_no_main_guard(folder: Path, tmp_path: Path) -> None:
    """And is not run twice: what makes shards, or decodes, imports nothing of it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom pipeline.profiler import profile\nprint('begun')\n"
        f"print(profile([torch.zeros(8, 32, 32, 3)] * 20, demand=1e6, seconds=1.0, data={str(folder)!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begun") == 1
    assert "headrace, on crop-addressed shards" in done.stdout
    assert "training crops of 32 px" in done.stdout


def a_use(*, main: float, workers: float, queued: float = 0.0, others: float = 0.0) -> Use:
    """Of one second: cores that were used or waited for; workers are number 1."""
    by_process = {os.getpid(): main} | ({1: workers} if workers else {})
    ours = main + workers
    return Use(
        seconds=1.0,
        by_process=by_process,
        ours_s=ours,
        queued={1: queued} if workers else {},
        busy_s=ours + others,
        stolen_s=0.0,
    )


@pytest.mark.parametrize(
    ("use", "workers", "stall", "cause"),
    [
        (a_use(main=0.1, workers=1.9), 2, 0.0, "step"),
        (a_use(main=0.1, workers=1.85), 2, 0.5, "decode"),
        (a_use(main=0.1, workers=0.9), 1, 0.5, "workers"),
        (a_use(main=0.1, workers=1.5), 2, 0.5, "decode"),  # a third worker has no core
        (a_use(main=0.1, workers=0.9, queued=0.9, others=1.0), 2, 0.5, "neighbour"),
        (a_use(main=0.1, workers=0.3, others=0.2), 2, 0.5, "waiting"),
        (a_use(main=0.1, workers=0.3, others=1.6), 2, 0.5, "waiting"),  # they have cores, and want none
        (a_use(main=0.1, workers=0.3, queued=1.4, others=1.6), 2, 0.5, "neighbour"),
        (a_use(main=0.95, workers=0.3), 2, 0.5, "main"),
        (a_use(main=0.95, workers=0.0), 0, 0.5, "main"),
        (a_use(main=0.1, workers=0.0), 0, 0.5, "waiting"),
        (a_use(main=0.1, workers=1.85, queued=math.inf), 2, 0.5, "decode"),
    ],
)
def test_causes(use: Use, workers: int, stall: float, cause: str) -> None:
    asking = use.by_process[os.getpid()]
    loop = Loop(rates=(1.0,), images=1, seconds=1.0, wait=0.0, asking=asking, use=use)
    assert why_slow(stall, loop, workers, 2).cause == cause


@dataclasses.dataclass
class Sample:
    image: Tensor
    name: str


def test_batches_of_any_form() -> None:
    image = torch.zeros(5, 3, 4, 4)
    forms: list[Any] = [image, (image, 1), [image], {"x": image, "y": 2}, Sample(image, "a"), ({"k": [image]},)]
    for batch in forms:
        assert images_of(batch) == 5
        kept = copied(batch)
        assert type(kept) is type(batch)
        image += 1
        assert images_of(kept) == 5
        assert image_side(kept) == 4
    assert image_side((torch.zeros(2, 300, 200, 3), 1)) == 245  # as many pixels
    assert image_side([torch.zeros(2, 3)]) is None
    assert float(copied(image)[0, 0, 0, 0]) == len(forms)
    with pytest.raises(ConfigError, match="holds no tensor: give count="):
        images_of("text")


def test_wrong_calls(tmp_path: Path) -> None:
    def once() -> Iterator[Tensor]:
        yield from [torch.zeros(4, 3, 2, 2)] * 6

    with pytest.raises(ConfigError, match="has no batch"):
        quick([])
    with pytest.raises(ConfigError, match="iterated only once"):
        quick(once())
    with pytest.raises(ConfigError, match="one of the two"):
        profile([torch.zeros(1)])
    with pytest.raises(ZeroDivisionError):
        profile([torch.zeros(4, 3)], lambda _: 1 / 0, seconds=1.0)
    for options in ({"demand": -1.0}, {"demand": 5.0, "seconds": 0.0}, {"demand": 5.0, "count": lambda _: 0}):
        with pytest.raises(ConfigError, match=r"must be above 0|must hold a picture"):
            profile([torch.zeros(4, 3)], **options)
    with pytest.raises(ConfigError, match="want an iterable of batches, got a int"):
        profile(5, demand=5.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no such folder"):
        profile(loader(), demand=5.0, data=tmp_path / "none")
    with pytest.raises(DataError, match="no class folder"):  # before anything is measured
        profile(loader(), demand=5.0, data=tmp_path)
    assert not quick(loader(root=tmp_path)).switches  # nobody has said that pictures are there
    specs = {
        "nothing": "want MODULE:FUNCTION",
        "no_such:f": "No module",
        "json:no": "has no no",
        "json:decoder": "no function",
        "time:time": "must return an iterable",
    }
    for spec, words in specs.items():
        with pytest.raises(ConfigError, match=words):
            profile_named(spec, None, demand=5.0)
