"""When a step is to be followed by something else: by a checkpoint, or by the end because somebody asked for it."""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from .ranks import Agreement

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_S = 1.0  # Ctrl-C reaches a process from the terminal, and again from whoever has started it


@dataclasses.dataclass(frozen=True)
class Every:
    """How often a checkpoint is due: after so many steps, or minutes; neither: at the end of an epoch only."""

    steps: int = 0
    minutes: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Every:
        """``500`` (steps), ``10m`` (minutes), ``0``. Raises ValueError."""
        found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)m", text)
        if found is None:
            raise ValueError(f"want a number of steps, or minutes such as 10m, got {text!r}")
        return cls(steps=int(found[1] or 0), minutes=float(found[2] or 0))

    def __str__(self) -> str:
        return f"{self.minutes:g}m" if self.minutes else str(self.steps)


class Stopped(Exception):  # noqa: N818 - not an error
    """Training is asked to end. The step is finished; whoever catches this saves."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.code = 128 + signal_number


class Wish(NamedTuple):
    """What is to follow a step, on all ranks alike."""

    save: bool
    stop: int  # the signal that asks for it, or 0


class Interruptions:
    """Listens for SIGINT and SIGTERM while it is entered. One more of them, later than a second, ends it at once."""

    def __init__(self, every: Every, agreement: Agreement):
        self._every = every
        self._agreement = agreement
        self._signal, self._signal_at = 0, 0.0
        self._saved_at = time.monotonic()
        self._before: dict[int, Any] = {}

    def after_step(self, step: int = 0) -> Wish:
        """What is to follow. ``step``: the number of the epoch's steps that are done; 0 where nothing can be saved."""
        minutes = (time.monotonic() - self._saved_at) / 60
        by_clock = 0 < self._every.minutes <= minutes
        stop, by_clock_somewhere = self._agreement.largest([self._signal, int(by_clock)])
        by_steps = self._every.steps > 0 and step % self._every.steps == 0
        return Wish(save=step > 0 and (by_steps or bool(by_clock_somewhere)), stop=stop)

    def saved(self) -> None:
        """A checkpoint has been written: the clock starts anew."""
        self._saved_at = time.monotonic()

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._signal_at = number, now
        elif now - self._signal_at > _SAME_S:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def __enter__(self) -> Interruptions:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
