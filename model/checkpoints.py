"""The checkpoints that a run leaves in its folder: numbered, hashed, the last few kept, written while training goes on.

``checkpoint-000042-<hash>.pth.tar`` is the 42nd; the hash in its name is that of its content, so a file is whole or can
be told from one that is. ``checkpoint.pth.tar`` and ``model_best.pth.tar`` are links to the last and to the best.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .checkpoint import NUMBERED, CheckpointError, is_whole

LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"


class Checkpoints:
    """Writes a run's checkpoints, one at a time, in a thread. Close it: what is being written is then finished."""

    def __init__(self, directory: Path, *, keep: int):
        """``keep``: how many stay there; the best one stays besides."""
        self._directory = directory
        self._keep = keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self.last: Path | None = None  # the last one that is known to be whole
        self.failed: str | None = None  # what went wrong with the one after it

    def save(self, state: dict[str, Any], *, is_best: bool) -> None:
        """Begin to write ``state``, whose tensors are on the host and belong to us now. Returns at once, but waits for
        the one before.

        What the disk refuses is noted in ``failed``. Raises CheckpointError where the one before was not written
        because its weights were not finite.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, state, is_best)

    def wait(self) -> None:
        """Wait until all is written. Raises CheckpointError as ``save`` does."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            self.last = writing.result()
            self.failed = None
        except OSError as error:  # a full disk may have room again, the next time
            self.failed = f"a checkpoint could not be written to {self._directory}: {error.strerror or error}"
        except CheckpointError as error:
            raise CheckpointError(f"{error}; the last good checkpoint is {self.last or 'none'}") from None

    def close(self) -> None:
        """Finish what is being written."""
        self._writer.shutdown()

    def _write(self, state: dict[str, Any], is_best: bool) -> Path:
        for value in tree_leaves(state):
            if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                raise CheckpointError(
                    f"training has diverged: in epoch {state['epoch']} the weights are not finite any more, and were "
                    "not saved"
                )
        temporary = self._directory / ".checkpoint.partial"
        with open(temporary, "wb") as file:
            hashed = _HashedFile(file)
            torch.save(state, hashed)  # type: ignore[arg-type]  # all that it needs is write
            file.flush()
            os.fsync(file.fileno())
        numbers = [number for number, _ in numbered(self._directory)]
        path = self._directory / f"checkpoint-{max(numbers, default=0) + 1:06d}-{hashed.digest()[:16]}.pth.tar"
        os.replace(temporary, path)
        _link(self._directory / LAST, path)
        if is_best:
            _link(self._directory / BEST, path)
        _sync(self._directory)
        self._remove_old()
        return path

    def _remove_old(self) -> None:
        best = (self._directory / BEST).resolve()
        for _, path in numbered(self._directory)[: -self._keep]:
            if path.resolve() != best:
                path.unlink()


class _HashedFile:
    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()


def numbered(directory: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder with their numbers, oldest first."""
    found = ((NUMBERED.fullmatch(name), directory / name) for name in os.listdir(directory))
    return sorted((int(match[1]), path) for match, path in found if match)


def newest_whole(directory: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint in a folder that is whole. ``say`` is told, in one line each, of those that are not."""
    for _, path in reversed(numbered(directory)):
        if is_whole(path):
            return path
        say(f"note: {path} is damaged (its content has not the hash in its name): the one before it is taken")
    last = directory / LAST  # not a link: written by an earlier version, or by the original
    return last if last.exists() else None


def set_aside(directory: Path, *names: str) -> Path | None:
    """Move what an earlier run left in ``directory`` to a folder ``earlier-N`` in it; returns it, if need was."""
    candidates = [*(path for _, path in numbered(directory)), *(directory / name for name in (LAST, BEST, *names))]
    left = [path for path in candidates if os.path.lexists(path)]
    if not left:
        return None
    number = 1
    while (directory / f"earlier-{number}").exists():
        number += 1
    earlier = directory / f"earlier-{number}"
    earlier.mkdir()
    for path in left:
        os.replace(path, earlier / path.name)
    return earlier


def _link(link: Path, target: Path) -> None:
    """Make ``link`` lead to ``target``, a file beside it, at once: before and after a kill it leads to something."""
    temporary = link.with_name(f".{link.name}.partial")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        temporary.symlink_to(target.name)
    except OSError:  # a file system without links
        shutil.copyfile(target, temporary)
    os.replace(temporary, link)


def _sync(directory: Path) -> None:
    """Have the folder's entries on the disk too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
