"""A real device under measurement: how fast it trains when it need not wait, and what it gets from this host."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, cast

import numpy as np
import torch

from ..config import PipelineConfig
from ..loader import Batch, Loader
from ..ring import Ring
from ..transfer import DeviceBatch, Feed
from .measure import WINDOWS

Step = Callable[[DeviceBatch], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Images/s of some windows, and how much of their time the host waited for batches."""

    rates: tuple[float, ...]
    wait: float

    @property
    def images_per_s(self) -> float:
        return statistics.median(self.rates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnDevice:
    """One device, its step, and this host."""

    name: str
    synthetic: Speed  # S0: the same batch, on the device already
    transferred: Speed  # S1: batches that the host has ready; in turns with S0
    transfer_mb_per_s: float  # of them, with no step behind
    as_is: Speed  # with the loader
    asynchronous: bool  # whether it works while the host waits

    @property
    def stall(self) -> float:
        """Of the time, the device had nothing to do. Where it works on while the host waits, that is what it lacks in
        speed; else what the host waited for batches, and took to copy them.
        """
        if self.asynchronous:
            return max(0.0, 1 - self.as_is.images_per_s / self.synthetic.images_per_s)
        copying_s = max(0.0, 1 / self.transferred.images_per_s - 1 / self.synthetic.images_per_s)  # of a picture
        # All windows count: the median one has no short batch, or nothing else.
        return min(1.0, self.as_is.wait + copying_s * statistics.mean(self.as_is.rates))


class Replayed:
    """Host batches that are always ready: the slots of a ring, with noise in them, handed out again and again."""

    def __init__(self, config: PipelineConfig):
        self.config = config
        self.ring = Ring(slots=config.slots, batch_size=config.batch_size, image_size=config.image_size)
        self.ring.memory[:] = (
            np.random.default_rng(0)
            .integers(0, 256, 1 << 16, np.uint8)
            .repeat(-(-len(self.ring.memory) >> 16))[: len(self.ring.memory)]
        )

    def __iter__(self) -> Iterator[Batch]:
        return self.held_batches()

    def held_batches(self) -> Iterator[Batch]:
        """Without end."""
        size = self.config.batch_size
        labels = torch.zeros(size, dtype=torch.int64)
        for number in itertools.count():
            slot = self.ring.slots[number % self.config.slots]
            yield Batch(
                images=torch.from_numpy(slot.images(self.config.image_size)),
                labels=labels,
                indices=labels,
                global_size=size,
                epoch=0,
                end=size,
                wait_s=0.0,
                ready=self.config.slots,
            )

    def release(self) -> None:
        """Slots are never filled: any may be handed out again."""


def measure_on_device(
    feed_of: Callable[[Loader], Feed], step: Step, config: PipelineConfig, seconds: float
) -> OnDevice:
    """``feed_of`` opens a loader's feed to the device, ``step`` trains one batch and need not wait for it."""
    replayed = cast(Loader, Replayed(config))  # all of it that a feed uses
    feed = feed_of(replayed)
    part = seconds / 4 / WINDOWS  # of one window
    try:
        device, name = feed.device, feed.device.name()
        batches = iter(feed)
        again = itertools.repeat(next(batches))
        turns = [
            [_window(source, step, device.synchronize, part) for source in (again, batches)] for _ in range(WINDOWS)
        ]
        copied = _window(batches, lambda _: None, device.synchronize, part)
        batches.close()  # type: ignore[attr-defined]  # it is a generator
    finally:
        feed.close()
    synthetic, transferred = (_speed(windows) for windows in zip(*turns, strict=True))
    with Loader(config) as loader:
        feed = feed_of(loader)
        try:
            batches = _for_ever(feed)
            for _ in range(config.slots):
                step(next(batches))
            as_is = _speed([_window(batches, step, device.synchronize, part) for _ in range(WINDOWS)])
        finally:
            feed.close()
    return OnDevice(
        name=name,
        synthetic=synthetic,
        transferred=transferred,
        transfer_mb_per_s=copied.images_per_s * config.image_size**2 * 3 / 1e6,
        as_is=as_is,
        asynchronous=device.asynchronous,
    )


def _for_ever(feed: Feed) -> Iterator[DeviceBatch]:
    while True:
        yield from feed


class _Window(NamedTuple):
    images_per_s: float
    wait: float  # of the time


def _speed(windows: Iterable[_Window]) -> Speed:
    rates, waits = zip(*windows, strict=True)
    return Speed(rates=rates, wait=statistics.mean(waits))


def _window(batches: Iterator[DeviceBatch], step: Step, synchronize: Callable[[], None], seconds: float) -> _Window:
    """Some steps, two at least, behind one that only warms up."""
    step(next(batches))
    synchronize()
    begin = time.perf_counter()
    images, wait_s, steps = 0, 0.0, 0
    while steps < 2 or time.perf_counter() - begin < seconds:
        batch = next(batches)
        step(batch)
        images += len(batch.labels)
        wait_s += batch.wait_s
        steps += 1
    synchronize()
    elapsed_s = time.perf_counter() - begin
    return _Window(images / elapsed_s, wait_s / elapsed_s)
