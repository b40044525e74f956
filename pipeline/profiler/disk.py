"""The disk under the shards: what it is, how much of a data set is in memory already, and how fast it reads.

Files in the page cache say nothing about the disk. So they are read past it (O_DIRECT), or, where the file system does
not do that, put out of it first; where neither works, the answer says that it was warm.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import mmap
import os
import re
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError

_PAGE = mmap.PAGESIZE
_SLICE = 1 << 28  # bytes that mincore is asked about at once
_COLD = 0.02  # of the bytes, what may be in the page cache where reading is called cold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disk:
    """What a folder lies on. None where the system does not tell: a network's file systems have no device."""

    mount_point: str | None
    file_system: str | None  # ext4, nfs4, overlay, ...
    device: str | None  # /dev/nvme0n1p1, server:/export
    rotational: bool | None  # whether it seeks


def disk_under(path: Path, root: Path = Path("/")) -> Disk:
    """The file system that a path is on. ``root`` is where /proc and /sys are."""
    where, best = os.path.realpath(path), None
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (file_system, _, rest) = before.split(" "), after.partition(" ")
        if len(fields) < 5:
            continue
        point = _unescaped(fields[4])
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best[0])):  # of two at one place, the later hides the other
            best = point, file_system, _unescaped(rest.partition(" ")[0]), fields[2]
    if best is None:
        return Disk(mount_point=None, file_system=None, device=None, rotational=None)
    point, file_system, device, number = best
    return Disk(mount_point=point, file_system=file_system, device=device, rotational=_rotational(root, number))


def _rotational(root: Path, number: str) -> bool | None:
    """Of a block device or, as only whole ones know it, of what a partition is on."""
    device = Path(os.path.realpath(root / "sys/dev/block" / number))
    for folder in (device, device.parent):
        answer = _read(folder / "queue/rotational")
        if answer in ("0", "1"):
            return answer == "1"
    return None


def _unescaped(text: str) -> str:
    r"""Blanks in mountinfo are written \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def cached_fraction(paths: Sequence[Path]) -> float | None:
    """The share of some files' bytes that is in the page cache: [0, 1]. None where the system does not tell.

    Linux tells it only to who owns a file or may write to it. Costs a second for some 100 million pages of 4 kB.
    """
    pages = cached = 0
    for path in paths:
        known = _cached_pages(path)
        if known is None:
            return None
        pages, cached = pages + known[0], cached + known[1]
    return cached / pages if pages else None


def _cached_pages(path: Path) -> tuple[int, int] | None:
    """How many pages a file has, and how many of them are in the page cache."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    pages = cached = 0
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if os.geteuid() not in (0, status.st_uid) and not os.access(path, os.W_OK):
                return None
            for offset in range(0, status.st_size, _SLICE):
                size = min(_SLICE, status.st_size - offset)
                with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ, offset=offset) as memory:
                    resident = np.zeros(-(-size // _PAGE), np.uint8)
                    content: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
                    failed = mincore(content.ctypes.data, size, resident.ctypes.data)
                    del content  # or the map could not be closed
                if failed:
                    return None
                pages, cached = pages + len(resident), cached + int((resident & 1).sum())
    except OSError:
        return None
    return pages, cached


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadSpeed:
    """How fast files were read."""

    mb_per_s: float  # 10^6 bytes
    threads: int  # reads at once
    cold: bool  # whether the bytes came from the disk rather than from this machine's page cache
    how: str  # a sentence about the way, for the report


def read_speed(
    paths: Sequence[Path],
    *,
    seconds: float = 2.0,
    threads: int = 1,
    request_bytes: int = 1 << 17,
    in_order: bool = False,
) -> ReadSpeed:
    """Read pieces of files for some seconds, in a random order as the loader does, or one behind the other.

    ``threads`` read at once: few for a disk that seeks, as many as there are decode workers to know what these get.
    ``request_bytes`` is rounded up to whole pages; a photograph is some 100 kB. No piece is read twice, so small files
    end it early. Pieces that are not whole, at the files' ends, are left out.

    Raises DataError where a file cannot be read, or where all of them hold less than one piece.
    """
    piece = -(-request_bytes // _PAGE) * _PAGE
    with contextlib.ExitStack() as stack:
        fds, direct = _open(paths, stack)
        pieces = [(fd, at) for fd in fds for at in range(0, os.fstat(fd).st_size - piece + 1, piece)]
        if not pieces:
            raise DataError(f"{len(paths)} files hold less than {piece} bytes each: too little to measure a disk")
        cold, how = direct, "read past the page cache (O_DIRECT)"
        if not direct:
            for fd in fds:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            left = cached_fraction(paths)
            cold = left is not None and left <= _COLD
            how = "put out of the page cache before" if cold else (
                "WARM: the page cache could not be emptied, so this is no figure of the disk"
                if left is not None else "perhaps WARM: the system does not tell what its page cache holds"
            )  # fmt: skip
        if not in_order:
            pieces = [pieces[n] for n in np.random.default_rng().permutation(len(pieces)).tolist()]
        done, took_s = _read_pieces(pieces, piece, threads, seconds)
    order = "one behind the other" if in_order else "in a random order"
    return ReadSpeed(
        mb_per_s=done * piece / took_s / 1e6,
        threads=threads,
        cold=cold,
        how=f"{done:,} pieces of {piece // 1024} kB {order}, {threads} at once, {how}",
    )


def _open(paths: Sequence[Path], stack: contextlib.ExitStack) -> tuple[list[int], bool]:
    """Descriptors of all files, and whether all of them bypass the page cache."""
    direct = True
    fds = []
    for path in paths:
        try:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                direct = direct and _bypasses(fd)
            except OSError:  # a file system that cannot
                direct = False
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        stack.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DataError(f"{path} is no file")
        fds.append(fd)
    return fds, direct


def _bypasses(fd: int) -> bool:
    """Whether O_DIRECT does what it says. What takes the flag and ignores it (tmpfs, some file systems of a network)
    also gives single bytes, which no disk does.
    """
    try:
        os.pread(fd, 1, 1)
    except OSError:
        return True
    return False


def _read_pieces(pieces: list[tuple[int, int]], piece: int, threads: int, seconds: float) -> tuple[int, float]:
    """How many were read, and the seconds that it took. Raises DataError."""
    work, done, failures = iter(pieces), [0] * threads, list[OSError]()
    lock = threading.Lock()
    start = time.perf_counter()

    def read(number: int) -> None:
        with mmap.mmap(-1, piece) as buffer:  # aligned to a page, as O_DIRECT wants it
            while time.perf_counter() - start < seconds:
                with lock:
                    fd, at = next(work, (-1, 0))
                if fd < 0:
                    return
                try:
                    os.preadv(fd, [buffer], at)
                except OSError as error:
                    failures.append(error)
                    return
                done[number] += 1

    readers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    if failures:
        raise DataError(f"the disk fails: {failures[0].strerror}")
    return sum(done), time.perf_counter() - start


def _read(path: Path) -> str:
    """A file's content; nothing where there is no such file, or none that we may read."""
    try:
        return path.read_text(errors="surrogateescape").strip()
    except OSError:
        return ""
