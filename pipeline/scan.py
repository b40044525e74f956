"""What a tar holds, read from the tar alone, with Python's own reader: for checking, and for going on with a shard."""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .crop_jpeg import describe
from .errors import DataError
from .files import sha256_of
from .folder import picture_size
from .idx import idx_line
from .shards import RECORD, ShardInfo


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
        with tarfile.open(path, "r:") as tar:
            for picture, label in _pairs(tar, path):
                key = picture.name.removesuffix(".jpg")
                data = _content(tar, picture)
                text = _content(tar, label)
                if not text.isdigit():
                    raise DataError(f"{path}: {label.name} must hold a class number, holds {text[:20]!r}")
                width, height = picture_size(data)
                keys.append(key)
                records.append((picture.offset_data, picture.size, int(text), width, height, *describe(data)))
                idx.append(idx_line(key, picture.offset_data, picture.size, label.offset_data, label.size))
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(set(keys)) != len(keys):
        raise DataError(f"{path} holds a key twice: {next(key for key in keys if keys.count(key) > 1)}")
    info = ShardInfo(name=path.name, samples=len(keys), bytes=path.stat().st_size, sha256=digest)
    return ScannedShard(info=info, keys=tuple(keys), records=np.array(records, RECORD), idx=idx)


def _pairs(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    members = iter(tar)
    for picture in members:
        label = next(members, None)
        if (
            label is None
            or not (picture.isreg() and label.isreg())
            or not picture.name.endswith(".jpg")
            or label.name != f"{picture.name.removesuffix('.jpg')}.cls"
        ):
            raise DataError(f"{path}: want <key>.jpg, <key>.cls; got {picture.name}, {label.name if label else None}")
        yield picture, label


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise DataError(f"{tar.name!s}: {member.name} is cut short")
    return data
