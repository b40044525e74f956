"""What the loader would deliver: its queue, its ring and its workers as a simulation of discrete events.

The loader's own rules are played, not approximated: batches are cut into tasks, tasks go onto one queue in order, who
is free takes the next, a batch that is whole waits in its slot until its turn, and a slot is filled again when the
batch behind it is asked for. What an epoch's end does (one smaller batch) is left out.

Cores are shared as the system shares them among equals: where ``n`` processes have work and there are ``c`` cores, each
runs at ``min(1, c / n)`` of a core. That is exact in the sum (all together get ``min(n, c)`` cores at every moment) and
for each process in the mean over many of the scheduler's turns, which are milliseconds, as is a task. The loader's own
process is one of them. A disk is a pipe: one read behind the other at its bandwidth.
"""

from __future__ import annotations

import dataclasses
import heapq
import math

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..tasks import DISPATCH_BELOW, rows_per_task

F64 = npt.NDArray[np.float64]
_UNCOUNTED = 0.1  # of the run, until the ring is as full as it will be
_LOADER = -1  # who computes: a piece of work, by number, or the loader's process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """What would be seen once the ring is as full as it will be."""

    images_per_s: float  # that the device takes; with no demand, that the loader delivers
    stall_fraction: float  # of the time in which the device has nothing to do: [0, 1]
    occupancy: float  # batches that are ready and wait for their turn, mean over time: [0, slots]
    worker_busy: float  # of the workers' time, in which they have a task: [0, 1]


def forecast(
    costs_us: F64,
    *,
    workers: int,
    cores: float,
    slots: int,
    batch_size: int,
    demand: float | None,
    loader_us_per_image: float = 0.0,
    waits_us: F64 | None = None,
    bytes_per_image: F64 | None = None,
    disk_mb_per_s: float | None = None,
    overlapped: bool = False,
    images: int = 20_000,
    seed: int = 0,
) -> Forecast:
    """Run ``images`` pictures, whose costs are those of a sample, in a random order anew each time it is used up.

    ``costs_us``: float64 [P], CPU microseconds of P pictures in a worker. ``waits_us``: float64 [P], for how long a
    worker waits for each, using no core. ``bytes_per_image``: float64 [P], read through ``disk_mb_per_s`` (10^6
    bytes/s); a read ends when its wait is over and its bytes are there. ``cores``: what workers and loader have
    together, which may be a part of one. ``loader_us_per_image``: CPU time of the loader's own process, spent between
    being asked for a batch and handing it out. ``demand``: images/s; None takes batches as fast as they come, and
    then stands idle all the time. ``overlapped``: the next batch is asked for when the device begins with this one
    (Feed, on an accelerator); else when it is done with it (a CPU, and the sim device).

    Raises ConfigError for what makes no sense.
    """
    for name, value in (("workers", workers), ("slots", slots), ("batch_size", batch_size), ("images", images)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, was {value}")
    for name, limit in (("cores", cores), ("demand", demand), ("disk_mb_per_s", disk_mb_per_s)):
        if limit is not None and not limit > 0:
            raise ConfigError(f"{name} must be above 0, was {limit}")
    if not len(costs_us) or not costs_us.mean() > 0:
        raise ConfigError("costs_us must hold at least 1 picture, and take time")
    batches = max(-(-images // batch_size), 4 * slots)
    uncounted = max(slots, round(_UNCOUNTED * batches))
    picked = _pick(len(costs_us), (batches + slots) * batch_size, seed)
    rows = rows_per_task(batch_size=batch_size, slots=slots, workers=workers)

    begins = np.arange(0, batch_size, rows)  # of the tasks of a batch
    work_us, wait_us, pipe_us = costs_us[picked], np.zeros(0), np.zeros(0)
    if waits_us is not None or disk_mb_per_s:  # each picture is read, then decoded
        wait_us = np.zeros(len(picked)) if waits_us is None else waits_us[picked]
        pipe_us = (
            bytes_per_image[picked] / disk_mb_per_s if disk_mb_per_s and bytes_per_image is not None else 0 * wait_us
        )
    else:  # nothing happens within a task
        work_us, begins = np.add.reduceat(work_us.reshape(-1, batch_size), begins, axis=1).ravel(), begins // rows
    run = _Run(
        work_us=work_us.tolist(),
        wait_us=wait_us.tolist(),
        pipe_us=pipe_us.tolist(),
        begins=begins.tolist(),
        batches=batches + slots,
        workers=workers,
        cores=cores,
        slots=slots,
        loader_us=loader_us_per_image * batch_size,
        step_us=batch_size / demand * 1e6 if demand else 0.0,
        overlapped=overlapped,
    )
    run.until(uncounted)
    start = run.totals()
    run.until(batches)
    elapsed_us, stalled_us, simulated_us, occupied, worked_us = np.subtract(run.totals(), start).tolist()
    return Forecast(
        images_per_s=(batches - uncounted) * batch_size / elapsed_us * 1e6,
        stall_fraction=stalled_us / elapsed_us,
        occupancy=occupied / simulated_us,
        worker_busy=worked_us / simulated_us / workers,
    )


def _pick(pictures: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """``count`` numbers below ``pictures``: one random order behind the other, so that the mean is the sample's."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(pictures) for _ in range(-(-count // pictures))])[:count]


class _Run:
    """The state between two events. Times are microseconds.

    ``work_us``, ``wait_us`` and ``pipe_us`` are of pieces, in order: what a worker does without looking up. A task of a
    batch begins with the pieces ``begins`` and has all up to the next one's. Without ``wait_us`` nobody reads.
    """

    def __init__(
        self,
        *,
        work_us: list[float],
        wait_us: list[float],
        pipe_us: list[float],
        begins: list[int],
        batches: int,
        workers: int,
        cores: float,
        slots: int,
        loader_us: float,
        step_us: float,
        overlapped: bool,
    ):
        self._work_us, self._wait_us, self._pipe_us = work_us, wait_us, pipe_us
        self._tasks, self._cores, self._workers = len(begins), cores, workers
        self._pieces = len(work_us) // batches  # of a batch
        self._begins = [batch * self._pieces + piece for batch in range(batches) for piece in begins]
        self._follows = bytearray(b"\x01" * (len(work_us) + 1))  # whether a piece is of the same task as that before
        for piece in (*self._begins, len(work_us)):
            self._follows[piece] = 0
        self._loader_us, self._step_us, self._overlapped = loader_us, step_us, overlapped
        self._now = 0.0
        self._reading: list[tuple[float, int]] = []  # when it ends, whose
        self._pipe_free = 0.0  # when the disk has delivered all that was asked of it
        # Whoever computes gets the same share, so one clock, which runs at that share, tells when each is done.
        self._shared = 0.0
        self._computing: list[tuple[float, int]] = []  # the shared clock when it ends, whose
        self._free, self._idle = slots, workers
        self._missing = [len(begins)] * batches  # tasks of each batch that are not done
        self._sent = self._taken = self._done = 0  # tasks on the queue so far, taken from it, answered
        self._seen = 0  # of the answers, what the loader has read: it does so when it is asked for a batch
        self._handed_out = 0
        self._asks_at = 0.0  # infinite while the device's side waits for a batch
        self._loader_works = False
        self._due = 0.0  # when the device will be done with what it has
        self._stalled = self._occupied = self._worked = 0.0
        self._ready = 0

    def totals(self) -> tuple[float, float, float, float, float]:
        """When the device will be done with what it has, and its idle time; the time now, and until now the time
        integrals of ready batches and of workers with a task.
        """
        return self._due, self._stalled, self._now, self._occupied, self._worked

    def until(self, batches: int) -> None:
        """Go on until so many batches have been handed out."""
        while self._handed_out < batches:
            self._step()

    def _step(self) -> None:
        """Go to the next event: a read ends, a computation ends, or a batch is asked for."""
        share = min(1.0, self._cores / len(self._computing)) if self._computing else 1.0
        computed = self._now + (self._computing[0][0] - self._shared) / share if self._computing else math.inf
        read = self._reading[0][0] if self._reading else math.inf
        then = min(computed, read, self._asks_at)
        self._occupied += (then - self._now) * self._ready
        self._worked += (then - self._now) * (self._workers - self._idle)
        self._shared += (then - self._now) * share
        self._now = then
        if then == computed:
            self._shared, who = heapq.heappop(self._computing)
            self._computed(who)
        elif then == read:
            piece = heapq.heappop(self._reading)[1]
            self._compute(self._work_us[piece], piece)
        else:
            self._ask()

    def _compute(self, work_us: float, who: int) -> None:
        heapq.heappush(self._computing, (self._shared + work_us, who))

    def _computed(self, who: int) -> None:
        if who == _LOADER:
            self._loader_works = False
        elif self._follows[who + 1]:
            self._begin(who + 1)
            return
        else:
            self._done += 1
            self._idle += 1
            batch = who // self._pieces
            self._missing[batch] -= 1
            self._ready += not self._missing[batch]
            self._take()
        self._hand_out()

    def _ask(self) -> None:
        """The batch before is given back, its slot filled again, and the loader's process gets to work."""
        self._asks_at = math.inf
        self._free += self._handed_out > 0
        while self._free and self._sent - self._seen < DISPATCH_BELOW:
            self._free -= 1
            self._sent += self._tasks
        self._take()
        if self._loader_us:
            self._loader_works = True
            self._compute(self._loader_us, _LOADER)
        self._hand_out()

    def _take(self) -> None:
        """Who is free takes the next task."""
        while self._idle and self._taken < self._sent:
            self._idle -= 1
            self._begin(self._begins[self._taken])
            self._taken += 1

    def _begin(self, piece: int) -> None:
        if self._wait_us:
            self._pipe_free = max(self._now, self._pipe_free) + self._pipe_us[piece]
            heapq.heappush(self._reading, (max(self._now + self._wait_us[piece], self._pipe_free), piece))
        else:
            self._compute(self._work_us[piece], piece)

    def _hand_out(self) -> None:
        """If a batch was asked for and is there."""
        if self._asks_at < math.inf or self._loader_works or self._missing[self._handed_out]:
            return
        self._handed_out += 1
        self._ready -= 1
        self._seen = self._done
        self._stalled += max(0.0, self._now - self._due)
        begins = max(self._now, self._due)
        self._due = begins + self._step_us
        self._asks_at = begins if self._overlapped else self._due
