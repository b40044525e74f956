"""What a profile of somebody else's loader says."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switch:
    """What this package's loader gives on some of the same pictures, with all cores."""

    name: str  # "headrace on the folder", "headrace on crop-addressed shards"
    images_per_s: float
    cpu_us: float  # of a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignReport:
    """What was found out about a loader and a step. ``print`` it."""

    sentence: str
    verdict: str  # "compute", "cpu", "io"
    cause: str  # "step", "decode", "workers", "main", "neighbour", "waiting"
    demand: float  # images/s that the step takes
    supply: float  # images/s that the loader gives
    together: float  # images/s of both
    stall_fraction: float  # of the time, the step waits for the loader
    head_room: float  # how many times the supply the step could take
    first_batch_s: float
    cpu_us_per_image: float  # of all processes, with the loader alone
    cores_by_process: dict[str, float]
    others_cores: float
    switches: tuple[Switch, ...]
    conditions: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [
            self.sentence,
            "",
            f"  the step alone, batches replayed  {self.demand:10,.0f}/s",
            f"  the loader alone                  {self.supply:10,.0f}/s   {self.cpu_us_per_image:,.0f} CPU us each",
            f"  both, as in training              {self.together:10,.0f}/s   waiting {100 * self.stall_fraction:.0f} %",
            "",
            "cores in use by the loader alone",
            *(f"  {name:32s} {used:5.2f}" for name, used in self.cores_by_process.items()),
            f"  {'other programs':32s} {self.others_cores:5.2f}",
        ]
        if self.switches:
            lines += ["", "what a switch would give"]
        for switch in self.switches:
            idle = max(0.0, 1 - switch.images_per_s / self.demand)
            lines.append(
                f"  {switch.name:34s}{switch.images_per_s:8,.0f}/s   {switch.cpu_us:,.0f} CPU us a picture, "
                f"the step would wait {100 * idle:.0f} %"
            )
        return "\n".join([*lines, "", *(f"{name}: {value}" for name, value in self.conditions)])
