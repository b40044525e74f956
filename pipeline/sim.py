"""The simulated device: it takes pictures at a set rate, as so many cards would, and does nothing with them.

With it the host side of an eight-card server can be tried on any machine: ``train.py --device sim:474.6x8``.
"""

from __future__ import annotations

import dataclasses
import time

from .loader import Loader


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consumption:
    """An epoch as the simulated cards saw it."""

    images: int
    seconds: float
    wait_s: float  # of it, the cards waited for the host

    @property
    def images_per_s(self) -> float:
        """What the cards trained."""
        return self.images / self.seconds

    @property
    def stall(self) -> float:
        """The share of the time in which the cards had nothing to do: [0, 1]."""
        return self.wait_s / self.seconds


def consume(loader: Loader, images_per_s: float) -> Consumption:
    """Take one epoch at the rate of the cards, or as fast as the host delivers. The first batch starts the clock."""
    images = 0
    wait_s = 0.0
    start = due = 0.0  # due: when the cards have worked off what they were given
    for number, batch in enumerate(loader):
        now = time.perf_counter()
        if number == 0:
            start = due = now
        wait_s += max(0.0, now - due)
        due = max(now, due) + len(batch.images) / images_per_s
        images += len(batch.images)
        time.sleep(max(0.0, due - time.perf_counter()))
    return Consumption(images=images, seconds=max(due - start, 1e-9), wait_s=wait_s)
