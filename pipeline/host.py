"""What this machine lets us use."""

from __future__ import annotations

import os
from pathlib import Path

from .cgroup import cpu_quota

_held: frozenset[int] | None = None


def hold_cores() -> None:
    """Take the cores of this moment for the process's own, whatever its threads are bound to afterwards.

    torch_npu binds the thread that opens a card to one core (CPU_AFFINITY_CONF), and what that thread starts inherits
    the one core: all decode processes would share it.
    """
    global _held
    _held = _held or frozenset(os.sched_getaffinity(0))


def cores() -> frozenset[int]:
    """The cores this process may use, by number."""
    return _held or frozenset(os.sched_getaffinity(0))


def available_cores() -> int:
    """How many: the affinity mask, cut down by a cgroup CPU quota (containers). At least 1."""
    count = len(cores())
    quota = cpu_quota()
    return max(1, min(count, int(quota)) if quota else count)


def has_bf16_instructions() -> bool:
    """Whether this processor multiplies bfloat16 itself (x86: AVX512-BF16 or AMX; ARM: bf16). True where unknown."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    lines = [line for line in cpuinfo.splitlines() if line.lower().startswith(("flags", "features"))]
    flags = set(lines[0].split()) if lines else set()
    return not flags or bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
