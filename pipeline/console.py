"""What the command-line tools share: how they end, and how they show progress."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from .errors import ConfigError, DataError

# Before torch loads: it would load an installed torch_npu by itself, and fail where CANN is not set up. Who wants npu
# gets it from the device table.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

_LINE_EVERY_S = 5.0
_REDRAW_EVERY_S = 0.1


def run_tool(name: str, main: Callable[[], int]) -> NoReturn:
    """Run a tool's ``main`` and exit: 2 for a wrong call, 1 for bad data, each with one line on stderr."""
    try:
        code = main()
        sys.stdout.flush()
    except ConfigError as error:
        code = fail(name, error, 2)
    except (DataError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `tool | head`: nobody is reading any more
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        else:
            code = fail(name, error, 1)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def fail(name: str, error: Exception, code: int) -> int:
    """Print the one line and hand back the exit code."""
    print(f"{name}: error: {error}", file=sys.stderr)
    return code


def at_least_one(text: str) -> int:
    """A flag's whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, was {text!r}")
    return int(text)


class Progress:
    """A bar on a terminal, one line every few seconds otherwise; on stderr, so that output can be piped."""

    def __init__(self, label: str, total: int, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self._terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def update(self, done: int) -> None:
        """Say that ``done`` of ``total`` are done; draws only now and then."""
        now = time.monotonic()
        if now - self._shown >= (_REDRAW_EVERY_S if self._terminal else _LINE_EVERY_S):
            self._shown = now
            self._draw(done, now - self._start)

    def _draw(self, done: int, elapsed_s: float) -> None:
        rate = done / elapsed_s if elapsed_s else 0.0
        left = f", {(self.total - done) / rate:.0f} s left" if rate and done < self.total else ""
        text = f"{self.label} {done:,}/{self.total:,} {self.unit}, {rate:,.0f}/s{left}"
        if self._terminal:
            width = 24
            filled = width * done // max(self.total, 1)
            print(f"\r[{'#' * filled}{'.' * (width - filled)}] {text}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
