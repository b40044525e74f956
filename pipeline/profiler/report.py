"""What a profile says: plain numbers, from which the terminal's text, the JSON, the page and the plan are made."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Verdict = Literal["compute", "transfer", "cpu", "io"]
# What is behind the verdict, and so what to do:
Cause = Literal[
    "step",  # compute: the devices are kept busy, the step is what limits them
    "transfer",  # transfer: the copy to the device
    "decode",  # cpu: all cores of this host are at work on pictures
    "workers",  # cpu: there are cores left, and too few workers to use them
    "neighbour",  # cpu: other programs have the cores
    "stragglers",  # cpu: a few pictures take so long that the others wait for them
    "hand-over",  # cpu: the loader's own process, between workers and device
    "disk",  # io: the pictures do not arrive
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """One of the differential rates: how fast it would go if everything behind this point were free."""

    name: str  # S0 ... S4
    label: str  # "decoded batches replayed from memory"
    images_per_s: float | None  # median of the repeats; None where it was not measured
    low: float | None
    high: float | None
    repeats: int
    note: str  # why it was not measured, or what is to be known about it; else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """A part of the time that one picture takes; all of them together are 1."""

    name: str  # "step", "transfer", "hand-over", "decode", "disk", "unattributed"
    fraction: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One line of the ledger: what a picture costs there."""

    name: str  # "read", "splice", "decode", "resize", "hand-over", "loader"
    process: str  # "workers", "loader"
    cpu_us_per_image: float  # mean
    share: float  # of the CPU time of all stages
    wall_us_per_image: float  # mean; more than CPU time where it waited
    p50_us: float | None  # CPU time of one picture; None where it is not known for each
    p99_us: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """One line of the capacity equation."""

    name: str  # "cores", "disk", "memory", "transfer"
    unit: str  # "cores", "MB/s", "GB"
    needed: float
    here: float | None  # what this host has; None where it is not known
    how: str  # the arithmetic, to be read: "3,797 images/s x 742 us"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlowSample:
    """One of the pictures that took longest."""

    name: str
    cpu_us: float
    bytes: int
    megapixels: float
    why: str  # "46 megapixels", "progressive"; else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """Throughput with so many workers."""

    workers: int
    images_per_s: float
    measured: bool  # else computed from the costs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remedy:
    """Something to do, and what it is worth."""

    action: str
    command: str
    predicted_images_per_s: float
    predicted_stall: float  # at the demand of the report
    basis: str  # how the prediction was made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """The first remedy, applied."""

    action: str
    predicted_images_per_s: float
    measured_images_per_s: float
    error: float  # predicted / measured - 1
    how: str  # "on 512 of your pictures"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found out."""

    version: int = 1
    verdict: Verdict
    cause: Cause
    sentence: str  # the answer
    confidence: str  # "high" or "low: why"
    demand: float  # images/s that all devices ask for
    demand_per_device: float
    devices: int
    demand_source: str  # "--demand", "measured on cuda:0 NVIDIA H100, O2 float16"
    supply: float  # images/s that this host gives: S4
    supply_low: float
    supply_high: float
    stall_fraction: float  # of the time, the devices have nothing to do
    rates: tuple[Rate, ...]
    shares: tuple[Share, ...]
    stages: tuple[Stage, ...]
    needs: tuple[Need, ...]
    slots: int  # batches that the ring holds
    occupancy: tuple[tuple[float, int], ...]  # (seconds, batches that were ready), over one run at the demand
    waits_ms: tuple[float, ...]  # of that run, for each batch, how long the devices waited for it
    slow_samples: tuple[SlowSample, ...]
    costs: tuple[tuple[int, float], ...]  # (compressed bytes, CPU us) of some pictures
    workers: int
    curve: tuple[Point, ...]
    knee: int | None  # workers beyond which there is no gain
    remedies: tuple[Remedy, ...]
    verified: Verified | None = None
    conditions: tuple[tuple[str, str], ...]  # what it was measured under: ("cores", "2 of 2, AMD EPYC ..."), ...

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return dataclasses.asdict(self)
