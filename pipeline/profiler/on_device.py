"""A real device under measurement: how fast it trains when it need not wait, and what it gets from this host."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import numpy as np
import torch

from ..config import PipelineConfig
from ..loader import Batch, Loader
from ..ring import Ring
from ..transfer import DeviceBatch, Feed
from .measure import WINDOWS

Step = Callable[[DeviceBatch], object]
_WARM_UP_STEPS = 3  # kernels are chosen, memory is allocated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Images/s of some windows."""

    rates: tuple[float, ...]
    stall: float = 0.0  # of the time, the host waited for batches

    @property
    def images_per_s(self) -> float:
        return statistics.median(self.rates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnDevice:
    """One device, its step, and this host."""

    name: str
    synthetic: Speed  # S0: the same batch, on the device already
    transferred: Speed  # S1: batches that the host has ready
    transfer_mb_per_s: float  # of them, with no step behind
    as_is: Speed  # with the loader
    asynchronous: bool  # whether it works while the host waits

    @property
    def stall(self) -> float:
        """Of the time, the device had nothing to do: where it works on while the host waits, what it lacks in speed."""
        if self.asynchronous:
            return max(0.0, 1 - self.as_is.images_per_s / self.synthetic.images_per_s)
        return self.as_is.stall


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
                images=torch.from_numpy(slot.images),
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
    try:
        device, part = feed.device, seconds / 4
        batches = iter(feed)
        first = next(batches)
        synthetic = _speed(itertools.repeat(first), step, device.synchronize, part)
        transferred = _speed(batches, step, device.synchronize, part)
        copied = _speed(batches, lambda _: None, device.synchronize, part / 4)
        batches.close()  # type: ignore[attr-defined]  # it is a generator
        name = device.name()
    finally:
        feed.close()
    with Loader(config) as loader:
        feed = feed_of(loader)
        try:
            as_is = _speed(_for_ever(feed), step, device.synchronize, part, skip=config.slots)
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


def _speed(
    batches: Iterable[DeviceBatch], step: Step, synchronize: Callable[[], None], seconds: float, skip: int = 0
) -> Speed:
    """The rates of some windows, each of two steps at least, behind those that only warm up."""
    rates: list[float] = []
    images, wait_s, waited, begin, window = 0, 0.0, 0.0, 0.0, 0.0
    steps = 0
    for number, batch in enumerate(batches):
        step(batch)
        if number < _WARM_UP_STEPS + skip:
            if number == _WARM_UP_STEPS + skip - 1:
                synchronize()
                begin = window = time.perf_counter()
            continue
        images += len(batch.labels)
        wait_s += batch.wait_s
        steps += 1
        if steps >= 2 and time.perf_counter() - window >= seconds / WINDOWS:
            synchronize()
            now = time.perf_counter()
            rates.append(images / (now - window))
            waited += wait_s
            images, wait_s, steps, window = 0, 0.0, 0, now
            if len(rates) == WINDOWS:
                break
    return Speed(rates=tuple(rates), stall=waited / (window - begin))
