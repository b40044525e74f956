"""What this machine lets us use."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """Cores this process may use: its affinity mask, cut down by a cgroup CPU quota (containers). At least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota)) if quota else cores)


def _cgroup_quota() -> float | None:
    """The container's CPU quota in cores, from cgroup v2 or v1; None where there is no limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            v1 = Path("/sys/fs/cgroup/cpu")
            limit, period = (v1 / "cpu.cfs_quota_us").read_text(), (v1 / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(limit) / int(period)
    except ValueError:  # cgroup v2 says "max"
        return None
    return cores if cores > 0 else None


def has_bf16_instructions() -> bool:
    """Whether this processor multiplies bfloat16 itself (x86: AVX512-BF16 or AMX; ARM: bf16). True where unknown."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    lines = [line for line in cpuinfo.splitlines() if line.lower().startswith(("flags", "features"))]
    flags = set(lines[0].split()) if lines else set()
    return not flags or bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
