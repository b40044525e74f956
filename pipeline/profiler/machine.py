"""What this machine has for us: cores, memory and NUMA nodes. What the system does not tell is None."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..cgroup import cpu_quota, memory_limit
from ..host import cores as own_cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A NUMA node: memory, and the cores that are near it."""

    number: int
    cores: frozenset[int]  # those that this process may use


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """One host, or the part of it that a container or a job may use."""

    processor: str | None  # its model's name
    cores: frozenset[int]  # those that this process may use, by number; with SMT these are hardware threads
    cores_online: int | None  # all there are
    physical_cores: int | None  # those that ``cores`` belong to
    quota: float | None  # cores' worth of time that the control groups allow
    memory_bytes: int | None  # of the machine
    memory_available: int | None  # bytes that could be taken now, without swapping
    memory_limit: int | None  # bytes that the control groups allow
    nodes: tuple[Node, ...]  # those with cores for us; none where the system does not tell

    @property
    def capacity(self) -> float:
        """Cores' worth of time that this process may use at most."""
        return min(float(len(self.cores)), self.quota or float("inf"))

    @property
    def smt(self) -> bool | None:
        """Whether some of our cores are threads of the same physical core."""
        return None if self.physical_cores is None else self.physical_cores < len(self.cores)

    @property
    def memory_for_us(self) -> int | None:
        """Bytes: the machine's memory, or the control groups' limit where that is less."""
        known = [limit for limit in (self.memory_bytes, self.memory_limit) if limit is not None]
        return min(known, default=None)

    def __str__(self) -> str:
        """One line: what the figures hold for."""
        online = f" of {self.cores_online}" if self.cores_online is not None else ""
        parts = [self.processor or "an unknown processor", f"{len(self.cores)}{online} cores"]
        if self.smt:
            parts.append(f"hyper-threads of {self.physical_cores} physical ones")
        if self.quota is not None:
            parts.append(f"a quota of {self.quota:g}")
        if len(self.nodes) > 1:
            parts.append("NUMA nodes of " + " and ".join(str(len(node.cores)) for node in self.nodes))
        if self.memory_for_us is not None:
            parts.append(f"{self.memory_for_us / 1e9:.0f} GB of memory")
        return ", ".join(parts)


def read_machine(root: Path = Path("/"), cores: frozenset[int] | None = None) -> Machine:
    """What the system tells. ``root`` is where /proc and /sys are; ``cores`` are those of this process."""
    cores = own_cores() if cores is None else cores
    memory = _fields(root / "proc/meminfo")
    online = _numbers(_read(root / "sys/devices/system/cpu/online"))
    return Machine(
        processor=_processor(root),
        cores=cores,
        cores_online=len(online) if online else None,
        physical_cores=_physical_cores(root, cores),
        quota=cpu_quota(root),
        memory_bytes=_kilobytes(memory.get("MemTotal")),
        memory_available=_kilobytes(memory.get("MemAvailable")),
        memory_limit=memory_limit(root),
        nodes=_nodes(root, cores),
    )


def _processor(root: Path) -> str | None:
    """x86 names its model; of ARM, /proc/cpuinfo has numbers only, and the device tree may have the board's name."""
    fields = _fields(root / "proc/cpuinfo")
    board = _read(root / "sys/firmware/devicetree/base/model").strip("\0")
    implementer, part = fields.get("CPU implementer"), fields.get("CPU part")
    arm = f"ARM implementer {implementer} part {part}" if implementer and part else None
    return fields.get("model name") or fields.get("Model") or board or arm


def _physical_cores(root: Path, cores: frozenset[int]) -> int | None:
    """How many groups of sibling threads our cores are of."""
    groups = set()
    for core in cores:
        siblings = _numbers(_read(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"))
        if not siblings:
            return None
        groups.add(siblings)
    return len(groups)


def _nodes(root: Path, cores: frozenset[int]) -> tuple[Node, ...]:
    nodes = []
    for number in sorted(_numbers(_read(root / "sys/devices/system/node/online"))):
        near = _numbers(_read(root / f"sys/devices/system/node/node{number}/cpulist")) & cores
        if near:
            nodes.append(Node(number=number, cores=near))
    return tuple(nodes)


def _fields(path: Path) -> dict[str, str]:
    """``name: value`` lines; the first of each name."""
    fields: dict[str, str] = {}
    for line in _read(path).splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _kilobytes(text: str | None) -> int | None:
    """``16384 kB`` in bytes."""
    number = (text or "").partition(" ")[0]
    return 1024 * int(number) if number.isdigit() else None


def _numbers(text: str) -> frozenset[int]:
    """``0-3,8`` as numbers; none where it is no such list."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            return frozenset()
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def _read(path: Path) -> str:
    """A file's content; nothing where there is no such file, or none that we may read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
