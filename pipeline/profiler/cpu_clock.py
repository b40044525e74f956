"""Who used the cores: this process and all that it has started, and everybody else."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from ..host import cores

_TICKS = os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6)  # of a line of /proc/stat: user, nice, system, interrupts; guests are within user time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A moment."""

    wall_s: float
    by_process: dict[int, float]  # CPU seconds since its start, user and system, of all its threads, ended ones too
    ended_s: float  # of processes that one of these has started and seen end
    queued: dict[int, float]  # for how long each one's threads were ready to run and had no core
    busy_s: float  # of the cores that this process may use, since the machine was started
    stolen_s: float  # and what the hypervisor gave to other machines instead

    @property
    def ours_s(self) -> float:
        """CPU seconds of this process and of all that it has started, alive or not."""
        return sum(self.by_process.values()) + self.ended_s

    def __sub__(self, before: Reading) -> Use:
        return Use(
            seconds=self.wall_s - before.wall_s,
            by_process=_less(self.by_process, before.by_process),
            # What has ended meanwhile has gone from the one sum to the other, with all that it had used before.
            ours_s=self.ours_s - before.ours_s,
            queued=_less(self.queued, before.queued),
            busy_s=self.busy_s - before.busy_s,
            stolen_s=self.stolen_s - before.stolen_s,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """What was used between two readings."""

    seconds: float
    by_process: dict[int, float]  # CPU seconds of this process and of each that it has started and that is alive
    ours_s: float  # of all of them, and of those that have ended
    queued: dict[int, float]  # for how long the living were ready to run and had no core; infinite: not known
    busy_s: float
    stolen_s: float

    def __add__(self, other: Use) -> Use:
        """Of two stretches of time."""
        return Use(
            seconds=self.seconds + other.seconds,
            by_process=_plus(self.by_process, other.by_process),
            ours_s=self.ours_s + other.ours_s,
            queued=_plus(self.queued, other.queued),
            busy_s=self.busy_s + other.busy_s,
            stolen_s=self.stolen_s + other.stolen_s,
        )

    @property
    def queued_s(self) -> float:
        """For how long all of the living together were ready to run and had no core."""
        return sum(self.queued.values())

    @property
    def ours_cores(self) -> float:
        """How many cores we kept busy, mean."""
        return self.ours_s / self.seconds

    @property
    def others_cores(self) -> float:
        """How many of our cores others did: other programs, and on a shared server other machines."""
        return max(0.0, (self.busy_s + self.stolen_s) / self.seconds - self.ours_cores)

    @property
    def taken_cores(self) -> float:
        """How many cores others had while our threads waited for one: what we lack because of them."""
        return max(0.0, min(self.others_cores, self.queued_s / self.seconds))


class CpuClock:
    """Reads /proc. In a container that shows the whole machine, which is right: its neighbours take our cores too."""

    def read(self) -> Reading:
        """Costs some 50 us a process."""
        busy_s, stolen_s = _cores_s(cores())
        by_process, queued, ended_s = {}, {}, 0.0
        for pid in family(os.getpid()):
            with contextlib.suppress(OSError):  # it has just ended
                seconds, waited_s = cpu_s(pid)
                ended_s += _ended_s(pid)
                by_process[pid], queued[pid] = seconds, waited_s
        return Reading(
            wall_s=time.perf_counter(),
            by_process=by_process,
            queued=queued,
            ended_s=ended_s,
            busy_s=busy_s,
            stolen_s=stolen_s,
        )


def family(pid: int) -> Iterator[int]:
    """A process and all below it that are alive."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def cpu_s(pid: int) -> tuple[float, float]:
    """Of a process, all its threads: CPU seconds, and seconds of waiting for a core. Raises OSError.

    The first to the nanosecond, as clock_getcpuclockid(3) does it: schedstat would forget threads that have ended,
    such as a DataLoader's that pins an epoch's batches. The second is not known everywhere: then it is infinite.
    """
    seconds = time.clock_gettime((~pid << 3) | 2)
    try:
        tasks = [(task / "schedstat").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
        return seconds, sum(int(fields[1]) for fields in tasks) / 1e9
    except (FileNotFoundError, IndexError, ValueError):
        return seconds, math.inf


def _ended_s(pid: int) -> float:
    """CPU seconds of the processes that a process has started and seen end, and of theirs."""
    if pid == os.getpid():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS  # cutime and cstime


def _less(after: dict[int, float], before: dict[int, float]) -> dict[int, float]:
    """What was added to each clock; one that has begun meanwhile began with 0, and so does one whose threads ended."""
    return {
        pid: math.inf if math.isinf(value) else max(0.0, value - before.get(pid, 0.0)) for pid, value in after.items()
    }


def _plus(some: dict[int, float], more: dict[int, float]) -> dict[int, float]:
    return {pid: some.get(pid, 0.0) + more.get(pid, 0.0) for pid in some | more}


def _cores_s(ours: frozenset[int]) -> tuple[float, float]:
    """Seconds that some cores were busy, and that the hypervisor took them, since the machine was started."""
    busy = stolen = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in ours:
            ticks = [int(field) for field in fields]
            busy += sum(ticks[place] for place in _BUSY)
            stolen += ticks[7]
    return busy / _TICKS, stolen / _TICKS
