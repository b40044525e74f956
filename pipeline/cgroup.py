"""The limits of the control groups (cgroups) that this process is in: its own group's, and those of all groups above.

A container sees its group as the top of the tree, or the host's whole tree with its own path in it, and a job of a
cluster is in a group within a group. So every group from our own to the top is asked, and the smallest limit counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60  # version 1 says so with the largest number of pages


def cpu_quota(root: Path = Path("/")) -> float | None:
    """In cores, which may be a part of one; None where there is no limit. ``root`` is where /proc and /sys are."""
    quotas = []
    for group in _groups(root, "cpu"):
        period = _read(group / "cpu.cfs_period_us")
        words = _read(group / "cpu.max").split() or [_read(group / "cpu.cfs_quota_us"), period]
        if len(words) == 2 and all(word.isdigit() and int(word) for word in words):  # else "max", "-1" or nothing
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """In bytes; None where there is no limit. ``root`` is where /proc and /sys are."""
    limits = []
    for group in _groups(root, "memory"):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        if limit.isdigit() and int(limit) < _NO_LIMIT:
            limits.append(int(limit))
    return min(limits, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of our groups that may limit ``controller``: version 2's, and where both are in use, version 1's."""
    tree = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            tops = [tree, tree / "unified"]
        elif controller in controllers.split(","):
            tops = [tree / name for name in {controllers, controller}]
        else:
            continue
        own = Path(path.lstrip("/"))
        for top in tops:
            yield from (top / group for group in (own, *own.parents))


def _read(path: Path) -> str:
    """A file's content; nothing where there is no such file, or none that we may read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
