"""Why somebody else's loader is slow, from who used the cores while it ran alone: pure functions."""

from __future__ import annotations

import os
from typing import NamedTuple

from .any_loader import Loop
from .verdict import NOTHING

_BUSY = 0.85  # of a core, or of all cores: then there is no more of them to be had
_MOSTLY = 0.5  # of its time a worker wants a core: then it computes, else it waits
_CROWDED = 0.2  # of what the loader used, others took from it


class Why(NamedTuple):
    """The answer."""

    verdict: str  # "compute", "cpu", "io"
    cause: str  # "step", "decode", "workers", "main", "neighbour", "waiting"
    words: str  # for the sentence


def why_slow(stall: float, alone: Loop, workers: int, cores: int) -> Why:
    """What stands in the way of a loader that lets the step wait for a share ``stall`` of the time.

    ``workers``: processes that it says it has. A thread that has no core while others use it wants one all the same.
    """
    use = alone.use
    if stall < NOTHING:
        return Why("compute", "step", "")
    main = os.getpid()
    queued = use.queued if use.queued_s < float("inf") else {}
    if (alone.asking * alone.seconds + queued.get(main, 0.0)) / alone.seconds > _BUSY:
        if workers:
            return Why("cpu", "main", "CPU: the main process is busy with the hand-over, and has one core for it")
        return Why("cpu", "main", "CPU: the main process loads by itself, on one core, while no step runs: no workers")
    wanted = _wanted_cores(alone, queued, main, workers)
    if wanted < _MOSTLY * max(1, workers):
        waiting = 1 - wanted / max(1, workers)
        who = "its workers wait" if workers else "it waits"
        return Why("io", "waiting", f"waiting: {who} {100 * waiting:.0f} % of the time, for disk, network or a lock")
    if workers < cores and use.ours_cores + use.others_cores < _BUSY * cores:
        what = f"its {workers} workers are" if workers else "it is"
        idle = cores - use.ours_cores - use.others_cores
        return Why("cpu", "workers", f"too few workers: {what} busy, and {idle:.1f} of {cores} cores are idle")
    if use.taken_cores > _CROWDED * use.ours_cores:
        return Why("cpu", "neighbour", f"other programs use {use.others_cores:.1f} of {cores} cores")
    return Why("cpu", "decode", f"CPU: all {cores} cores are busy")


def _wanted_cores(alone: Loop, queued: dict[int, float], main: int, workers: int) -> float:
    """How many cores the workers used or waited for, those that have ended too; without workers, the main process."""
    use = alone.use
    if not workers:
        return (use.ours_s + sum(queued.values())) / use.seconds
    others = sum(waited_s for pid, waited_s in queued.items() if pid != main)
    return (use.ours_s - use.by_process[main] + others) / use.seconds
