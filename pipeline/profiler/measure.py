"""How fast a loader is, and what that costs: its batches are taken, by nobody or by cards that take their time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

from ..loader import Loader
from ..sim import Cards
from .cpu_clock import CpuClock, Use

WINDOWS = 5  # a rate is the median of so many
_WARM_UP_S = 0.5  # at least: processors and caches settle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taking:
    """What was seen while batches were taken."""

    rates: tuple[float, ...]  # images/s, of each window
    images: int
    seconds: float
    stall: float  # of the time, the cards had nothing to do; of nobody, 1
    uses: tuple[Use, ...]  # of each window
    occupancy: tuple[tuple[float, int], ...]  # (seconds, batches that were ready) at each batch
    waits_ms: tuple[float, ...]  # of each batch

    @property
    def images_per_s(self) -> float:
        return statistics.median(self.rates)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest window."""
        return min(self.rates), max(self.rates)


def take(loader: Loader, seconds: float, *, demand: float | None = None, tick: Callable[[], None] = lambda: None) -> Taking:
    """Take batches for about ``seconds``, epoch after epoch: as fast as they come, or ``demand`` images/s at most.

    Before that the decode processes have started and the ring has gone round. ``tick`` is called now and then.
    """
    slots = loader.config.slots
    cards = Cards(demand or float("inf"), slots=0)
    clock = CpuClock()
    rates: list[float] = []
    uses: list[Use] = []
    waits_ms: list[float] = []
    occupancy: list[tuple[float, int]] = []
    begin = window_begin = 0.0
    taken = images = window_images = 0
    before = clock.read()
    warm_from = time.perf_counter()
    while len(rates) < WINDOWS:
        for batch in loader:
            cards.take(len(batch.labels))
            taken += 1
            now = time.perf_counter()
            if taken <= slots:
                warm_from = now
                continue
            if not begin:
                if now - warm_from < _WARM_UP_S:
                    continue
                begin = window_begin = now
                before = clock.read()
                cards.forget()
                continue
            images += len(batch.labels)
            window_images += len(batch.labels)
            waits_ms.append(1e3 * batch.wait_s)
            occupancy.append((now - begin, batch.ready))
            if now - window_begin >= seconds / WINDOWS:
                rates.append(window_images / (now - window_begin))
                after = clock.read()
                uses.append(after - before)
                before, window_images, window_begin = after, 0, now
                tick()
                if len(rates) == WINDOWS:
                    break
    return Taking(...)
