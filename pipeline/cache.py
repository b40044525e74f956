"""A bounded folder of whole files, shared by all processes of this machine that fetch shards.

A file has the hash of its content in its name, so what is there under a name is right for good: it got its name only
when its size and its hash were right. Two kinds of ``flock``, which the system takes back however a process ends, are
all that the processes agree by: whoever needs a file holds it shared, whoever writes or removes one holds it alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import fcntl
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

_PARTIAL = ".partial"


@dataclasses.dataclass(frozen=True)
class CachedFile:
    """A file to be had: ``name`` at the URL, ``local`` in the cache."""

    name: str
    bytes: int | None  # None: not known before the server is asked
    sha256: str

    @property
    def local(self) -> str:
        stem, ending = os.path.splitext(self.name)
        return f"{stem}.{self.sha256[:16]}{ending}"


class Refusal(enum.Enum):
    """Why a file cannot be written now."""

    THERE = "it is there already"
    BUSY = "another process is writing it"
    FULL = "all that could make room is needed"


class Partial:
    """A file on its way, under a name that no reader takes for a shard. Its prefix may be a dead process's work."""

    def __init__(self, fd: int, path: Path, file: CachedFile):
        self._fd, self._path, self._file = fd, path, file
        self._hash = hashlib.sha256()
        self.bytes = 0
        while block := os.pread(fd, 1 << 20, self.bytes):
            self._hash.update(block)
            self.bytes += len(block)

    def append(self, data: memoryview) -> None:
        """Raises OSError where the disk is full."""
        self._hash.update(data)
        while data:
            written = os.pwrite(self._fd, data, self.bytes)
            self.bytes += written
            data = data[written:]

    def restart(self) -> None:
        """Forget what there is."""
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """Of what there is."""
        return self._hash.hexdigest()

    def finish(self, cache: Cache) -> None:
        """Give it its name. Only what is whole may have it."""
        assert (self.bytes, self.sha256) == (self._file.bytes, self._file.sha256)
        os.fsync(self._fd)
        with cache.alone():
            os.replace(self._path, cache.folder / self._file.local)

    def close(self) -> None:
        """Let go; what is not finished stays for whoever comes next."""
        os.close(self._fd)


def cache_folder(root: Path, url: str) -> Path:
    """Where the files of a URL are."""
    return root / hashlib.sha256(url.encode()).hexdigest()[:16]


class Cache:
    """The folder ``root`` with one folder inside for each URL, all of them together ``limit`` bytes at most.

    Raises OSError where the folder cannot be made or written.
    """

    def __init__(self, root: Path, url: str, limit: int):
        self.root, self.limit = root, limit
        self.folder = cache_folder(root, url)
        self.folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Between all processes: nobody else makes room or names a file meanwhile."""
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def has(self, file: CachedFile) -> bool:
        """Whether it is there, at this moment."""
        return (self.folder / file.local).exists()

    def hold(self, file: CachedFile) -> int | None:
        """A descriptor that keeps the file from being removed until it is closed; None where the file is not there."""
        path = self.folder / file.local
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(fd, fcntl.LOCK_SH)
        status = os.fstat(fd)
        if status.st_nlink and file.bytes in (None, status.st_size):
            with contextlib.suppress(PermissionError):  # another user's
                os.utime(fd)
            return fd
        if status.st_nlink:  # cut short by somebody else
            path.unlink(missing_ok=True)
        os.close(fd)
        return None

    def claim(self, file: CachedFile, *, keep: Collection[str], last: Sequence[str]) -> Partial | Refusal:
        """Make room for a file and begin to write it, or go on where a dead process stopped.

        Removed are files that nobody holds, the least recently needed first; of ``last`` (names in the cache, soonest
        needed first) only where nothing else is left, from its end; of ``keep`` none.
        """
        assert file.bytes is not None
        path = self.folder / f".{file.local}.{file.bytes}{_PARTIAL}"
        with self.alone():
            if self.has(file):
                return Refusal.THERE
            if not path.exists() and not self._make_room(file.bytes, keep, last):
                return Refusal.FULL
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if not _lock(fd):
                os.close(fd)
                return Refusal.BUSY
        return Partial(fd, path, file)

    def _make_room(self, wanted: int, keep: Collection[str], last: Sequence[str]) -> bool:
        rank = {name: -place for place, name in enumerate(last)}
        files: list[tuple[int, float, int, str]] = []
        total = wanted
        for folder in self._folders():
            for entry in os.scandir(folder):
                status = entry.stat(follow_symlinks=False)
                reserved = entry.name.removesuffix(_PARTIAL).rpartition(".")[2] if _is_partial(entry.name) else ""
                size = int(reserved) if reserved.isdecimal() else status.st_size
                total += size
                mine = folder == str(self.folder)
                if not (mine and entry.name in keep):
                    files.append((rank.get(entry.name, -len(rank)) if mine else -len(rank), status.st_mtime,
                                  size, entry.path))  # fmt: skip
        for _, _, size, path in sorted(files):
            if total <= self.limit:
                break
            if _remove(path):
                total -= size
        return total <= self.limit

    def _folders(self) -> list[str]:
        return [entry.path for entry in os.scandir(self.root) if entry.is_dir() and len(entry.name) == 16]


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(_PARTIAL)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: str) -> bool:
    """Remove a file that nobody holds. Says whether."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _lock(fd):
            return False
        os.unlink(path)
        return True
    except OSError:  # another user's
        return False
    finally:
        os.close(fd)
