"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import DataError


class WriteError(DataError):
    """A file cannot be written: the disk is full, or worse."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write beside ``path`` under a temporary name; on leaving, flush to the disk and rename.

    After a kill at any moment ``path`` holds its old content or its new one, never a part. An error removes the
    temporary file; a kill leaves it, with a name that no reader takes for a shard, and the next writer replaces it.
    Raises WriteError for what the system says against it, such as a full disk.
    """
    temporary = partial_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def partial_name(path: Path) -> Path:
    """Where ``atomic_write`` writes until the file is whole."""
    return path.with_name(f".{path.name}.partial")


def read_regular(path: str) -> bytes:
    """All bytes of a file. Raises OSError; and never waits for what is no file, such as a pipe."""
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def printable(name: str) -> str:
    """A file's name as any terminal and any JSON reader takes it: bytes that are no UTF-8 are written \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def sha256_of(path: Path) -> str:
    """The hash of a file's content, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
