"""A plan: the cores, workers and memory it takes to feed so many devices, as data and as text. planner.py makes it."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..config import PipelineConfig

_SHORT = {
    "cores": "too few cores",
    "disk": "the disk is too slow",
    "memory": "too little memory",
    "slots": "single pictures take too long",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The plan for pictures of one form."""

    name: str
    cpu_us: float  # of a picture, mean
    fed: bool
    short_of: tuple[str, ...]  # what there is too little of: "cores", "disk", "memory", "slots"; none where fed
    cores_needed: int  # the fewest with which all devices are fed
    head_room: float  # what the cores that decode can do beyond the demand, as a share of it; below 0: what is missing
    most_devices: int  # that the cores would feed
    stall_fraction: float  # forecast, of the devices' time
    workers_per_rank: int
    slots: int  # of each rank's ring
    disk_mb_per_s: float | None  # that is read at the demand
    ring_mb: float  # of all ranks together, 10^6 bytes
    workers_mb: float
    how: str  # the arithmetic, to be read
    make: str  # the commands, in order; "" where the pictures are there
    train: str
    rehearse: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Whether it can be done, and how."""

    sentence: str
    fed: bool
    chosen: str  # the name of the choice whose settings are advised: the first that is fed, else the cheapest
    devices: int
    demand_per_device: float  # images/s
    cores: float
    trainer_cores: float  # of each device's trainer process
    batch_size: int  # of each rank
    margin: float
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]  # what the figures hold for

    @property
    def choice(self) -> Choice:
        """The one that is advised."""
        return next(choice for choice in self.choices if choice.name == self.chosen)

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        best, cores = self.choice, f"{self.cores:g}"
        width = max(len("pictures"), *(len(choice.name) for choice in self.choices))
        head = f"  {'pictures':{width}s}  CPU us each  cores needed  head room  devices {cores} cores feed"
        lines = [self.sentence, "", f"{head}  disk MB/s  fed"]
        for choice in self.choices:
            disk = "?" if choice.disk_mb_per_s is None else f"{choice.disk_mb_per_s:,.0f}"
            lines.append(
                f"  {choice.name:{width}s}  {choice.cpu_us:11,.0f}  {choice.cores_needed:12,d}"
                f"  {100 * choice.head_room:+7,.0f} %  {choice.most_devices:{19 + len(cores)},d}  {disk:>9s}"
                f"  {'yes' if choice.fed else 'no: ' + ', '.join(map(_SHORT.__getitem__, choice.short_of))}"
            )
        settings = (
            f"{counted(best.workers_per_rank, 'worker')} and a ring of {best.slots} batches of {self.batch_size} for "
            f"each rank: {best.ring_mb / 1e3:.1f} GB of host memory of rings, {best.workers_mb / 1e3:.1f} of workers, "
            "besides the trainers' own"
        )
        if best.slots != PipelineConfig.slots:
            settings += f" (PipelineConfig(slots={best.slots}): with {PipelineConfig.slots} the ring runs empty)"
        lines += ["", f"with pictures {best.name}:", f"  cores needed  {best.how}", f"  settings      {settings}"]
        lines += [f"  make shards   {best.make}"] if best.make else []
        lines += [f"  train         {best.train}", f"  try it        {best.rehearse}"]
        lines += [f"                (on a host with {cores} cores; it needs no device)", ""]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def counted(number: float, noun: str) -> str:
    """A number of things, as words: 1 core, 2.5 cores."""
    return f"{number:g} {noun}{'s'[: number != 1]}"
