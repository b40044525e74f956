"""The line at the foot of a terminal that says how training goes, from one log line to the next."""

from __future__ import annotations

import os
import sys
import time
from collections import deque

_REDRAW_EVERY_S = 0.2
_WINDOW_S = 5.0  # long enough to be read, short enough to show a change


class Live:
    """One line that is always up to date; nothing where there is no terminal. Without colour, and cut to the width."""

    def __init__(self, *, quiet: bool = False):
        self._on = sys.stdout.isatty() and not quiet
        self._prefix = ""
        self._begin = self._drawn_at = 0.0
        self._recent: deque[tuple[float, int, float]] = deque()  # time, samples, stall_s: at the redraws of the window

    def open(self, prefix: str) -> None:
        """A pass over a split begins. ``prefix`` begins the line."""
        self._prefix = prefix.rstrip()
        self._begin = self._drawn_at = time.perf_counter()
        self._recent = deque([(self._begin, 0, 0.0)])

    def due(self) -> bool:
        """Whether the line is old enough to be drawn anew."""
        return self._on and time.perf_counter() - self._drawn_at >= _REDRAW_EVERY_S

    def draw(
        self,
        *,
        done: int,
        behind: int,
        steps: int,
        later_steps: int,
        samples: int,
        stall_s: float,
        ready: int,
        slots: int,
        loss: float | None,
    ) -> None:
        """Draw it.

        Args:
            done: steps of this pass. behind: those that an interrupted run took of it. steps: of the pass in all.
            later_steps: of the passes that follow. samples: since ``open``, of all ranks.
            stall_s: how long this rank's device has waited for the host since ``open``.
            ready: batches that wait in the ring of so many ``slots``, two of which at least are in use: one is with the
                trainer, and one it has just given back is being filled. loss: the last one that was read.
        """
        now = self._drawn_at = time.perf_counter()
        self._recent.append((now, samples, stall_s))
        while len(self._recent) > 2 and now - self._recent[1][0] >= _WINDOW_S:
            self._recent.popleft()
        since, samples_then, stall_then_s = self._recent[0]
        span_s = max(now - since, 1e-9)
        step_s = (now - self._begin) / done
        left = steps - behind - done
        text = (
            f"{self._prefix} {behind + done}/{steps}  FPS {(samples - samples_then) / span_s:,.1f}  "
            f"stall {100 * (stall_s - stall_then_s) / span_s:.0f} %  queue {ready}/{slots}"
            f"{'' if loss is None else f'  loss {loss:.4f}'}  ETA {_clock(left * step_s)}"
            f"{f', of the run {_clock((left + later_steps) * step_s)}' if later_steps else ''}"
        )
        width = os.get_terminal_size(sys.stdout.fileno()).columns or 80  # 0: a terminal that does not tell
        # Some terminals wrap as soon as the last column is written.
        print(f"\r{text[: width - 1]}\x1b[K", end="", flush=True)

    def clear(self) -> None:
        """Take it away, for something that stays to be printed."""
        if self._on:
            print("\r\x1b[K", end="", flush=True)


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
