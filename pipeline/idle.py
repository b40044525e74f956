"""How long a device stands idle between two steps: by its own clock, for the host runs ahead of it.

What the host waits for a batch is not what the device waits: it may have most of the step before still to do. Its own
clock tells, through events that are read when it has come past them; nobody waits for it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from .device import Device

_READ_AT_LEAST_EVERY = 256  # gaps


class IdleTime:
    """The gaps in a device's compute stream that it spends without a batch."""

    def __init__(self, device: Device):
        self._device = device
        self._since: Any = None
        self._total_ms = 0.0
        self._gaps: deque[tuple[Any, Any]] = deque()  # begin and end of those that are not read yet, oldest first

    def begin(self) -> None:
        """A step has been queued, and no batch for another."""
        self._since = self._mark()

    def end(self) -> None:
        """What is queued next is a step."""
        if self._since is None:
            return
        self._gaps.append((self._since, self._mark()))
        self._since = None
        if len(self._gaps) > _READ_AT_LEAST_EVERY:
            self.total_s()

    def total_s(self) -> float:
        """Seconds of all gaps that the device has come past.

        Not for every step: torch_npu hands all that is queued on the host over to the card before it reads an event.
        """
        while self._gaps and self._gaps[0][1].query():
            begin, end = self._gaps.popleft()
            self._total_ms += begin.elapsed_time(end)
        return self._total_ms / 1e3

    def _mark(self) -> Any:
        event = self._device.new_event(timed=True)
        event.record(self._device.current_stream())
        return event
