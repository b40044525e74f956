"""Limits as real files under a folder that stands for the root."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cgroup import cpu_quota, memory_limit

HUGE = "9223372036854771712"  # what version 1 says where there is no limit


def tree(root: Path, own: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": own, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/a/b", {"a/c/cpu.max": "100000 100000"}, None),  # a neighbour's
        ("0::/host/path/of/a/container", {"cpu.max": "200000 100000"}, 2),  # not to be seen from within
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu,cpuacct:/x", {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
         2.5),
        ("4:cpu:/x\n0::/", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("what?", {"cpu.max": "100000 100000"}, None),
    ],
)  # fmt: skip
def test_the_smallest_quota_on_the_way_to_the_top_counts(
    tmp_path: Path, own: str, files: dict[str, str], cores: float | None
) -> None:
    assert cpu_quota(tree(tmp_path, own, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})) == cores


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/a", {"a/memory.max": "max", "memory.max": "2000"}, 2000),
        ("0::/a", {"a/memory.max": "1000", "memory.max": "2000"}, 1000),
        ("9:memory:/a", {"memory/a/memory.limit_in_bytes": HUGE, "memory/memory.limit_in_bytes": "3000"}, 3000),
        ("9:memory:/a", {"memory/a/memory.limit_in_bytes": HUGE}, None),
        ("9:cpu:/a\n0::/", {"memory/a/memory.limit_in_bytes": "1"}, None),
    ],
)
def test_the_smallest_memory_limit_counts(tmp_path: Path, own: str, files: dict[str, str], limit: int | None) -> None:
    assert memory_limit(tree(tmp_path, own, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})) == limit


def test_where_there_are_no_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None


def test_this_machine_is_read_without_an_error() -> None:
    assert (cpu_quota() or 1) > 0
    assert (memory_limit() or 1) > 0
