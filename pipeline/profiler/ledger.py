"""Where the decode processes' time goes, picture by picture, from what they noted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..watch import ALL, DECODE, HAND_OVER, READ, RESIZE, SPLICE, STAGES, WAIT
from .report import Stage

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """What K pictures cost, each once for each time that it was met."""

    samples: I64  # [K] their numbers
    cpu_us: F64  # [K] of all stages that work on one picture
    blocked_us: F64  # [K] for how long reading it took more than CPU time: the disk, or a core that others had
    stages: tuple[Stage, ...]  # of the workers, without their waiting for work

    @property
    def slowest_share(self) -> float:
        """Of all CPU time, that of the slowest hundredth of the pictures."""
        slowest = max(1, len(self.cpu_us) // 100)
        return float(np.sort(self.cpu_us)[-slowest:].sum() / self.cpu_us.sum())


def write_ledger(recordings: Sequence[npt.NDArray[np.void]]) -> Ledger:
    """From each worker's events (recording.EVENT). Raises ValueError where none of them holds a whole task.

    What is done for all pictures of a task at once (DALI's decode; the task itself) is shared out evenly.
    """
    parts = [part for events in recordings if (part := _pictures(events))]
    if not parts:
        raise ValueError("no worker has finished a task while it was recorded")
    samples, cpu_us, wall_us, together = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Ledger(
        samples=samples,
        cpu_us=cpu_us.sum(1),
        blocked_us=np.maximum(0.0, wall_us - cpu_us)[:, READ],
        stages=_stages(cpu_us, wall_us, np.logical_or.reduce(together)),
    )


def _pictures(events: npt.NDArray[np.void]) -> tuple[I64, F64, F64, npt.NDArray[np.bool_]] | None:
    """Of one worker: numbers [K], CPU and wall us [K, stages], and for which stages these are shared out [1, stages].

    The first task may have begun before the recording, the last not have ended: both are left out.
    """
    task = np.cumsum(events["stage"] == WAIT)
    whole = (task > 0) & (task < task[-1:]) & (events["stage"] != WAIT)
    events, task = events[whole], task[whole]
    single = events["sample"] != ALL
    if not single.any():
        return None
    times = np.stack((events["cpu_ns"], events["end_ns"] - events["begin_ns"]), 1) / 1e3
    keys, place = np.unique(np.stack((task[single], events["sample"][single]), 1), axis=0, return_inverse=True)
    us = np.zeros((len(keys), len(STAGES), 2))
    np.add.at(us, (place.reshape(-1), events["stage"][single]), times[single])
    together = np.zeros((task[-1] + 1, len(STAGES), 2))
    np.add.at(together, (task[~single], events["stage"][~single]), times[~single])
    us += (together / np.maximum(1, np.bincount(keys[:, 0], minlength=len(together)))[:, None, None])[keys[:, 0]]
    return keys[:, 1], us[..., 0], us[..., 1], np.any(together, axis=(0, 2), keepdims=True)[..., 0]


def _stages(cpu_us: F64, wall_us: F64, together: npt.NDArray[np.bool_]) -> tuple[Stage, ...]:
    total = cpu_us.sum()
    stages = []
    for number in (READ, SPLICE, DECODE, RESIZE, HAND_OVER):
        cpu = cpu_us[:, number]
        if not wall_us[:, number].any():  # nothing is spliced where pictures are read whole
            continue
        p50, p99 = (None, None) if together[number] else np.percentile(cpu, (50, 99)).tolist()
        stages.append(
            Stage(
                name=STAGES[number],
                process="workers",
                cpu_us_per_image=float(cpu.mean()),
                share=float(cpu.sum() / total),
                wall_us_per_image=float(wall_us[:, number].mean()),
                p50_us=p50,
                p99_us=p99,
            )
        )
    return tuple(stages)
