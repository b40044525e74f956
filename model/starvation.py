"""Notices that the device waits for the host, and names the command that finds out why."""

from __future__ import annotations

import dataclasses
import shlex
from collections import deque
from typing import NamedTuple

from .options import TrainOptions
from .ranks import Ranks

WARM_UP_STEPS = 10  # left out here, and of FPS@all as in the original: processes start, kernels are chosen, rings fill
# A minute is longer than what passes by itself (a checkpoint on a slow disk, a shard that is not cached yet), and the
# note still comes in the first minutes of a run of days.
WINDOW_S = 60.0
# Below a tenth, there is little to gain: no remedy makes training more than 1.11 times as fast.
THRESHOLD = 0.1

# What tools/profile_loader.py takes where it is told nothing else; model/ does not import pipeline/.
_PROFILED = {"image_size": 299, "batch_size": 64, "backend": "auto"}


class Span(NamedTuple):
    """Some steps in a row."""

    steps: int = 0
    wall_s: float = 0.0
    stall_s: float = 0.0  # of it, the device waited for the host; with several ranks, that of the slowest
    images: int = 0  # of all ranks
    ready: int = 0  # batches that waited in the ring when a step got its own, summed over the steps

    @property
    def stall_fraction(self) -> float:
        """The share of the time in which the device waited for the host: [0, 1]."""
        return self.stall_s / max(self.wall_s, 1e-9)

    @property
    def images_per_s(self) -> float:
        """What was trained."""
        return self.images / max(self.wall_s, 1e-9)


class Starvation:
    """Says once in a run that the device was starved over a whole window of training, and what to run."""

    def __init__(
        self, options: TrainOptions, ranks: Ranks, *, batch_size: int, workers: int, warm_up_steps: int = WARM_UP_STEPS
    ):
        """``batch_size`` and ``workers``: of one rank's loader."""
        self._options, self._ranks = options, ranks
        self._batch_size, self._workers = batch_size, workers * ranks.local_world_size
        self._warm_up_steps_each = warm_up_steps
        self._said = False
        self._image_size = 0
        self.resized(options.image_size)

    def resized(self, image_size: int) -> None:
        """Pictures are of this size from here on: what was seen of any other says nothing of them."""
        if image_size == self._image_size:
            return
        self._image_size = image_size
        self._warm_up_steps = self._warm_up_steps_each
        self._now = (0.0, 0.0, 0)  # wall and stall in seconds, and images, since the warm-up
        self._window = deque([self._now])  # the same at the window's begin, and at each span's end since

    def fed(self, span: Span) -> str | None:
        """Take note of what has been trained since the last call. Returns the line to print, once."""
        if self._said:
            return None
        if self._warm_up_steps > 0:
            self._warm_up_steps -= span.steps
            return None
        wall_s, stall_s, images = self._now
        self._now = (wall_s + span.wall_s, stall_s + span.stall_s, images + span.images)
        self._window.append(self._now)
        while self._now[0] - self._window[1][0] >= WINDOW_S:
            self._window.popleft()
        last = Span(
            wall_s=self._now[0] - self._window[0][0],
            stall_s=self._now[1] - self._window[0][1],
            images=self._now[2] - self._window[0][2],
        )
        if last.wall_s < WINDOW_S or last.stall_fraction <= THRESHOLD:
            return None
        self._said = True
        command = profile_command(
            dataclasses.replace(self._options, image_size=self._image_size),
            devices=self._ranks.local_world_size,
            batch_size=self._batch_size,
            workers=self._workers,
        )
        demand = last.images / self._ranks.world_size / max(last.wall_s - last.stall_s, 1e-9)
        return (
            f"note: the device has waited for the host {100 * last.stall_fraction:.0f} % of the last "
            f"{last.wall_s:.0f} s: this run is input-bound. What is slow, and what each remedy is worth: "
            f"{command} --demand {max(demand, 0.1):.1f}"
        )


def profile_command(options: TrainOptions, *, devices: int, batch_size: int, workers: int) -> str:
    """The profiler's call for the data and the settings of this run, to be pasted into a shell; without the demand.

    Args:
        options: of the run. devices: cards of this node. batch_size: of one card. workers: of all loaders of the node.
    """
    place = ("--data", options.data) if options.shards is None else ("--shards", options.shards)
    words: list[object] = ["python", "tools/profile_loader.py", *place, "--devices", devices, "--workers", workers]
    used = {"image_size": options.image_size, "batch_size": batch_size, "backend": options.backend}
    for name, value in used.items():
        if value != _PROFILED[name]:
            words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(map(str, words))
