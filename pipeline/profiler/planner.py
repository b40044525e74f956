"""The planner: can a host with so many cores feed so many devices, with which settings?

The arithmetic, per device: ``demand x CPU time per picture`` cores decode, a tenth more is margin, and its trainer's
process has a core of its own (it launches kernels, and does the loader's share of the work in between). The answer is
then tried in the forecast, with the costs of single pictures, which the mean does not know of.

Why a tenth: measured again on the same machine, the same code's CPU time per picture differs by about that
(benchmarks/2026-11-23-loaders.md); and workers that are busy 91 % of the time can still catch up after a run of slow
pictures, within a ring of some batches, where fully busy ones never do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from ..config import PipelineConfig
from ..errors import ConfigError
from .forecast import F64, forecast
from .machine import Machine
from .plan import Choice, Plan, counted

MARGIN = 0.1
WORKER_MB = 85.0  # that a decode process has of its own (benchmarks/memory.py); 125 with DALI
_STALL = 0.01  # of the devices' time: below, they count as fed
_SLOTS = tuple(factor * PipelineConfig.slots for factor in (1, 2, 4))  # rings to try
_EXACT = 1e-9  # what rounding may do to a sum of cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What pictures cost in one of the forms in which they can lie on a disk."""

    mean_us: float  # CPU microseconds of a picture, over all that is done with it on the host
    sample_us: F64  # float64 [P], of single pictures: their spread counts, their mean is brought to ``mean_us``
    place: str = "--shards DST"  # train.py's flag for it
    make: str = ""  # the command that makes it; nothing where it is there
    bytes_per_image: float | None = None  # that are read


def make_plan(
    costs: Mapping[str, Cost],
    *,
    machine: Machine,
    measured_with: int,
    devices: int,
    demand_per_device: float,
    cores: float | None = None,
    trainer_cores: float = 1.0,
    batch_size: int = 128,
    image_size: int = 299,
    worker_mb: float = WORKER_MB,
    disk_mb_per_s: float | None = None,
) -> Plan:
    """Plan for each form of the pictures; the first that is fed is chosen, so let those that cost least trouble lead.

    ``machine`` is where the costs were measured, with ``measured_with`` processes at work; ``cores`` are those of the
    host to plan for (None: this machine, whose memory then counts too). ``batch_size`` is that of one device.
    ``disk_mb_per_s`` is what the disk under the shards gives; None leaves it out, as for shards that fit the memory.

    Raises ConfigError for what makes no sense.
    """
    if not costs:
        raise ConfigError("costs must have at least 1 form of pictures, was empty")
    numbers = {"devices": devices, "demand_per_device": demand_per_device, "batch_size": batch_size}
    if cores is not None:
        numbers["cores"] = cores
    for name, number in numbers.items():
        if not number > 0:
            raise ConfigError(f"{name} must be above 0, was {number}")
    here = cores is None or cores == machine.capacity
    host = _Host(
        devices=devices,
        demand=demand_per_device,
        cores=machine.capacity if cores is None else cores,
        trainer_cores=trainer_cores,
        batch_size=batch_size,
        image_bytes=image_size * image_size * 3,
        worker_mb=worker_mb,
        disk_mb_per_s=disk_mb_per_s,
        memory_mb=machine.memory_for_us / 1e6 if here and machine.memory_for_us is not None else None,
    )
    choices = tuple(host.choose(name, cost) for name, cost in costs.items())
    fed = [choice for choice in choices if choice.fed]
    chosen = fed[0] if fed else min(choices, key=lambda choice: choice.cpu_us)
    return Plan(
        sentence=_sentence(host, chosen),
        fed=chosen.fed,
        chosen=chosen.name,
        devices=devices,
        demand_per_device=demand_per_device,
        cores=host.cores,
        trainer_cores=trainer_cores,
        batch_size=batch_size,
        margin=MARGIN,
        choices=choices,
        notes=_notes(machine, measured_with, host),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Host:
    """What is asked of a host, and what it has."""

    devices: int
    demand: float  # images/s of one device
    cores: float
    trainer_cores: float
    batch_size: int
    image_bytes: int
    worker_mb: float
    disk_mb_per_s: float | None
    memory_mb: float | None

    @property
    def decode_cores(self) -> float:
        """What the trainers leave."""
        return max(0.0, self.cores - self.devices * self.trainer_cores)

    def choose(self, name: str, cost: Cost) -> Choice:
        """The settings for one form of the pictures, and whether they do."""
        decode = self.demand * cost.mean_us * (1 + MARGIN) / 1e6  # cores of one device
        per_device = decode + self.trainer_cores
        share = self.decode_cores / self.devices
        workers = max(1, math.ceil(min(decode, share) - _EXACT))
        slots, stall = self._ring(cost, workers, share)
        disk = None if cost.bytes_per_image is None else self.devices * self.demand * cost.bytes_per_image / 1e6
        ring_mb = self.devices * slots * self.batch_size * self.image_bytes / 1e6
        workers_mb = self.devices * workers * self.worker_mb
        short_of = []
        if self.cores < self.devices * per_device - _EXACT:
            short_of.append("cores")
        if disk is not None and self.disk_mb_per_s is not None and self.disk_mb_per_s < disk * (1 + MARGIN):
            short_of.append("disk")
        if self.memory_mb is not None and self.memory_mb < ring_mb + workers_mb:
            short_of.append("memory")
        if stall > _STALL and not short_of:  # on average there is enough of everything
            short_of.append("slots")
        rehearsing = min(self.devices * workers, max(1, int(self.decode_cores)))
        return Choice(
            name=name,
            cpu_us=cost.mean_us,
            fed=not short_of,
            short_of=tuple(short_of),
            cores_needed=math.ceil(self.devices * per_device - _EXACT),
            head_room=share * 1e6 / cost.mean_us / self.demand - 1,
            most_devices=math.floor(self.cores / per_device + _EXACT),
            stall_fraction=stall,
            workers_per_rank=workers,
            slots=slots,
            disk_mb_per_s=disk,
            ring_mb=ring_mb,
            workers_mb=workers_mb,
            how=f"{self.devices} x ({self.demand:,.1f} images/s x {cost.mean_us:,.0f} us x {1 + MARGIN:.2f} + "
            f"{self.trainer_cores:g} for the trainer) = {self.devices * per_device:,.1f}",
            make=cost.make,
            train=f"{self._launcher()} {cost.place} --amp {self._flags(self.devices * workers)}",
            rehearse=f"python train.py {cost.place} --device sim:{self.demand:g}x{self.devices} "
            f"{self._flags(rehearsing)}",
        )

    def _ring(self, cost: Cost, workers: int, share: float) -> tuple[int, float]:
        """The shortest ring that keeps a device fed, and how much it then stands idle all the same."""
        stall = 1.0
        for slots in _SLOTS if share else ():
            stall = forecast(
                cost.sample_us * (cost.mean_us / cost.sample_us.mean()),
                workers=workers,
                cores=share,
                slots=slots,
                batch_size=self.batch_size,
                demand=self.demand,
                overlapped=True,
            ).stall_fraction
            if stall <= _STALL:
                return slots, stall
        return PipelineConfig.slots, stall

    def _launcher(self) -> str:
        return "python train.py" if self.devices == 1 else f"torchrun --nproc-per-node {self.devices} train.py"

    def _flags(self, workers: int) -> str:
        """Those of a node, which its ranks share."""
        return f"--batch-size {self.devices * self.batch_size} --workers {workers}"


def _sentence(host: _Host, choice: Choice) -> str:
    together = f" ({host.devices * host.demand:,.0f} together)" if host.devices > 1 else ""
    asked = f"{counted(host.devices, 'device')} of {host.demand:,.1f} images/s{together}"
    takes = f"with pictures {choice.name} at {choice.cpu_us:,.0f} CPU us each it takes {choice.cores_needed} cores"
    feeds = f"{host.cores:g} cores feed {counted(choice.most_devices, 'such device')}"
    if choice.fed:
        return f"FED: {host.cores:g} cores feed {asked}: {takes}; {feeds}."
    why = {
        "cores": f"{takes}; {feeds}",
        "disk": f"the disk gives {host.disk_mb_per_s or 0:,.0f} MB/s, and it takes {choice.disk_mb_per_s or 0:,.0f} "
        f"and {100 * MARGIN:.0f} % to spare",
        "memory": f"rings and workers take {choice.ring_mb + choice.workers_mb:,.0f} MB, here are "
        f"{host.memory_mb or 0:,.0f}",
        "slots": f"there are cores enough for the mean, but single pictures take so long that a ring of {_SLOTS[-1]} "
        f"batches runs empty: the devices would stand idle {100 * choice.stall_fraction:.0f} % of the time",
    }
    return f"NOT FED: {host.cores:g} cores do not feed {asked}: {why[choice.short_of[0]]}."


def _notes(machine: Machine, measured_with: int, host: _Host) -> tuple[str, ...]:
    notes = [f"the costs were measured on {machine}: the plan holds for cores of this kind"]
    at_work = f"measured with {measured_with} of {len(machine.cores)} at work"
    if machine.smt:
        busy = measured_with >= len(machine.cores)
        notes.append(
            f"cores here are hyper-threads, which share physical cores; {at_work}: "
            + ("so that is in the costs" if busy else "a picture costs more, up to twice as much, once all are busy")
        )
    elif measured_with < machine.capacity:
        notes.append(f"{at_work}: with all of them a picture may cost more, for they share memory and clock")
    notes.append(
        f"{100 * MARGIN:.0f} % of the decoding are margin, as costs differ from run to run and some pictures are slow; "
        f"each trainer's process has {counted(host.trainer_cores, 'core')}"
    )
    if host.disk_mb_per_s is None:
        notes.append("the disk is left out: shards that do not fit the memory need the MB/s above")
    return tuple(notes)
