"""What a tar holds, read from the tar alone, with Python's own reader: for checking, and for going on with a shard."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .crop_jpeg import describe
from .errors import DataError, shown
from .files import sha256_of
from .folder import picture_size
from .idx import idx_line
from .manifest import ShardInfo
from .shards import BLOCK, MAX_SIDE, RECORD

_LABEL_DIGITS = 9  # of a class number: what a record holds

_NAMED = 20  # members that are named, where more are odd
_TYPES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScannedShard:
    """What a tar holds, read from the tar alone."""

    info: ShardInfo
    keys: tuple[str, ...]
    records: npt.NDArray[np.void]
    idx: list[str]


def scan_shard(path: Path) -> ScannedShard:
    """Read a shard member by member with Python's tarfile. Raises DataError, with the key, for what does not belong."""
    keys: list[str] = []
    records: list[tuple[int, ...]] = []
    idx: list[str] = []
    try:
        digest = sha256_of(path)
        with _Bounded(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            _refuse_odd_members(tar, path)
            for picture, label in _pairs(tar, path):
                key = picture.name.removesuffix(".jpg")
                data = _content(tar, picture, path)
                text = _content(tar, label, path)
                if not text.isdigit() or len(text) > _LABEL_DIGITS:
                    raise DataError(f"{path}: {shown(label.name)} must hold a class number, holds {text[:20]!r}")
                try:
                    width, height = picture_size(data)
                except DataError as error:
                    raise DataError(f"{path}: {shown(picture.name)}: {error}") from error
                if max(width, height) > MAX_SIDE:
                    raise DataError(f"{path}: {shown(picture.name)} is {width}x{height}, a side may have {MAX_SIDE}")
                keys.append(key)
                records.append((picture.offset_data, picture.size, int(text), width, height, *describe(data)))
                idx.append(idx_line(key, picture.offset_data, picture.size, label.offset_data, label.size))
            _check_end(file, tar.offset, path)
    except (
        OSError,
        tarfile.TarError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:  # tarfile's own, and its slips
        raise DataError(f"{path} cannot be read: {shown(error)}") from error
    if len(set(keys)) != len(keys):
        raise DataError(f"{path} holds a key twice: {shown(next(key for key in keys if keys.count(key) > 1))}")
    info = ShardInfo(name=path.name, samples=len(keys), bytes=path.stat().st_size, sha256=digest)
    return ScannedShard(info=info, keys=tuple(keys), records=np.array(records, RECORD), idx=idx)


def _pairs(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    members = iter(tar)
    for picture in members:
        label = next(members, None)
        key = picture.name.removesuffix(".jpg")
        if key == picture.name:
            raise DataError(
                f"{path}: want <key>.jpg, <key>.cls, ...; got {shown(picture.name)}, which belongs to no picture"
            )
        if label is None or label.name != f"{key}.cls":
            after = shown(label.name) if label else "the end"
            raise DataError(f"{path}: {shown(picture.name)} has no label: want {shown(key)}.cls after it, got {after}")
        yield picture, label


def _refuse_odd_members(tar: tarfile.TarFile, path: Path) -> None:
    """A shard's members are plain files below it. Nothing is ever followed or written, but it is no shard of ours."""
    odd = [f"{shown(member.name)} ({why})" for member in tar.getmembers() if (why := _odd(member))]
    if odd:
        more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
        raise DataError(f"{path} holds what does not belong into a shard: {', '.join(odd[:_NAMED])}{more}")


def _odd(member: tarfile.TarInfo) -> str:
    if member.name.startswith("/"):
        return "an absolute name"
    if ".." in member.name.split("/"):
        return "a name that leads out"
    if member.issparse():
        return "a file with holes"
    return "" if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else _TYPES.get(member.type, "no plain file")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise DataError(f"{path}: {shown(member.name)} is cut short")
    return data


def _check_end(file: io.FileIO, at: int, path: Path) -> None:
    """Raises DataError where tarfile has stopped at something else than the end: a damaged header ends it too."""
    file.seek(at)
    zeros = 0
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise DataError(f"{path}: damaged from byte {at:,} on: neither a member nor the end of the tar is there")
        zeros += len(chunk)
    if zeros < 2 * BLOCK:
        raise DataError(f"{path} is cut short: it does not end as a tar does")


class _Bounded(io.FileIO):
    """A file of which no more is read, and so no more memory taken, than it has, whatever a header says."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._bytes = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self._bytes - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest)) or b""
