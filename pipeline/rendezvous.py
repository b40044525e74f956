"""Ranks that make one folder of shards together. They meet through small files in it: no network, no torch.

Each rank says hello with a token of its own. Rank 0, who has taken the folder, waits for all of them and answers with
the token of this run and the hellos it has heard: so no file of an earlier run is mistaken for one of this. A rank that
fails says so in a file that the others look at, and they end too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import DataError
from .files import atomic_write

_RUN, _FAILED = ".run.json", ".failed.json"
_COME_WITHIN_S = 600.0  # a launcher starts all ranks at once
_LOOK_EVERY_S = 0.5
_SAY_EVERY_S = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """One rank's side. Alone (``world_size`` 1) it leaves no file and waits for nobody."""

    folder: Path
    rank: int
    world_size: int
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))

    def meet(self) -> str:
        """The run's token, when all ranks are there. Rank 0 calls it when the folder is taken.

        Raises DataError where one does not come within ten minutes.
        """
        if self.world_size == 1:
            return self.token
        others = range(1, self.world_size)
        if self.rank == 0:
            for name in (_RUN, _FAILED, *map(_hello, others)):
                (self.folder / name).unlink(missing_ok=True)  # an earlier run's; who is there says hello again
            self._wait(
                lambda: all((self.folder / _hello(rank)).exists() for rank in others), "the other ranks to start"
            )
            heard = {str(rank): self._read(_hello(rank)).get("token") for rank in others}
            self._write(_RUN, {"run": self.token, "heard": heard})
            return self.token
        self._wait(self._is_heard, "rank 0 to take the folder")
        return str(self._read(_RUN)["run"])

    def _is_heard(self) -> bool:
        if self._read(_RUN).get("heard", {}).get(str(self.rank)) == self.token:
            return True
        if self.folder.is_dir() and self._read(_hello(self.rank)).get("token") != self.token:
            self._write(_hello(self.rank), {"token": self.token})
        return False

    def fail(self, run: str, error: BaseException) -> None:
        """Tell the others."""
        if self.world_size > 1 and self._failure(run) is None:
            reason = str(error) or type(error).__name__
            with contextlib.suppress(DataError):  # where even that cannot be written, the error itself says why
                self._write(_FAILED, {"run": run, "rank": self.rank, "error": reason})

    def check(self, run: str) -> None:
        """Raises DataError where another rank has failed."""
        failed = self._failure(run) if self.world_size > 1 else None
        if failed is not None and failed["rank"] != self.rank:
            raise DataError(f"rank {failed['rank']} has failed, so rank {self.rank} ends: {failed['error']}")

    def finish(self, run: str) -> None:
        """Say that this rank's shards are all there."""
        if self.rank:
            self._write(_hello(self.rank), {"token": self.token, "finished": run})

    def wait_for(self, run: str, rank: int, there: Callable[[], bool], what: str) -> None:
        """Until ``there()``: a file of another rank. Raises DataError where a rank fails, or has ended without it."""

        def is_there() -> bool:
            self.check(run)
            finished = rank and self._read(_hello(rank)).get("finished") == run
            if there():
                return True
            if finished:
                raise DataError(f"rank {rank} has ended without {what}: does it see the same SRC?")
            return False

        self._wait(is_there, f"{what} of rank {rank}", within_s=float("inf"))

    def leave(self) -> None:
        """Remove all that was left for one another (rank 0, at the end)."""
        for name in (_RUN, _FAILED, *map(_hello, range(1, self.world_size))):
            (self.folder / name).unlink(missing_ok=True)

    def _failure(self, run: str) -> dict[str, Any] | None:
        failed = self._read(_FAILED)
        return failed if failed.get("run") == run else None

    def _wait(self, until: Callable[[], bool], what: str, within_s: float = _COME_WITHIN_S) -> None:
        start = said = time.monotonic()
        while not until():
            now = time.monotonic()
            if now - start > within_s:
                who = f"rank {self.rank} of {self.world_size} (RANK and WORLD_SIZE)"
                raise DataError(f"{who} has waited {within_s:.0f} s for {what}")
            if now - said > _SAY_EVERY_S:
                said = now
                print(f"rank {self.rank}: waiting for {what}, {now - start:.0f} s", file=sys.stderr, flush=True)
            time.sleep(_LOOK_EVERY_S)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / name).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def _write(self, name: str, content: dict[str, object]) -> None:
        with atomic_write(self.folder / name) as file:
            file.write(json.dumps(content).encode())


def _hello(rank: int) -> str:
    return f".rank-{rank}.json"
