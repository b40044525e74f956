"""Shards: webdataset tars with a manifest, read by random access. No tar is parsed on the way to a batch.

A folder of shards holds ``<split>-000000.tar`` ..., ``manifest.json`` (what there is, with sizes and hashes), one
``<split>.index.npy`` per split (where each sample lies: :data:`RECORD`), and one ``.idx`` beside each tar for DALI's
own reader. The manifest is written last: a folder without one is not finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .crop_jpeg import Excerpt, LayoutError, read_layout, splice, whole_picture
from .errors import ConfigError, DataError, shown
from .manifest import Manifest, ShardInfo, read_manifest
from .pictures import I64, Pictures
from .verify import check_head
from .watch import READ, SPLICE, UNWATCHED, Watch

# One sample: its picture's place in its shard, its class, its picture's size in pixels; of a crop-addressed picture
# how long its header is and the CRC-32 in it, otherwise 0. 28 bytes, little endian.
RECORD = np.dtype(
    [
        ("offset", "<u8"),
        ("bytes", "<u4"),
        ("label", "<u4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("header", "<u4"),
        ("crc", "<u4"),
    ]
)
MAX_SIDE = 65535  # pixels: what a record holds, and a JPEG

BLOCK = 512  # a tar is made of these
_OPEN_SHARDS = 256  # files a process keeps open: enough for ImageNet, far below the usual limit of 1,024


@dataclasses.dataclass
class Shards:
    """One split of a folder of shards: labels, and random access to the pictures' bytes.

    The index stays in its file, mapped: a process that gets a copy of this maps it too, and none holds it. The records
    of some shards only (``part``) are held, and lie in memory once for all decode processes.
    """

    root: str
    classes: tuple[str, ...]
    shard_names: tuple[str, ...]
    first: I64  # [shards] number of each shard's first sample
    index: Path
    records: npt.NDArray[np.void]  # [n] of RECORD
    fingerprint: str  # of all shards' hashes
    part: bool = False  # of the shards that the index describes
    _files: dict[int, int] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _samples: int = 0

    def __post_init__(self) -> None:
        self._samples = len(self.records)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"records": self.records if self.part else None, "_files": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self.part:
            self.records = _map_index(self.index, self._samples)

    def __len__(self) -> int:
        return self._samples

    @property
    def crop_addressed(self) -> bool:
        """Whether crops can be read from it (a few pictures may not be, such as PNGs)."""
        return bool((self.records["header"][:100] > 0).any())

    @property
    def labels(self) -> I64:
        return self.records["label"].astype(np.int64)

    def name(self, index: int) -> str:
        """The sample's tar and key."""
        shard, record = self._locate(index)
        where = os.path.join(self.root, self.shard_names[shard])
        try:
            header = os.pread(self._file(shard), 100, int(record["offset"]) - BLOCK)
        except (OSError, DataError):
            return f"{where}, sample {index}"
        return f"{where}: {header.partition(bytes(1))[0].decode(errors='backslashreplace')}"

    def read(self, index: int) -> bytes:
        """The picture's bytes, in one read. Raises DataError where the shard is gone or cut short."""
        shard, record = self._locate(index)
        data = bytearray(int(record["bytes"]))
        self.read_into(data, shard, int(record["offset"]))
        return bytes(data)

    def read_into(self, data: bytearray, shard: int, offset: int) -> None:
        """Fill ``data`` from a place in a shard. Raises DataError where the shard is gone or cut short."""
        try:
            got = os.preadv(self._file(shard), [data], offset)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        if got != len(data):
            raise DataError(f"want {len(data)} bytes, got {got}: the shard has been cut short")

    def open(self, indices: I64, watch: Watch = UNWATCHED) -> ShardPictures:
        """The pictures of some samples; no shard is read yet."""
        return ShardPictures(self, indices, watch)

    def _locate(self, index: int) -> tuple[int, Any]:
        return int(np.searchsorted(self.first, index, side="right")) - 1, self.records[index]

    def _file(self, shard: int) -> int:
        fd = self._files.get(shard)
        if fd is None:
            if len(self._files) >= _OPEN_SHARDS:
                oldest = next(iter(self._files))
                os.close(self._files.pop(oldest))
            # What has been removed from a cache takes up its disk for as long as somebody has it open.
            for gone in [number for number, old in self._files.items() if not os.fstat(old).st_nlink]:
                os.close(self._files.pop(gone))
            path = os.path.join(self.root, self.shard_names[shard])
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DataError(f"cannot open shard {path}: {error.strerror}") from error
            self._files[shard] = fd
        return fd

    def close(self) -> None:
        """Close the shards and unmap the index."""
        while self._files:
            os.close(self._files.popitem()[1])
        self.records = np.empty(0, RECORD)


class ShardPictures(Pictures):
    """Pictures of which only the bytes that a crop needs are read, where they are crop-addressed."""

    def __init__(self, shards: Shards, indices: I64, watch: Watch = UNWATCHED):
        records = shards.records[indices]
        super().__init__(
            indices,
            widths=records["width"].astype(np.int64),
            heights=records["height"].astype(np.int64),
            labels=records["label"].astype(np.int64),
            watch=watch,
        )
        self._shards = shards
        self._shard = (np.searchsorted(shards.first, indices, side="right") - 1).tolist()
        self._records = records.tolist()

    def excerpt(self, row: int, region: Sequence[int]) -> Excerpt:
        self.begin(row)
        shard = self._shard[row]
        offset, size, _, width, height, length, crc = self._records[row]
        if not length:
            return self.whole(row)
        header = bytearray(length)
        self._shards.read_into(header, shard, offset)
        try:
            self.lap(READ, row)
            layout = read_layout(bytes(header), crc)
            if (layout.width, layout.height) != (width, height):
                raise LayoutError(f"the index says {width}x{height}, its header {layout.width}x{layout.height}")
            tiles = layout.tiles(*region)
            begin, end = layout.span(tiles)
            if not length <= begin < end <= size:
                raise LayoutError("its header points outside it")
            self.lap(SPLICE, row)
            body = bytearray(end - begin)
            self._shards.read_into(body, shard, offset + begin)
            self.lap(READ, row)
            excerpt = splice(layout, tiles, body)
            self.lap(SPLICE, row)
            return excerpt
        except LayoutError as error:
            self.damaged[row] = str(error)
            return self.whole(row)

    def whole(self, row: int) -> Excerpt:
        offset, size, _, width, height, _, _ = self._records[row]
        data = bytearray(size)
        self._shards.read_into(data, self._shard[row], offset)
        self.lap(READ, row)
        self.read_whole.add(row)
        return whole_picture(bytes(data), width, height)


def open_shards(root: Path, split: str, names: frozenset[str] | None = None) -> Shards:
    """Open one split: every shard is there and has its size, the index fits, every label has a class.

    ``names`` limits it to some tars; a split of which it names none stays whole.
    Raises ConfigError for a wrong call (no such folder, split or tar), DataError for what is missing or damaged.
    """
    manifest = read_manifest(root)
    chosen = choose_shards(manifest, split, names, str(root))
    infos = [manifest.splits[split][number] for number in chosen]
    for info in infos:
        check_size(root / info.name, info)
        check_head(root / info.name, info)
    local = [info.name for info in infos]
    return shards_of(manifest, split, chosen, root=root, index=manifest.index_path(split), local=local)


def choose_shards(manifest: Manifest, split: str, names: frozenset[str] | None, where: str) -> list[int]:
    """Which of a split's shards are named, by number; all where none is. Raises ConfigError, which says ``where``."""
    if split not in manifest.splits:
        raise ConfigError(f"{where} has no split {split!r}; it has {', '.join(manifest.splits) or 'none'}")
    known = {info.name for infos in manifest.splits.values() for info in infos}
    if names and (unknown := sorted(names - known)):
        raise ConfigError(
            f"{where} has no {unknown[0]}{f' and {len(unknown) - 1} others' if unknown[1:] else ''} of those "
            f"that --shards names; {split} has {len(manifest.splits[split])} shards"
        )
    numbers = range(len(manifest.splits[split]))
    return [n for n in numbers if manifest.splits[split][n].name in (names or ())] or list(numbers)


def shards_of(
    manifest: Manifest, split: str, chosen: Sequence[int], *, root: Path, index: Path, local: Sequence[str]
) -> Shards:
    """The chosen shards, which lie as ``local`` in ``root``. Raises DataError where the index does not fit."""
    infos = manifest.splits[split]
    records = read_index(manifest, split, index)
    counts = np.array([info.samples for info in infos], np.int64)
    if part := len(chosen) < len(infos):
        first = np.cumsum(counts) - counts
        records = np.concatenate([records[first[n] : first[n] + counts[n]] for n in chosen])
        counts = counts[list(chosen)]
    return Shards(
        root=str(root),
        classes=manifest.classes,
        shard_names=tuple(local),
        first=np.cumsum(counts) - counts,
        index=index,
        records=records,
        part=part,
        fingerprint=hashlib.sha256("".join(infos[n].sha256 for n in chosen).encode()).hexdigest()[:16],
    )


def check_size(path: Path, info: ShardInfo) -> None:
    """Raises DataError where a shard is missing or has not the size that the manifest says."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(
            f"shard {path} is missing: copy it back, or make it again with make_shards.py --resume"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror}") from error
    if size != info.bytes:
        raise DataError(
            f"shard {path}: want {info.bytes} bytes, got {size}: copy it again, or delete it and "
            "make it again with make_shards.py --resume"
        )


def read_index(manifest: Manifest, split: str, path: Path | None = None) -> npt.NDArray[np.void]:
    """The records of a split, mapped. Raises DataError where the index is missing or does not fit the manifest."""
    path, infos = path or manifest.index_path(split), manifest.splits[split]
    records = _map_index(path, sum(info.samples for info in infos))
    first = 0
    for info in infos:
        if not info.samples:
            continue
        # Read, not looked at through the map: what a map has shown stays in the process's memory.
        offset = records.offset + first * RECORD.itemsize  # type: ignore[attr-defined]  # of a memmap
        part = np.fromfile(path, RECORD, info.samples, offset=offset)
        if part["label"].max() >= len(manifest.classes):
            raise DataError(
                f"index {path}: a label is outside 0 ... {len(manifest.classes) - 1}, the classes there are"
            )
        outside = (
            (part["offset"] < BLOCK) | (part["offset"] > info.bytes) | (part["bytes"] > info.bytes - part["offset"])
        )
        wrong = outside | (part["header"] > part["bytes"]) | (part["width"] == 0) | (part["height"] == 0)
        if wrong.any():
            raise DataError(
                f"index {path}: sample {first + int(wrong.argmax())} does not lie in {info.name}, or has no size; "
                "copy the index again, or let make_shards.py --resume write it again"
            )
        first += info.samples
    return records


def _map_index(path: Path, wanted: int) -> npt.NDArray[np.void]:
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"want version 1.0 of its format, got {version}")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype != RECORD or shape != (wanted,):
                raise ValueError(f"want {wanted} records, got {shown(shape)} of {shown(dtype)}")
            if not wanted:
                return np.empty(0, RECORD)
            return np.memmap(file, RECORD, "r", file.tell(), (wanted,))
    except Exception as error:  # numpy's reader of a damaged header raises whatever it trips over
        raise DataError(
            f"index {path} cannot be read: {shown(error)}; make_shards.py --resume writes it again"
        ) from error
