"""The simulated device: it takes pictures at a set rate, as so many cards would, and does nothing with them.

With it the host side of an eight-card server can be tried on any machine: ``train.py --device sim:474.6x8``.
"""

from __future__ import annotations

import dataclasses
import time


@dataclasses.dataclass
class Consumption:
    """What the simulated cards have seen, once batches were decoded while somebody waited for them."""

    images: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0  # of it, the cards had nothing to do

    @property
    def images_per_s(self) -> float:
        """What the cards trained."""
        return self.images / self.seconds

    @property
    def stall(self) -> float:
        """The share of the time in which the cards had nothing to do: [0, 1]."""
        return self.wait_s / self.seconds


class Cards:
    """Cards that train ``images_per_s`` together, or as much as the host delivers.

    As with real ones, the next batch is taken while one is trained. The first batches, as many as the ring has slots,
    were decoded while nobody waited, and are not counted.
    """

    def __init__(self, images_per_s: float, *, slots: int):
        self._images_per_s = images_per_s
        self._uncounted = slots + 1
        self._done_at = 0.0  # when they have worked off what they were given
        self.seen = Consumption()

    def take(self, images: int) -> float:
        """Begin to train a batch that has just arrived, when the one before it is done; returns then.

        The result is how long they had nothing to do before it, in seconds.
        """
        now = time.perf_counter()
        begin = max(now, self._done_at)
        idle_s = begin - self._done_at if self._done_at else 0.0
        before, self._done_at = self._done_at, begin + images / self._images_per_s
        if self._uncounted:
            self._uncounted -= 1
        else:
            self.seen.images += images
            self.seen.seconds += self._done_at - before
            self.seen.wait_s += idle_s
        time.sleep(max(0.0, begin - time.perf_counter()))
        return idle_s

    def forget(self) -> None:
        """Count anew."""
        self.seen = Consumption()
