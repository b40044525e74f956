"""What each decode process is at, noted in shared memory: it can still be read when the process no longer answers."""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from .ring import anonymous_file
from .watch import Watch

_RESTING = -1
_CELLS = 2  # of a worker, int64: the sample's number, or _RESTING; how many it has begun


class Beat(NamedTuple):
    """One look at one worker: two that are equal are the same moment of its work."""

    sample: int
    begun: int

    @property
    def resting(self) -> bool:
        """Whether it is between two tasks, or has not begun its first."""
        return self.sample == _RESTING


class Heartbeats:
    """The notes of all workers of a pool. Whoever made them, or mapped them, closes them."""

    def __init__(self, workers: int):
        self.fd = anonymous_file(8 * _CELLS * workers)
        self._cells = _map(self.fd)
        self.reset()

    def reset(self) -> None:
        """Say that all rest: before they are started."""
        for at in range(0, len(self._cells), _CELLS):
            self._cells[at], self._cells[at + 1] = _RESTING, 0

    def read(self) -> list[Beat]:
        """What each worker is at."""
        cells = self._cells.tolist()
        return [Beat(*cells[at : at + _CELLS]) for at in range(0, len(cells), _CELLS)]

    def close(self) -> None:
        """Let go. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._cells.release()


class Heartbeat(Watch):
    """One worker's own notes, 0.2 us a picture."""

    def __init__(self, fd: int, worker: int):
        """Map what the pool made as ``fd``."""
        self._cells = _map(fd)
        self._at = _CELLS * worker

    def begin(self, sample: int) -> None:
        """Note that a sample is read or decoded from now on."""
        self._cells[self._at] = sample
        self._cells[self._at + 1] += 1

    def rest(self) -> None:
        """Note that the task is done."""
        self._cells[self._at] = _RESTING


def _map(fd: int) -> memoryview[int]:
    return memoryview(mmap.mmap(fd, 0)).cast("B").cast("q")
