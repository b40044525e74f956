"""What could be done, what it would bring, and how: from what was measured, and nothing else."""

from __future__ import annotations

import dataclasses
import shlex

import numpy as np

from .bench import Host
from .report import Cause, Remedy
from .verdict import Evidence

_WORTH = 1.03  # a smaller gain is not listed
_NOISE = 0.1  # by so much two runs can differ


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where the pictures are, as the command lines have it."""

    flag: str  # --shards or --data
    path: str
    dataset_bytes: float
    memory_bytes: int | None  # that this process may use

    @property
    def train(self) -> str:
        return f"python train.py {self.flag} {shlex.quote(self.path)}"

    @property
    def source(self) -> str:
        """The ImageNet folder; of shards nobody knows it."""
        return shlex.quote(self.path) if self.flag == "--data" else "SRC"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A remedy that can be tried out: a way that was measured on some pictures."""

    remedy: Remedy
    workers: int | None = None  # so many
    other: str | None = None  # "crop", "recode", or a backend


def remedies(host: Host, evidence: Evidence, cause: Cause, place: Place) -> tuple[Candidate, ...]:
    """The best first; last what takes another host. Each prediction stands on a measurement of these pictures."""
    if cause == "step":
        return ()
    if cause == "transfer":
        return _transfer(evidence, place)
    found = [
        *_workers(host, evidence, place),
        *_others(host, evidence, place),
        *_disk(evidence, cause, place),
        *_neighbour(evidence, cause),
        *_stragglers(host, evidence, cause, place),
    ]
    worth = [one for one in found if one.remedy.predicted_images_per_s > _WORTH * evidence.supply]
    worth.sort(key=lambda one: -one.remedy.predicted_images_per_s)
    return (*worth, *_cores(host, evidence, cause))


def predict(host: Host, *, cheaper: float, size: float = 1.0) -> float:
    """Images/s where a picture takes so many times fewer CPU us, and ``size`` times the bytes."""
    supply = host.usual.run.images_per_s
    at_disk = 1 - 1 / host.in_memory.faster  # of the time of a picture
    if at_disk < _NOISE:
        at_disk = 0.0
    return min(supply / ((1 - at_disk) / cheaper + at_disk * size), host.replayed.images_per_s)


def _candidate(
    evidence: Evidence,
    action: str,
    command: str,
    rate: float,
    basis: str,
    *,
    workers: int | None = None,
    other: str | None = None,
) -> Candidate:
    remedy = Remedy(
        action=action,
        command=command,
        predicted_images_per_s=rate,
        predicted_stall=max(0.0, 1 - rate / evidence.demand),
        basis=basis,
    )
    return Candidate(remedy=remedy, workers=workers, other=other)


def _workers(host: Host, evidence: Evidence, place: Place) -> list[Candidate]:
    count = max(host.by_workers, default=0)
    if count <= host.usual.workers:
        return []
    other = host.by_workers[count]
    return [
        _candidate(
            evidence,
            f"decode with {count} workers instead of {host.usual.workers}, one for each core",
            f"{place.train} --workers {count}",
            evidence.supply * other.faster,
            f"{other.faster:.2f} times as fast with pictures in memory, in turns",
            workers=count,
        )
    ]


def _others(host: Host, evidence: Evidence, place: Place) -> list[Candidate]:
    made = {
        "crop": ("make crop-addressed shards, of which only the crop is decoded: the same pixels", ""),
        "recode": (
            "re-encode the pictures smaller (long side 400, quality 90), which changes pixels",
            " --jpeg recode",
        ),
    }
    found = []
    for name, other in host.other.items():
        if name in made:
            action, flags = made[name]
            command = f"python tools/make_shards.py {place.source} DST{flags} && python train.py --shards DST"
        else:
            action, command = f"decode with {name} instead of {host.usual.backend}", f"{place.train} --backend {name}"
        rate = predict(host, cheaper=other.cheaper, size=other.bytes / host.usual.run.bytes)
        basis = f"a picture takes {1 / other.cheaper:.2f} times the CPU time, measured in turns on some of yours"
        found.append(_candidate(evidence, action, command, rate, basis, other=name))
    return found


def _disk(evidence: Evidence, cause: Cause, place: Place) -> list[Candidate]:
    if cause != "disk":
        return []
    basis = "the rate with pictures in memory"
    if place.memory_bytes and place.dataset_bytes < 0.7 * place.memory_bytes:
        what = "read all pictures into memory once: they fit, and stay from the first epoch on"
        command = f"find {shlex.quote(place.path)} -type f -exec cat {{}} + > /dev/null && {place.train}"
    else:
        what = "copy the pictures to a faster disk of this host"
        command = f"cp -r {shlex.quote(place.path)} DISK && python train.py {place.flag} DISK"
    return [_candidate(evidence, what, command, evidence.in_memory, basis)]


def _neighbour(evidence: Evidence, cause: Cause) -> list[Candidate]:
    if cause != "neighbour":
        return []
    more = min((evidence.ours + evidence.others) / evidence.ours, evidence.workers / evidence.ours)
    return [
        _candidate(
            evidence,
            f"end the other programs on these cores, or move them: they use {evidence.others:.1f} of them",
            "ps -eo pid,user,pcpu,psr,comm --sort=-pcpu | head",
            evidence.supply * more,
            f"{evidence.ours:.1f} cores were the loader's",
        )
    ]


def _stragglers(host: Host, evidence: Evidence, cause: Cause, place: Place) -> list[Candidate]:
    if cause != "stragglers":
        return []
    costs = host.usual.ledger.cpu_us
    usual = np.where(costs > np.quantile(costs, 0.99), np.median(costs), costs)
    return [
        _candidate(
            evidence,
            "make the slowest hundredth of the pictures as small as the others (the worst are named below)",
            f"python tools/make_shards.py {place.source} DST --jpeg recode --max-side 1000 --quality 95",
            predict(host, cheaper=float(costs.mean() / usual.mean())),
            "the cost of the pictures without them",
        )
    ]


def _transfer(evidence: Evidence, place: Place) -> tuple[Candidate, ...]:
    return (
        _candidate(
            evidence,
            "let the driver pin the ring (train.py says where it refuses), and see which link the card has",
            f"ulimit -l unlimited && {place.train}",
            min(evidence.supply, evidence.demand),
            "the copy hidden behind the step",
        ),
    )


def _cores(host: Host, evidence: Evidence, cause: Cause) -> list[Candidate]:
    if cause not in ("decode", "neighbour") or evidence.supply >= evidence.demand:
        return []
    needed = evidence.demand * host.usual.run.cpu_us / 1e6
    return [
        _candidate(
            evidence,
            f"a host with {np.ceil(needed):.0f} cores like these for the pictures as they are",
            f"python tools/profile_loader.py ... --plan --cores {np.ceil(needed):.0f}",
            evidence.demand,
            f"{evidence.demand:,.0f} images/s x {host.usual.run.cpu_us:,.0f} CPU us",
        )
    ]
