"""What a pass over a split prints: the original recipe's lines, whose users' tools parse them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .live import Live
from .starvation import WARM_UP_STEPS, Span

_READ_AT_LEAST_EVERY = 2**22  # samples


class Sums(NamedTuple):
    """Over some samples of an epoch, of all ranks."""

    samples: int = 0
    loss: float = 0.0
    correct1: float = 0.0
    correct5: float = 0.0


NOTHING = Sums()


class Fed(Protocol):
    """A batch, as far as its log goes; N of its samples are this rank's, which may be none where there are others."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""

    @property
    def global_size(self) -> int:
        """Samples of all ranks."""

    @property
    def wait_s(self) -> float:
        """How long the trainer waited for it."""

    @property
    def ready(self) -> int:
        """Batches that waited behind it in the ring."""


class EpochLog:
    """One pass's numbers: summed on the device, read (and waited for) only when a line is due."""

    def __init__(
        self,
        prefix: str,
        *,
        steps: int,
        print_freq: int,
        device: torch.device,
        synchronize: Callable[[], None],
        total: Callable[[Tensor], Tensor] = lambda values: values,
        stall_s: Callable[[], float],
        rank: int = 0,
        world_size: int = 1,
        live: Live,
        slots: int,
        behind: int = 0,
        later_steps: int = 0,
        sums: Sums = NOTHING,
    ):
        """``prefix`` begins each line; ``synchronize`` waits for the device; ``total`` sums over the ranks, in place;
        ``stall_s`` tells how long this rank's device has waited for the host, ever.

        The first ``rank`` prints, the others take part in the sums. ``live``, of a loader with so many ``slots``, also
        tells when the ``later_steps`` of the run will be done. ``behind``: how many of the ``steps`` an interrupted run
        has taken, and ``sums`` what it has seen; speeds and stalls are of this run's own steps.
        """
        self.prefix, self.steps, self.print_freq = prefix, steps, print_freq
        self.behind, self.later_steps = behind, later_steps
        self.samples = 0  # of all ranks, since the log was opened
        self.recent = Span()  # the steps between the last two lines
        self._synchronize, self._total, self._rank = synchronize, total, rank
        # Loss, correct at 1, at 5: of the steps since the last reading (float32 counts exactly up to 2**24), and of the
        # last step. What was read is summed on the host, in float64, which accelerators lack.
        self._recent = torch.zeros(3, device=device)
        self._last = self._recent
        self._sums = sums
        self._read = 0  # of the samples, how many are in the sums
        self._wait_s = self._last_wait_s = 0.0
        self._stall_s = stall_s
        self._stall_at_begin_s = self._stall_read_s = stall_s()
        self._stalls_s = self._stalls_at_line_s = [0.0] * world_size
        self._ready = self._ready_at_line = 0
        self._loss: float | None = None
        self._live, self._slots = live, slots
        self._live.open(prefix)
        self._done = 0
        self._begin = self._end = time.perf_counter()
        self._measured_from: tuple[int, float] = (0, self._begin)  # samples and time at the end of the warm-up
        self._line_at: tuple[int, int, float] = (0, 0, self._begin)  # step, samples and time of the last line

    def step(self, batch: Fed, loss: Tensor, logits_NK: Tensor) -> dict[str, float] | None:
        """Take note of a step; every ``print_freq`` steps print the original's line, and return its numbers.

        Args:
            batch: N samples. loss: [], the mean over the N. logits_NK: [N, K].

        Returns:
            ``averages`` with the step's number, ``step_loss``, and of the steps since the last line: recent_fps in
            images/s of all ranks; recent_stall_fraction, as stall_fraction; recent_ready_batches, how many batches on
            average waited in this rank's ring when it took one: near 0 the host is the slower one.
        """
        labels = batch.labels
        n = len(labels)
        if n:
            top = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices == labels[:, None]
            self._last = torch.stack((loss.float() * n, top[:, 0].sum().float(), top.any(1).sum().float()))
        else:
            self._last = torch.zeros_like(self._recent)
        self._recent += self._last
        self.samples += batch.global_size
        self._wait_s += batch.wait_s
        self._last_wait_s = batch.wait_s
        self._ready += batch.ready
        self._done += 1
        if self._done == min(WARM_UP_STEPS, (self.steps - self.behind) // 2):
            self._synchronize()
            self._measured_from = (self.samples, time.perf_counter())
        line = None
        if (self.number - 1) % self.print_freq == 0 or self.number == self.steps:
            line = self._print(batch.global_size)
        elif self.samples - self._read > _READ_AT_LEAST_EVERY:
            self._read_sums()
        elif self._live.due():
            self._live.draw(
                done=self._done,
                behind=self.behind,
                steps=self.steps,
                later_steps=self.later_steps,
                samples=self.samples,
                stall_s=self._stall_s() - self._stall_at_begin_s,
                ready=batch.ready,
                slots=self._slots,
                loss=self._loss,
            )
        return line

    @property
    def number(self) -> int:
        """How many of the steps are done, with those of an interrupted run."""
        return self.behind + self._done

    def sums(self) -> Sums:
        """All that the epoch has had so far, an interrupted run's part with it. Waits for the device; a collective."""
        self._read_sums()
        return self._sums

    def _read_sums(self) -> list[float]:
        """Fetch what the device has summed, here the host waits for it; returns the last step's part."""
        stalls_s = [0.0] * len(self._stalls_s)  # each rank's in its own place: their sum is all of them
        stall_s = self._stall_s()
        stalls_s[self._rank] = stall_s - self._stall_read_s
        values = torch.cat((self._recent, self._last, self._recent.new_tensor(stalls_s)))
        result: list[Any] = self._total(values).tolist()
        self._recent.zero_()
        new = (self.samples - self._read, *result[:3])
        self._sums = Sums(*(a + b for a, b in zip(self._sums, new, strict=True)))
        self._read = self.samples
        self._stalls_s = [a + b for a, b in zip(self._stalls_s, result[6:], strict=True)]
        self._stall_read_s = stall_s
        return result[3:6]

    def _print(self, n: int) -> dict[str, float]:
        loss, acc1, acc5 = (value / n for value in self._read_sums())
        self._end = time.perf_counter()
        self._loss = loss
        mean = self.averages()
        recent = self.recent = self._since_last_line()
        step_s = recent.wall_s / recent.steps
        width = len(str(self.steps))
        fields = (
            f"{self.prefix}[{self.number - 1:{width}d}/{self.steps}]",
            f"Time {step_s:6.3f} ({mean['step_s']:6.3f})",
            f"Data {self._last_wait_s:6.3f} ({mean['data_wait_s']:6.3f})",
            f"Loss {loss:.4e} ({mean['loss']:.4e})",
            f"Acc@1 {100 * acc1:6.2f} ({mean['acc1']:6.2f})",
            f"Acc@5 {100 * acc5:6.2f} ({mean['acc5']:6.2f})",
        )
        if self._rank == 0:
            self._live.clear()
            print("\t".join(fields), flush=True)
        return {
            "step": self.number - 1,
            "step_loss": loss,
            **mean,
            "recent_fps": recent.images_per_s,
            "recent_stall_fraction": recent.stall_fraction,
            "recent_ready_batches": recent.ready / recent.steps,
        }

    def _since_last_line(self) -> Span:
        done, samples, at = self._line_at
        stalls_s = (now - then for now, then in zip(self._stalls_s, self._stalls_at_line_s, strict=True))
        span = Span(
            steps=self._done - done,
            wall_s=self._end - at,
            stall_s=max(stalls_s),
            images=self.samples - samples,
            ready=self._ready - self._ready_at_line,
        )
        self._line_at = (self._done, self.samples, self._end)
        self._stalls_at_line_s, self._ready_at_line = self._stalls_s, self._ready
        return span

    def averages(self) -> dict[str, float]:
        """Means up to the last line, which every pass ends with, over all ranks.

        loss, acc1 and acc5 in percent, step_s and data_wait_s (this rank's) in seconds a step, fps in images/s.
        stall_fraction is the share of the time in which the device had nothing to do because the host had no batch for
        it, of the rank whose device stood still longest: the others wait for it, so its stall is the run's.
        """
        samples, *sums = self._sums
        loss, correct1, correct5 = (value / max(1, samples) for value in sums)
        elapsed_s = max(self._end - self._begin, 1e-9)
        return {
            "loss": loss,
            "acc1": 100 * correct1,
            "acc5": 100 * correct5,
            "step_s": elapsed_s / max(1, self._done),
            "data_wait_s": self._wait_s / max(1, self._done),
            "fps": self._read / elapsed_s,
            "stall_fraction": max(self._stalls_s) / elapsed_s,
        }

    def images_per_s(self) -> float:
        """FPS@all: pictures over time, the first ten steps left out (half of them where there are few)."""
        samples, since = self._measured_from
        return (self.samples - samples) / max(self._end - since, 1e-9)
