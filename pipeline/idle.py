"""How long a device stands idle between two steps: by its own clock, for the host runs ahead of it.

What the host waits for a batch is not what the device waits: it may have most of the step before still to do. Its own
clock tells, through events that are read when it has come past them; nobody waits for it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from .device import Device


class IdleTime:
    """The gaps in a device's compute stream that it spends without a batch."""

    def __init__(self, device: Device):
        self._device = device
        self._since: Any = None
        self._gaps: deque[tuple[Any, Any]] = deque()  # begin and end of those that are not read yet, oldest first

    def begin(self) -> None:
        """A step has been queued, and no batch for another."""
        self._since = self._mark()

    def end(self) -> None:
        """What is queued next is a step."""
        if self._since is not None:
            self._gaps.append((self._since, self._mark()))

    def known_s(self) -> float:
        """Seconds of the gaps that the device has come past since this was asked last."""
        idle_ms = 0.0
        while self._gaps and self._gaps[0][1].query():
            begin, end = self._gaps.popleft()
            idle_ms += begin.elapsed_time(end)
        return idle_ms / 1e3

    def _mark(self) -> Any:
        event = self._device.new_event(timed=True)
        event.record(self._device.current_stream())
        return event
