"""placeholder until the branch is merged"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from ..host import cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """What was used between two readings."""

    seconds: float
    by_process: dict[int, float]
    busy_s: float

    @property
    def ours_cores(self) -> float:
        return sum(self.by_process.values()) / self.seconds

    @property
    def others_cores(self) -> float:
        return max(0.0, self.busy_s / self.seconds - self.ours_cores)


class CpuClock:
    def read(self) -> Reading:
        me = os.getpid()
        pids = {me}
        for task in Path(f"/proc/{me}/task").iterdir():
            pids |= {int(pid) for pid in (task / "children").read_text().split()}
        by = {}
        for pid in pids:
            try:
                by[pid] = (
                    sum(
                        int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
                    )
                    / 1e9
                )
            except OSError:
                pass
        busy = 0.0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores():
                values = [int(v) for v in fields]
                busy += (sum(values[:3]) + sum(values[5:8])) / os.sysconf("SC_CLK_TCK")
        return Reading(wall_s=time.perf_counter(), by_process=by, busy_s=busy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    wall_s: float
    by_process: dict[int, float]
    busy_s: float

    def __sub__(self, before: Reading) -> Use:
        return Use(
            seconds=self.wall_s - before.wall_s,
            by_process={pid: cpu - before.by_process.get(pid, 0.0) for pid, cpu in self.by_process.items()},
            busy_s=self.busy_s - before.busy_s,
        )
