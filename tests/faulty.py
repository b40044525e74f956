"""Folders whose pictures end or stall the process that reads them. Decode processes import this: nothing heavy here."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from pipeline.folder import Folder
from pipeline.shards import Shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultyFolder(Folder):
    """An ImageNet folder with one picture that nobody reads unharmed."""

    faulty: int  # its number

    def read(self, index: int) -> bytes:
        if index == self.faulty:
            self.fail()
        return super().read(index)

    def fail(self) -> None:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadly(FaultyFolder):
    """Its picture kills with ``signal``; with 0 the process exits by itself."""

    signal: int

    def fail(self) -> None:
        if not self.signal:
            os._exit(3)
        os.kill(os.getpid(), self.signal)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stalling(FaultyFolder):
    """Its picture is read after ten minutes, but for the second time at once."""

    been_here: Path

    def fail(self) -> None:
        if not self.been_here.exists():
            self.been_here.touch()
            self.wait_for_the_storage()

    def wait_for_the_storage(self) -> None:
        time.sleep(600)


@dataclasses.dataclass(kw_only=True)
class SlowShards(Shards):
    """Shards on a disk that gives each worker so many bytes a second, and of which nothing stays in memory."""

    bytes_per_s: float

    def read_into(self, data: bytearray, shard: int, offset: int) -> None:
        super().read_into(data, shard, offset)
        time.sleep(len(data) / self.bytes_per_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow(Folder):
    """A folder on a disk that takes its time over each picture."""

    delay_s: float

    def read(self, index: int) -> bytes:
        time.sleep(self.delay_s)
        return super().read(index)


def faulty(kind: type[Folder], folder: Folder, **fields: Any) -> Folder:
    """A copy of a folder with a fault."""
    return kind(**vars(folder), **fields)
