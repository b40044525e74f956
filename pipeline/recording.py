"""What decode processes did, stage by stage: noted in shared memory while a profiler looks on.

A worker notes an event per stage of a picture: 40 bytes, about 2 us. While nobody records it notes nothing.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

import numpy as np
import numpy.typing as npt

from .ring import anonymous_file
from .watch import ALL, READ, STAGES, UNWATCHED, Watch

__all__ = ["ALL", "EVENT", "STAGES", "Recorder", "Recordings"]

EVENT = np.dtype(
    [
        ("sample", "<i8"),  # its number, or ALL
        ("begin_ns", "<i8"),  # of time.perf_counter_ns, which is one clock for all processes of a machine
        ("end_ns", "<i8"),
        ("cpu_ns", "<i8"),  # user and system time of the worker, all its threads, in between
        ("stage", "<i8"),
    ]
)
_EVENT = struct.Struct("<qqqqq")
_CAPACITY = 1 << 20  # events of a worker; memory is taken as they come
_BYTES = 64 + _CAPACITY * _EVENT.size  # of a worker: two cells, then the events
_COUNT, _ON = 0, 1  # cells, int64: events noted, with those for which there was no room; whether to note any


class Recordings:
    """The notes of all workers of a pool; of none, where nothing is to be recorded. Whoever made them closes them."""

    def __init__(self, workers: int):
        self.workers = workers
        self.fd = anonymous_file(workers * _BYTES)
        self._memory = mmap.mmap(self.fd, workers * _BYTES) if workers else None

    def _cells(self, worker: int) -> memoryview[int]:
        assert self._memory is not None
        return memoryview(self._memory)[worker * _BYTES : worker * _BYTES + 16].cast("q")

    def record(self, on: bool) -> None:
        """Begin anew, or stop. What a worker is at in this moment may come or go."""
        for worker in range(self.workers):
            with self._cells(worker) as cells:
                if on:
                    cells[_COUNT] = 0
                cells[_ON] = on

    def read(self, worker: int) -> npt.NDArray[np.void]:
        """A worker's events so far, as EVENT, in order; a copy."""
        assert self._memory is not None
        with self._cells(worker) as cells:
            count = min(cells[_COUNT], _CAPACITY)
        begin = worker * _BYTES + 64
        return np.frombuffer(self._memory[begin : begin + count * _EVENT.size], EVENT)

    def lost(self) -> int:
        """Events for which there was no room."""
        total = 0
        for worker in range(self.workers):
            with self._cells(worker) as cells:
                total += max(0, cells[_COUNT] - _CAPACITY)
        return total

    def close(self) -> None:
        """Let go. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._memory = None


class Recorder(Watch):
    """One worker's own notes, beside those of another watch."""

    def __init__(self, other: Watch, fd: int, worker: int):
        """Map what the pool made as ``fd``."""
        self._other = other
        memory = memoryview(mmap.mmap(fd, 0))[worker * _BYTES : (worker + 1) * _BYTES]
        self._cells, self._events = memory[:16].cast("q"), memory[64:]
        self._since = (0, 0)  # wall and CPU time of the last lap
        self._was_on = False

    def begin(self, sample: int) -> None:
        self._other.begin(sample)

    def rest(self) -> None:
        self._other.rest()

    def lap(self, stage: int, sample: int = ALL) -> None:
        if not self._cells[_ON]:
            self._was_on = False
            return
        wall_ns, cpu_ns = now = time.perf_counter_ns(), time.process_time_ns()  # with DALI's threads
        begin_ns, cpu_before_ns = self._since
        self._since = now
        if not self._was_on:  # nobody knows when this stage began
            self._was_on = True
            return
        count = self._cells[_COUNT]
        if count < _CAPACITY:
            _EVENT.pack_into(
                self._events, count * _EVENT.size, sample, begin_ns, wall_ns, cpu_ns - cpu_before_ns, stage
            )
        self._cells[_COUNT] = count + 1


def lap_us(laps: int = 20_000) -> float:
    """What noting one event costs here: CPU microseconds."""
    recordings = Recordings(1)
    try:
        recorder = Recorder(UNWATCHED, recordings.fd, 0)
        recordings.record(True)
        start = time.process_time()
        for _ in range(laps):
            recorder.lap(READ, 0)
        return (time.process_time() - start) / laps * 1e6
    finally:
        recordings.close()
