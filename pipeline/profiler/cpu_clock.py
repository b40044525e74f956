"""Who used the cores: this process and all that it has started, and everybody else."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
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
    by_process: dict[int, float]  # CPU seconds since its start, user and system, of all its threads
    ended_s: float  # of the processes that this one started and has seen end
    queued_s: float  # for how long our threads were ready to run and had no core
    busy_s: float  # of the cores that this process may use, since the machine was started
    stolen_s: float  # and what the hypervisor gave to other machines instead

    @property
    def ours_s(self) -> float:
        """CPU seconds of this process and of all that it has started, alive or not."""
        return sum(self.by_process.values()) + self.ended_s

    def __sub__(self, before: Reading) -> Use:
        cpu_s = {pid: cpu_s - before.by_process.get(pid, 0.0) for pid, cpu_s in self.by_process.items()}
        return Use(
            seconds=self.wall_s - before.wall_s,
            by_process=cpu_s,
            # What has ended meanwhile has gone from the one sum to the other, with all that it had used before.
            ours_s=self.ours_s - before.ours_s,
            queued_s=math.inf if math.isinf(self.queued_s) else self.queued_s - before.queued_s,
            busy_s=self.busy_s - before.busy_s,
            stolen_s=self.stolen_s - before.stolen_s,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """What was used between two readings."""

    seconds: float
    by_process: dict[int, float]  # CPU seconds of this process and of each that it has started and that is alive
    ours_s: float  # of all of them, and of those that have ended
    queued_s: float  # for how long the living were ready to run and had no core
    busy_s: float
    stolen_s: float

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
        by_process, queued_s = {}, 0.0
        for pid in family(os.getpid()):
            with contextlib.suppress(OSError):  # it has just ended
                by_process[pid], waited_s = cpu_s(pid)
                queued_s += waited_s
        times = os.times()
        return Reading(
            wall_s=time.perf_counter(),
            by_process=by_process,
            queued_s=queued_s,
            ended_s=times.children_user + times.children_system,
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

    To the nanosecond where the kernel keeps count of it; else to the tick, and the waiting is not known: infinite.
    """
    try:
        tasks = [(task / "schedstat").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int(fields[0]) for fields in tasks) / 1e9, sum(int(fields[1]) for fields in tasks) / 1e9
    except (FileNotFoundError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS, math.inf  # utime and stime


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
