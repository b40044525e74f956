"""Any loader and any step: how long the device waits, for whom, and what it could take.

    from pipeline.profiler import profile          # headrace.pipeline.profiler when installed
    print(profile(DataLoader(...), step))

Four loops are timed: the step with batches that were kept (what the device takes), the loader alone (what the host
gives), both together (what training gets), and, where the pictures can be found, this package's own loader on some of
them (what a switch would give).
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import PipelineConfig
from ..errors import ConfigError, DataError
from ..host import available_cores
from ..loader import Loader
from ..source import open_source
from .any_batch import copied, images_of, tensors
from .cpu_clock import CpuClock, Use
from .foreign_report import ForeignReport, Switch
from .measure import take
from .nearby import Nearby
from .verdict import NOTHING

_KEPT = 4  # batches that are replayed
_WINDOWS = 5
_BUSY = 0.85  # of a core, or of all: then it is what limits
Step = Callable[[Any], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """One loop, timed: images/s of its windows, and who used the cores meanwhile."""

    rates: tuple[float, ...]
    wait: float  # of the time, the loop waited for the next batch
    use: Use

    @property
    def images_per_s(self) -> float:
        return statistics.median(self.rates)


def profile(
    loader: Iterable[Any],
    step: Step | None = None,
    *,
    seconds: float = 20.0,
    demand: float | None = None,
    count: Callable[[Any], int] | None = None,
    synchronize: Callable[[], None] | None = None,
    data: str | os.PathLike[str] | None = None,
) -> ForeignReport:
    """Profile an iterable of batches, of which each pass is an epoch, under a step that trains one.

    ``step(batch)`` copies the batch to the device and trains it; where it returns before the device is done,
    ``synchronize()`` waits for it (default: of torch's accelerator, where there is one). Without a step, ``demand``
    images/s are taken. ``count(batch)`` says how many pictures a batch has (default: the length of its first tensor).
    ``data`` is an ImageNet folder, or shards, with the loader's pictures, to measure what a switch would give
    (default: ``loader.dataset.root`` where there is one).

    Raises ConfigError for a loader without batches and a call that makes no sense; what ``step`` raises passes.
    """
    if (step is None) == (demand is None):
        raise ConfigError("give a step, or a demand in images/s, one of the two")
    bench = _Bench(loader, count or images_of, synchronize or _synchronize, seconds / 4)
    first_batch_s, kept = bench.keep()
    wanted = bench.run(itertools.cycle(kept), step).images_per_s if step else float(demand or 0)
    alone = bench.run(bench.epochs(), lambda _: None)
    together = bench.run(bench.epochs(), step or _Cards(wanted, bench.count))
    found = Path(data) if data is not None else _root_of(loader)
    switches = _switches(found, kept, seconds / 8) if found else ()
    return _report(wanted, alone, together, first_batch_s, switches, bench, found)


def profile_named(
    loader: str,
    step: str | None,
    *,
    seconds: float = 20.0,
    demand: float | None = None,
    data: str | None = None,
) -> ForeignReport:
    """As :func:`profile`, of what functions hand out: ``module:function`` without arguments, of the current folder.

    Raises ConfigError where they are not there.
    """
    return profile(
        _named(loader)(),
        _named(step)() if step else None,
        seconds=seconds,
        demand=None if step else demand,
        data=data,
    )


def _named(spec: str) -> Callable[[], Any]:
    module, _, name = spec.partition(":")
    if not module or not name:
        raise ConfigError(f"want MODULE:FUNCTION, such as mytrain:make_loader, got {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(f"{spec}: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"{spec}: module {module} has no {name}") from error
    if not callable(found):
        raise ConfigError(f"{spec} is no function")
    function: Callable[[], Any] = found
    return function


def _synchronize() -> None:
    accelerator = getattr(torch, "accelerator", None)
    if accelerator and accelerator.is_available():
        accelerator.synchronize()


class _Cards:
    """A step that takes as long as a device of so many images/s would."""

    def __init__(self, images_per_s: float, count: Callable[[Any], int]):
        self._images_per_s, self._count = images_per_s, count

    def __call__(self, batch: Any) -> None:
        time.sleep(self._count(batch) / self._images_per_s)


class _Bench:
    """A loader, and how its batches are counted."""

    def __init__(
        self, loader: Iterable[Any], count: Callable[[Any], int], synchronize: Callable[[], None], seconds: float
    ):
        self.loader, self.count, self.synchronize, self.seconds = loader, count, synchronize, seconds
        self.counted = 0

    def keep(self) -> tuple[float, list[Any]]:
        """Seconds until the first batch, and the first few."""
        start = time.perf_counter()
        first_s, kept = 0.0, []
        for batch in self.loader:
            first_s = first_s or time.perf_counter() - start
            kept.append(copied(batch))
            if len(kept) == _KEPT:
                break
        if not kept:
            raise ConfigError("the loader has no batch")
        return first_s, kept

    def epochs(self) -> Iterator[Any]:
        """Batches without end."""
        while True:
            empty = True
            for batch in self.loader:
                empty = False
                yield batch
            if empty:
                raise ConfigError("the loader can be iterated only once: wrap it so that each iter() is a new epoch")

    def run(self, batches: Iterable[Any], step: Step) -> Loop:
        """Time some windows, behind a first part that only warms up."""
        clock, iterator = CpuClock(), iter(batches)
        rates: list[float] = []
        wait_s = 0.0
        images = steps = 0
        start = None
        window = time.perf_counter()
        begin = window
        while len(rates) < _WINDOWS:
            asked = time.perf_counter()
            batch = next(iterator)
            wait_s += time.perf_counter() - asked
            images += self.count(batch)
            steps += 1
            step(batch)
            part = self.seconds / _WINDOWS
            if steps < 2 or time.perf_counter() - window < part:
                continue
            self.synchronize()
            now = time.perf_counter()
            if start is None:  # that was the warm-up
                start, begin, wait_s = clock.read(), now, 0.0
            else:
                rates.append(images / (now - window))
                self.counted += images
            images, steps, window = 0, 0, now
        assert start is not None
        return Loop(rates=tuple(rates), wait=wait_s / (window - begin), use=clock.read() - start)


def _root_of(loader: Any) -> Path | None:
    """The folder of a loader's pictures, as torchvision's data sets have it."""
    root = getattr(getattr(loader, "dataset", None), "root", None)
    return Path(root) if isinstance(root, str | os.PathLike) and Path(root).is_dir() else None


def _switches(root: Path, kept: Sequence[Any], seconds: float) -> tuple[Switch, ...]:
    """This package's loader on some of the pictures, as they are and as crop-addressed shards."""
    size = next((min(tensor.shape[-2:]) for tensor in tensors(kept[0]) if tensor.ndim == 4), 299)
    config = PipelineConfig(data=root, image_size=int(size), workers=available_cores())
    try:
        source = open_source(config)
    except (ConfigError, DataError):
        return ()
    with Nearby(source) as nearby:
        ways = {"headrace, on the pictures as they are": nearby.as_they_are()}
        if not source.crop_addressed:
            ways["headrace, on crop-addressed shards"] = nearby.made_anew("crop", available_cores())
        source.close()
        found = []
        for name, copies in ways.items():
            with Loader(config, source=copies) as loader:
                taken = take(loader, seconds)
            cpu_s = sum(taken.use.by_process.values())
            found.append(
                Switch(
                    name=name,
                    images_per_s=taken.images_per_s,
                    cpu_us=cpu_s / taken.use.seconds / taken.images_per_s * 1e6,
                )
            )
    return tuple(found)


def _report(
    demand: float,
    alone: Loop,
    together: Loop,
    first_batch_s: float,
    switches: tuple[Switch, ...],
    bench: _Bench,
    found: Path | None,
) -> ForeignReport:
    supply, use, cores = alone.images_per_s, alone.use, available_cores()
    processes = {pid: cpu_s / use.seconds for pid, cpu_s in use.by_process.items()}
    main = processes.pop(os.getpid())
    workers = {pid: used for pid, used in processes.items() if used > 0.01}
    verdict, cause, why = _cause(together.wait, main, workers, use, cores)
    asked = f"the step takes {demand:,.0f} images/s, the loader gives {supply:,.0f} ({_spread(alone)})"
    if verdict == "compute":
        sentence = f"NOT INPUT-BOUND: {asked}: the step waits {100 * together.wait:.0f} % of the time."
    else:
        sentence = f"INPUT-BOUND ({why}): {asked}: the step waits {100 * together.wait:.0f} % of the time."
        best = max(switches, key=lambda switch: switch.images_per_s, default=None)
        if best and best.images_per_s > supply:
            gain = best.images_per_s / supply
            sentence += f" {best.name}: {best.images_per_s:,.0f} images/s, {gain:.1f} times as many."
    named = {"the main process": main} | {f"worker {pid}": used for pid, used in workers.items()}
    return ForeignReport(
        sentence=sentence,
        verdict=verdict,
        cause=cause,
        demand=demand,
        supply=supply,
        together=together.images_per_s,
        stall_fraction=together.wait,
        head_room=demand / supply,
        first_batch_s=first_batch_s,
        cpu_us_per_image=1e6 * use.ours_cores / supply,
        cores_by_process=named,
        others_cores=use.others_cores,
        switches=switches,
        conditions=(
            ("cores", f"{cores}"),
            ("pictures", f"{bench.counted:,} counted; medians of {_WINDOWS} windows behind a warm-up"),
            ("first batch", f"after {first_batch_s:.2f} s"),
            (
                "switch",
                f"measured on some pictures of {found}, read from memory" if switches else "not measured: data=",
            ),
            ("versions", f"torch {torch.__version__}"),
        ),
    )


def _cause(wait: float, main: float, workers: dict[int, float], use: Use, cores: int) -> tuple[str, str, str]:
    """Verdict, cause, and its name in the sentence."""
    if wait < NOTHING:
        return "compute", "step", ""
    ours = use.ours_cores
    if ours + use.others_cores > _BUSY * cores:
        if use.taken_cores > 0.2 * ours:
            return "cpu", "neighbour", f"other programs use {use.others_cores:.1f} of {cores} cores"
        if ours > _BUSY * cores / 2:
            return "cpu", "decode", f"CPU: all {cores} cores are busy"
    if main > _BUSY:
        return "cpu", "main", "CPU: the main process is busy, and only one core can work for it"
    if workers and statistics.median(workers.values()) > _BUSY:
        return "cpu", "workers", f"too few workers: {len(workers)} are busy, and there are {cores} cores"
    return "io", "waiting", "waiting: neither the workers nor the main process are busy: disk, network, or a lock"


def _spread(loop: Loop) -> str:
    return f"{min(loop.rates):,.0f} to {max(loop.rates):,.0f}"
