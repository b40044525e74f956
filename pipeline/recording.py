"""What decode processes did, stage by stage: noted in shared memory while a profiler looks on (config.record).

A worker notes an event per stage of a picture, 40 bytes, about 1.5 us each. Where nobody records it notes nothing.
"""

from __future__ import annotations

import mmap
import struct
import time

import numpy as np
import numpy.typing as npt

from .ring import anonymous_file

# The stages of a worker's time.
WAIT, HAND_OVER, READ, SPLICE, DECODE, RESIZE = range(6)
STAGES = ("wait", "hand-over", "read", "splice", "decode", "resize")
ALL = -1  # as sample: the stage was for all pictures of a task

EVENT = np.dtype(
    [
        ("sample", "<i8"),  # its number, or ALL
        ("begin_ns", "<i8"),  # of time.perf_counter_ns, which is one clock for all processes of a machine
        ("end_ns", "<i8"),
        ("cpu_ns", "<i8"),  # user and system time of the worker in between
        ("stage", "<i8"),
    ]
)
_EVENT = struct.Struct("<qqqqq")
_HEAD = 64  # bytes: how many events were noted, among them those for which there was no room
_CAPACITY = 1 << 20  # events of a worker; memory is taken as they come


class Recordings:
    """The notes of all workers of a pool. Whoever made them closes them."""

    def __init__(self, workers: int):
        self._size = _HEAD + _CAPACITY * _EVENT.size
        self.fd = anonymous_file(workers * self._size)
        self._memory = mmap.mmap(self.fd, workers * self._size)
        self.workers = workers

    def read(self, worker: int) -> npt.NDArray[np.void]:
        """A worker's events so far, as EVENT, in order; a copy."""
        start = worker * self._size
        count = min(int.from_bytes(self._memory[start : start + 8], "little"), _CAPACITY)
        begin = start + _HEAD
        return np.frombuffer(self._memory[begin : begin + count * _EVENT.size], EVENT)

    def lost(self, worker: int) -> int:
        """Events for which there was no room."""
        start = worker * self._size
        return max(0, int.from_bytes(self._memory[start : start + 8], "little") - _CAPACITY)

    def clear(self) -> None:
        """Forget all. To be called while workers rest: what one notes meanwhile may stay or go."""
        for worker in range(self.workers):
            start = worker * self._size
            self._memory[start : start + 8] = bytes(8)
