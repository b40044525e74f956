from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import host


def test_cores_respect_the_affinity_mask() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host.available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("quota", "cores"), [(1.5, 1), (0.5, 1), (None, 8), (4.0, 4), (64.0, 8)])
def test_cores_respect_a_cgroup_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(host, "cpu_quota", lambda: quota)
    assert host.available_cores() == cores


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [("flags : sse avx2", False), ("flags : avx2 avx512_bf16", True), ("Features : asimd bf16", True), ("what?", True)],
)
def test_bf16_instructions(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, has: bool) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _self: f"processor : 0\n{cpuinfo}\n")
    assert host.has_bf16_instructions() is has
