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

    images: int  # 0 where the ring held the whole epoch: then nothing was measured
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


class Cards:
    """Cards that take ``images_per_s`` together, or as much as the host delivers.

    Their clock goes on from one epoch to the next. The first batches, as many as the ring has slots, were decoded
    while nobody waited, and are not counted.
    """

    def __init__(self, loader: Loader, images_per_s: float):
        self._loader = loader
        self._images_per_s = images_per_s
        self._uncounted = loader.config.slots
        self._due = 0.0  # when they have worked off what they were given

    def train(self) -> Consumption:
        """Take one epoch."""
        images, wait_s = 0, 0.0
        start = self._due
        for batch in self._loader:
            now = time.perf_counter()
            waited = max(0.0, now - self._due)
            self._due = max(now, self._due) + len(batch.images) / self._images_per_s
            if self._uncounted:
                self._uncounted -= 1
                start = self._due
            else:
                wait_s += waited
                images += len(batch.images)
            time.sleep(max(0.0, self._due - time.perf_counter()))
        return Consumption(images=images, seconds=self._due - start, wait_s=wait_s)
