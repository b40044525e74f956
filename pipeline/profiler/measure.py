"""How fast a loader is, and what that costs: its batches are taken, by nobody or by cards that take their time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import NamedTuple

from ..loader import Loader
from ..sim import Cards
from .cpu_clock import CpuClock, Use

WINDOWS = 5  # a rate is the median of so many
_WARM_UP_S = 0.3  # behind the first ring of batches: processors and caches settle


class Arrival(NamedTuple):
    """A batch, when it was taken."""

    at_ns: int  # of time.perf_counter_ns
    wait_ns: int  # how long it was waited for
    ready: int  # batches behind it that were ready


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taking:
    """What was seen while batches were taken."""

    rates: tuple[float, ...]  # images/s, of each window
    images: int
    seconds: float
    stall: float  # of the time, whoever takes the batches had nothing to do
    use: Use  # of the cores, from the first window's begin to the last one's end
    arrivals: tuple[Arrival, ...]

    @property
    def images_per_s(self) -> float:
        """The median window's."""
        return statistics.median(self.rates)

    @property
    def low(self) -> float:
        return min(self.rates)

    @property
    def high(self) -> float:
        return max(self.rates)


def take(loader: Loader, seconds: float, *, demand: float | None = None, windows: int = WINDOWS) -> Taking:
    """Take batches, epoch after epoch: as fast as they come, or ``demand`` images/s at most.

    It begins to count when the decode processes have started and the ring has gone round, and then goes on for
    ``seconds``.
    """
    cards = Cards(demand or float("inf"), slots=0)
    clock = CpuClock()
    rates: list[float] = []
    arrivals: list[Arrival] = []
    start = clock.read()
    begin = window = 0.0
    taken = images = images_before = 0
    while len(rates) < windows:
        for batch in loader:
            arrival = Arrival(time.perf_counter_ns(), int(1e9 * batch.wait_s), batch.ready)
            cards.take(len(batch.labels))
            now = time.perf_counter()
            taken += 1
            if not begin:
                if taken == loader.config.slots + 1:
                    window = now
                if taken > loader.config.slots and now - window >= _WARM_UP_S:
                    begin = window = now
                    start = clock.read()
                    cards.forget()
                continue
            images += len(batch.labels)
            arrivals.append(arrival)
            if now - window >= seconds / windows:
                rates.append((images - images_before) / (now - window))
                images_before, window = images, now
                if len(rates) == windows:
                    break
    return Taking(
        rates=tuple(rates),
        images=images,
        seconds=window - begin,
        stall=cards.seen.stall,
        use=clock.read() - start,
        arrivals=tuple(arrivals),
    )
