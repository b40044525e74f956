"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write beside ``path`` under a temporary name; on leaving, flush to the disk and rename.

    After a kill at any moment ``path`` holds its old content or its new one, never a part. An error removes the
    temporary file; a kill leaves it, with a name that no reader takes for a shard, and the next writer replaces it.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sha256_of(path: Path) -> str:
    """The hash of a file's content, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
