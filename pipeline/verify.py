"""Is a shard the one that the manifest describes? Its head when it is opened, all of it when somebody asks."""

from __future__ import annotations

import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .console import Progress
from .errors import DataError
from .files import sha256_of
from .manifest import Manifest, ShardInfo

_AGAIN = "copy it again, or delete it and make it again with make_shards.py --resume"
_MAGIC_AT, _MAGIC = 257, b"ustar"


def check_head(path: Path, info: ShardInfo) -> None:
    """The first header of a tar: one read of 512 bytes. Raises DataError where it is not that of a picture."""
    if not info.samples:
        return  # all its pictures were left out
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.pread(fd, tarfile.BLOCKSIZE, 0)
        finally:
            os.close(fd)
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror}") from error
    try:
        member = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")  # checks the checksum
    except tarfile.TarError as error:
        raise DataError(f"shard {path} does not begin as a tar does ({error}): {_AGAIN}") from error
    if not head.startswith(_MAGIC, _MAGIC_AT) or not member.isreg() or not member.name.endswith(".jpg"):
        raise DataError(f"shard {path} begins with {member.name!r}, not with a picture: {_AGAIN}")


def verify_shards(manifest: Manifest, split: str, workers: int) -> None:
    """Read every byte of a split's shards. Raises DataError with all shards that are not what they were."""
    infos = manifest.splits[split]

    def difference(info: ShardInfo) -> str:
        path = manifest.root / info.name
        try:
            got = sha256_of(path)
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        return "" if got == info.sha256 else f"{path}: want sha256 {info.sha256}, got {got}"

    wrong: list[str] = []
    # Threads: hashing and reading hold no lock of Python's.
    with Progress(f"verify {split}", len(infos), "shards") as progress, ThreadPoolExecutor(workers) as threads:
        for done, line in enumerate(threads.map(difference, infos), start=1):
            progress.update(done)
            wrong += [line] if line else []
    if wrong:
        listed = "\n  ".join(wrong)
        raise DataError(
            f"{len(wrong)} of {len(infos)} shards {'are' if len(wrong) > 1 else 'is'} not what the manifest says; "
            f"copy again, or delete and make again with make_shards.py --resume:\n  {listed}"
        )
