"""What a profile of somebody else's loader says."""

from __future__ import annotations

import dataclasses
from typing import Any

from .report import Rate

_LINES = 8  # of processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switch:
    """What this package's loader gives on some of the same pictures."""

    name: str  # "headrace, on the pictures as they are", "headrace, on crop-addressed shards"
    faster: float  # times as fast as the loader as it is: median of turns with it
    images_per_s: float  # that times the supply
    low: float
    high: float
    cpu_us: float  # of a picture, over all processes
    cores: int  # that decode
    training_images_per_s: float  # what the step would get of it
    stall_fraction: float  # of the time, the step would wait
    making_s_per_million: float  # what a million such pictures cost once, on all cores; 0 where nothing is made


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignReport:
    """What was found out about a loader and a step. ``print`` it."""

    sentence: str
    verdict: str  # "compute", "cpu", "io"
    cause: str  # "step", "decode", "workers", "main", "neighbour", "waiting"
    confidence: str  # "high", or "low: why"
    demand: float  # images/s that the step takes
    supply: float  # images/s that the loader gives
    together: float  # images/s of both
    rates: tuple[Rate, ...]  # the same three, with their spread
    stall_fraction: float  # of the time, the step waits for the loader
    head_room: float  # how many times as fast it would train if it never waited for the loader: demand / together
    step_slower: float  # how much longer a step takes beside the loader than alone: 0.1 is a tenth
    first_batch_s: float
    epoch_start_s: float  # later ones, median: with new workers, or the same
    cpu_us_per_image: float  # of all processes, with the loader alone
    cores_by_process: dict[str, float]  # with the loader alone
    others_cores: float
    cores: int
    workers: int  # processes that load, as the loader says
    switches: tuple[Switch, ...]
    conditions: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        cpu_us = self.cpu_us_per_image / sum(self.cores_by_process.values())
        lines = [
            self.sentence,
            f"confidence: {self.confidence}",
            "",
            *(f"  {rate.label:36s}{_figure(rate)}   {rate.note}".rstrip() for rate in self.rates),
            "",
            f"the first batch came after {self.first_batch_s:.2f} s, later epochs' after {self.epoch_start_s:.2f} s",
            f"a step beside the loader against one alone: {100 * self.step_slower:+.0f} % time",
            f"head room: a loader that is never waited for would train {self.head_room:.2f} times as fast",
            "",
            "the loader alone              cores   CPU us a picture",
            *(f"  {name:26s}{used:7.2f}{used * cpu_us:12,.0f}" for name, used in self._together().items()),
            f"  {'other programs':26s}{self.others_cores:7.2f}",
        ]
        if self.switches:
            lines += ["", f"what a switch would give, with {self.switches[0].cores} decode processes"]
        for switch in self.switches:
            lines.append(
                f"  {switch.name:38s}{switch.images_per_s:8,.0f}/s ({switch.low:,.0f} to {switch.high:,.0f}), "
                f"{switch.faster:.1f} times as fast, "
                f"{switch.cpu_us:,.0f} CPU us a picture: trains {switch.training_images_per_s:,.0f}/s, "
                f"the step waits {100 * switch.stall_fraction:.0f} %"
            )
            if switch.making_s_per_million:
                lines.append(
                    f"    made once, in {switch.making_s_per_million:,.0f} s for a million such pictures on "
                    f"{self.cores} cores: python tools/make_shards.py SRC DST"
                )
        return "\n".join([*lines, "", *(f"{name}: {value}" for name, value in self.conditions)])

    def _together(self) -> dict[str, float]:
        """Cores by process; of many workers, such as an epoch's own, all in one line."""
        main, *others = self.cores_by_process.items()
        if len(others) > _LINES:
            others = [(f"{len(others)} others, together", sum(used for _, used in others))]
        return dict([main, *others])


def _figure(rate: Rate) -> str:
    spread = f"({rate.low:,.0f} to {rate.high:,.0f})" if rate.repeats > 1 else ""
    return f"{rate.images_per_s:10,.0f}/s {spread:22s}"
