"""What this package's loader gives on the pictures of somebody else's: measured, before anybody switches."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..config import PipelineConfig
from ..errors import ConfigError, DataError
from ..host import available_cores
from ..loader import Loader
from ..prepare import Recode, prepare
from ..source import Source, open_source
from .foreign_report import Switch
from .measure import Taking, take
from .nearby import Nearby

_TURNS = 3
_TIMED = 64  # pictures whose conversion is timed
_AS_IT_IS = Recode(max_side=400, quality=90)  # of no use to --jpeg crop
_SHARDS = "headrace, on crop-addressed shards"


def root_of(loader: Any) -> Path | None:
    """The folder of a loader's pictures, as torchvision's and timm's data sets have it."""
    dataset: Any = getattr(loader, "dataset", None)
    while hasattr(dataset, "dataset"):  # torch's Subset
        dataset = dataset.dataset
    for holder in (dataset, getattr(dataset, "reader", None)):
        root = getattr(holder, "root", None)
        if isinstance(root, str | os.PathLike) and Path(root).is_dir():
            return Path(root)
    return None


class Found(NamedTuple):
    """A loader's pictures."""

    root: Path
    source: Source


def find_pictures(loader: Any, data: str | os.PathLike[str] | None) -> Found | str:
    """What ``data`` holds, or the root of the loader's data set; or why there is nothing.

    Raises ConfigError and DataError where ``data`` holds no pictures.
    """
    root = data if data is not None else root_of(loader)
    if root is None:
        return "say with data= in which folder the loader's pictures are"
    try:
        return Found(Path(root), open_source(PipelineConfig(data=root)))
    except (ConfigError, DataError) as error:
        if data is not None:
            raise
        return str(error)


def measure_switches(
    found: Found,
    theirs: Callable[[float], float],
    *,
    image_size: int,
    batch_size: int,
    workers: int,
    supply: float,
    demand: float,
    seconds: float,
) -> tuple[Switch, ...]:
    """Some of the pictures under this package's loader, as they are and as crop-addressed shards.

    They take turns with ``theirs``, the loader as it is: for so many seconds, in images/s. What counts is how many
    times as fast they are, times the ``supply``, so that a machine that is busy now and then favours none; but no more
    than these cores can do at the CPU time that a picture was seen to take.
    ``workers``: cores that decode. Raises DataError for pictures that cannot be read.
    """
    config = PipelineConfig(data=found.root, image_size=image_size, batch_size=batch_size, workers=workers)
    with contextlib.ExitStack() as stack:
        nearby = stack.enter_context(Nearby(found.source))
        copies = nearby.as_they_are()
        ways = {"headrace, on the pictures as they are": copies}
        making_s = {}
        if not found.source.crop_addressed:
            ways[_SHARDS] = nearby.made_anew("crop", available_cores())
            making_s[_SHARDS] = _making_s(copies) / available_cores()
        loaders = {name: stack.enter_context(Loader(config, source=source)) for name, source in ways.items()}
        turn_s = seconds / _TURNS / (1 + len(ways))
        turns = [
            (theirs(turn_s), [take(loader, turn_s, windows=1) for loader in loaders.values()]) for _ in range(_TURNS)
        ]
        switches = []
        for place, (name, loader) in enumerate(loaders.items()):
            takings = [ours[place] for _, ours in turns]
            cpu_us = _cpu_us(loader, takings)
            most = 1e6 * available_cores() / cpu_us  # beyond it the ratio tells of a bad turn of theirs
            rates = [
                min(most, supply * taking.images_per_s / rate) for taking, (rate, _) in zip(takings, turns, strict=True)
            ]
            rate = statistics.median(rates)
            switches.append(
                Switch(
                    name=name,
                    faster=rate / supply,
                    images_per_s=rate,
                    low=min(rates),
                    high=max(rates),
                    cpu_us=cpu_us,
                    cores=loader.workers,
                    training_images_per_s=min(demand, rate),
                    stall_fraction=max(0.0, 1 - rate / demand),
                    making_s_per_million=1e6 * making_s.get(name, 0.0),
                )
            )
    return tuple(switches)


def _cpu_us(loader: Loader, takings: list[Taking]) -> float:
    """Of a picture, over this loader's processes: those of the other ways are alive too."""
    pids = (os.getpid(), *loader.decode_pids)
    cpu_s = sum(taking.use.by_process[pid] for taking in takings for pid in pids)
    return 1e6 * cpu_s / sum(taking.images for taking in takings)


def _making_s(pictures: Source) -> float:
    """CPU seconds that make_shards.py spends on a picture, mean of some: its own, behind the first, which loads it."""
    spent = []
    for number in range(min(_TIMED, len(pictures))):
        data = pictures.read(number)
        begin = time.thread_time()
        with contextlib.suppress(DataError):  # it is left out
            prepare("crop", data, _AS_IT_IS)
        spent.append(time.thread_time() - begin)
    return statistics.mean(spent[1:] or spent)
