"""Loaders that are not ours, under the profiler: plain torch DataLoaders, slow where a test wants it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline import ConfigError
from pipeline.profiler import ForeignReport, profile
from pipeline.profiler.any_batch import copied, images_of
from pipeline.profiler.foreign import profile_named


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
    assert (report.verdict, report.cause) == ("compute", "step")
    assert report.sentence.startswith("NOT INPUT-BOUND")
    assert report.demand < 8 / 0.1
    assert report.stall_fraction < 0.03
    assert not report.switches


def test_a_loader_that_sleeps_waits_for_something() -> None:
    report = quick(loader(sleep_s=0.002), step_s=0.004)
    assert (report.verdict, report.cause) in (("io", "waiting"), ("cpu", "neighbour"))  # of other tests
    # 16 ms asleep in the main process, then 4 in the step: nothing overlaps.
    assert report.stall_fraction == pytest.approx(0.8, abs=0.1)
    assert str(report).startswith(report.sentence)
    assert report.as_json()["verdict"] == report.verdict


def test_the_main_process_at_work_is_named() -> None:
    report = quick(loader(work_s=0.002), step_s=0.001)
    assert report.verdict == "cpu"
    assert report.cause in ("main", "neighbour")  # other tests run beside this one
    assert report.cpu_us_per_image > 1500


def test_workers_at_work_are_seen() -> None:
    report = profile(loader(workers=1, work_s=0.004), demand=1e6, seconds=2.0)
    assert report.verdict == "cpu"
    assert report.stall_fraction > 0.8
    assert any(name.startswith("worker") and used > 0.3 for name, used in report.cores_by_process.items())


def test_a_switch_is_measured_on_the_loaders_own_pictures(folder: Path) -> None:
    report = quick(loader(sleep_s=0.001, root=folder))
    names = [switch.name for switch in report.switches]
    assert names == ["headrace, on the pictures as they are", "headrace, on crop-addressed shards"]
    assert all(switch.images_per_s > 0 and switch.cpu_us > 0 for switch in report.switches)


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
    assert float(copied(image)[0, 0, 0, 0]) == len(forms)
    with pytest.raises(ConfigError, match="holds no tensor: give count="):
        images_of("text")


def test_wrong_calls() -> None:
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
    for spec, words in (("nothing", "want MODULE:FUNCTION"), ("no_such:f", "No module"), ("json:no", "has no no")):
        with pytest.raises(ConfigError, match=words):
            profile_named(spec, None, demand=5.0)
