"""Machines as real files under a folder that stands for the root, and this very machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.profiler.machine import read_machine


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def server(root: Path) -> Path:
    """Two sockets of two cores of two threads: 0 and 4 are threads of one core, and so on."""
    threads = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)}
    return tree(root, threads | {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some 9000\n\nprocessor\t: 1\nmodel name\t: Other",
        "proc/meminfo": "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:    8000 kB",
        "proc/self/cgroup": "0::/job",
        "sys/fs/cgroup/job/memory.max": "4096000",
        "sys/fs/cgroup/job/cpu.max": "250000 100000",
        "sys/devices/system/cpu/online": "0-7",
        "sys/devices/system/node/online": "0-1",
        "sys/devices/system/node/node0/cpulist": "0-1,4-5",
        "sys/devices/system/node/node1/cpulist": "2-3,6-7",
    })  # fmt: skip


def test_a_server_is_read_as_it_is(tmp_path: Path) -> None:
    machine = read_machine(server(tmp_path), frozenset(range(8)))
    assert (machine.processor, machine.cores_online, machine.physical_cores, machine.smt) == ("Some 9000", 8, 4, True)
    assert (machine.quota, machine.capacity) == (2.5, 2.5)
    assert (machine.memory_bytes, machine.memory_available) == (16_384_000, 8_192_000)
    assert machine.memory_for_us == 4_096_000
    assert [sorted(node.cores) for node in machine.nodes] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    for part in ("Some 9000", "8 of 8 cores", "4 physical", "quota of 2.5", "nodes of 4 and 4"):
        assert part in str(machine)


@pytest.mark.parametrize(("cores", "physical", "smt", "nodes"), [({0, 1}, 2, False, 1), ({0, 4, 2}, 2, True, 2)])
def test_only_the_cores_that_we_may_use_count(
    tmp_path: Path, cores: set[int], physical: int, smt: bool, nodes: int
) -> None:
    machine = read_machine(server(tmp_path), frozenset(cores))
    assert (machine.physical_cores, machine.smt, len(machine.nodes)) == (physical, smt, nodes)
    assert frozenset().union(*(node.cores for node in machine.nodes)) == cores


def test_what_the_system_does_not_tell_is_none(tmp_path: Path) -> None:
    machine = read_machine(tmp_path, frozenset({0, 1}))
    for name in ("processor", "cores_online", "physical_cores", "quota", "memory_bytes", "memory_limit", "smt"):
        assert getattr(machine, name) is None, name
    assert machine.nodes == ()
    assert machine.capacity == 2
    assert str(machine) == "an unknown processor, 2 cores"


@pytest.mark.parametrize("rubbish", ["", "what?", "-", "a-b", "0x1"])
def test_rubbish_is_not_an_error(tmp_path: Path, rubbish: str) -> None:
    names = ("proc/meminfo", "proc/cpuinfo", "sys/devices/system/cpu/online", "sys/devices/system/node/online",
             "sys/devices/system/cpu/cpu0/topology/thread_siblings_list")  # fmt: skip
    machine = read_machine(tree(tmp_path, dict.fromkeys(names, rubbish)), frozenset({0}))
    assert machine.memory_bytes is None
    assert machine.physical_cores is None


def test_arm_has_no_model_name(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/cpuinfo": "processor : 0\nCPU implementer : 0x48\nCPU part : 0xd01"})
    assert read_machine(root, frozenset({0})).processor == "ARM implementer 0x48 part 0xd01"


def test_this_machine_is_what_the_system_says() -> None:
    machine = read_machine()
    assert machine.cores == os.sched_getaffinity(0)
    if machine.memory_bytes is not None:
        assert machine.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if machine.nodes:
        assert frozenset().union(*(node.cores for node in machine.nodes)) == machine.cores
    assert 0 < machine.capacity <= len(machine.cores)
