"""What a pass over a split prints: the original recipe's lines, whose users' tools parse them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

WARM_UP_STEPS = 10  # left out of FPS@all, as in the original
_READ_AT_LEAST_EVERY = 2**22  # samples


class Sums(NamedTuple):
    """Over some samples of an epoch, of all ranks."""

    samples: int = 0
    loss: float = 0.0
    correct1: float = 0.0
    correct5: float = 0.0


NOTHING = Sums()


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
        quiet: bool = False,
        behind: int = 0,
        sums: Sums = NOTHING,
    ):
        """``prefix`` begins each line; ``synchronize`` waits for the device; ``total`` sums over the ranks, in place.

        A ``quiet`` one prints nothing, but takes part in the sums. ``behind``: how many of the ``steps`` an interrupted
        run has taken, and ``sums`` what it has seen; speeds are of this run's own steps.
        """
        self.prefix, self.steps, self.print_freq = prefix, steps, print_freq
        self.behind = behind
        self.samples = 0  # of all ranks, since the log was opened
        self._synchronize, self._total, self._quiet = synchronize, total, quiet
        # Loss, correct at 1, at 5: of the steps since the last reading (float32 counts exactly up to 2**24), and of the
        # last step. What was read is summed on the host, in float64, which accelerators lack.
        self._recent = torch.zeros(3, device=device)
        self._last = self._recent
        self._sums = sums
        self._read = 0  # of the samples, how many are in the sums
        self._wait_s = self._last_wait_s = 0.0
        self._live = Live(f"{prefix} ", quiet)
        self._done = 0
        self._begin = self._end = time.perf_counter()
        self._measured_from: tuple[int, float] = (0, self._begin)  # samples and time at the end of the warm-up
        self._line_at: tuple[int, float] = (0, self._begin)  # step and time of the last line

    def step(
        self, labels: Tensor, loss: Tensor, logits_NK: Tensor, *, wait_s: float, global_size: int
    ) -> dict[str, float] | None:
        """Take note of a step; every ``print_freq`` steps print the original's line, and return its numbers.

        Args:
            labels: int64 [N]. loss: [], the mean over the N. logits_NK: [N, K]. N may be 0 where there are others.
            wait_s: the wait for the data. global_size: samples of all ranks in this step.
        """
        n = len(labels)
        if n:
            top = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices == labels[:, None]
            self._last = torch.stack((loss.float() * n, top[:, 0].sum().float(), top.any(1).sum().float()))
        else:
            self._last = torch.zeros_like(self._recent)
        self._recent += self._last
        self.samples += global_size
        self._wait_s += wait_s
        self._last_wait_s = wait_s
        self._done += 1
        if self._done == min(WARM_UP_STEPS, (self.steps - self.behind) // 2):
            self._synchronize()
            self._measured_from = (self.samples, time.perf_counter())
        line = None
        if (self.number - 1) % self.print_freq == 0 or self.number == self.steps:
            line = self._print(global_size)
        elif self.samples - self._read > _READ_AT_LEAST_EVERY:
            self._read_sums()
        self._live.show(
            self._done, self.steps - self.behind, self.samples, time.perf_counter() - self._begin, self._wait_s
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
        recent, last = self._total(torch.stack((self._recent, self._last))).tolist()
        self._recent.zero_()
        new = (self.samples - self._read, *recent)
        self._sums = Sums(*(a + b for a, b in zip(self._sums, new, strict=True)))
        self._read = self.samples
        result: list[float] = last
        return result

    def _print(self, n: int) -> dict[str, float]:
        loss, acc1, acc5 = (value / n for value in self._read_sums())
        self._end = time.perf_counter()
        mean = self.averages()
        step_s = (self._end - self._line_at[1]) / max(1, self._done - self._line_at[0])
        self._line_at = (self._done, self._end)
        width = len(str(self.steps))
        fields = (
            f"{self.prefix}[{self.number - 1:{width}d}/{self.steps}]",
            f"Time {step_s:6.3f} ({mean['step_s']:6.3f})",
            f"Data {self._last_wait_s:6.3f} ({mean['data_wait_s']:6.3f})",
            f"Loss {loss:.4e} ({mean['loss']:.4e})",
            f"Acc@1 {100 * acc1:6.2f} ({mean['acc1']:6.2f})",
            f"Acc@5 {100 * acc5:6.2f} ({mean['acc5']:6.2f})",
        )
        if not self._quiet:
            self._live.clear()
            print("\t".join(fields), flush=True)
        return {"step": self.number - 1, "step_loss": loss, **mean}

    def averages(self) -> dict[str, float]:
        """Means up to the last line, which every pass ends with, over all ranks.

        loss, acc1 and acc5 in percent, step_s and data_wait_s (this rank's) in seconds a step, fps in images/s.
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
        }

    def images_per_s(self) -> float:
        """FPS@all: pictures over time, the first ten steps left out (half of them where there are few)."""
        samples, since = self._measured_from
        return (self.samples - samples) / max(self._end - since, 1e-9)


class Live:
    """One line at the foot of a terminal that is always up to date; nothing where there is no terminal."""

    def __init__(self, prefix: str, quiet: bool):
        self._prefix = prefix
        self._on = sys.stdout.isatty() and not quiet
        self._shown = 0.0

    def show(self, done: int, steps: int, samples: int, elapsed_s: float, wait_s: float) -> None:
        now = time.monotonic()
        if not self._on or now - self._shown < 0.2:
            return
        self._shown = now
        left_s = elapsed_s / done * (steps - done)
        text = (
            f"{self._prefix}{done}/{steps}  {samples / elapsed_s:,.1f} img/s  "
            f"waiting for data {100 * wait_s / elapsed_s:.0f} %  {int(left_s) // 60}:{int(left_s) % 60:02d} left"
        )
        print(f"\r{text}\x1b[K", end="" if done < steps else "\r\x1b[K", flush=True)

    def clear(self) -> None:
        if self._on:
            print("\r\x1b[K", end="", flush=True)
