"""Shards: webdataset tars with a manifest, read by random access. No tar is parsed on the way to a batch.

A folder of shards holds ``<split>-000000.tar`` ..., ``manifest.json`` (what there is, with sizes and hashes), one
``<split>.index.npy`` per split (where each sample lies: :data:`RECORD`), and one ``.idx`` beside each tar for DALI's
own reader. The manifest is written last: a folder without one is not finished.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ConfigError, DataError
from .files import atomic_write

FORMAT = "headrace-shards"
VERSION = 1
MANIFEST = "manifest.json"

# One sample: its picture's place in its shard, its class, its picture's size in pixels. 24 bytes, little endian.
RECORD = np.dtype(
    [("offset", "<i8"), ("bytes", "<i4"), ("label", "<i4"), ("width", "<i4"), ("height", "<i4")], align=False
)

BLOCK = 512  # a tar is made of these
_OPEN_SHARDS = 256  # files a process keeps open: enough for ImageNet, far below the usual limit of 1,024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar as the manifest describes it."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[ShardInfo, ...]]
    index_sha256: dict[str, str]
    made: dict[str, Any]  # how: the tool's version and its flags

    def index_path(self, split: str) -> Path:
        return self.root / index_name(split)


def shard_name(split: str, number: int) -> str:
    """The name of a split's n-th tar."""
    return f"{split}-{number:06d}.tar"


def index_name(split: str) -> str:
    """The name of a split's index."""
    return f"{split}.index.npy"


def write_manifest(manifest: Manifest) -> None:
    """Put the manifest in its place, atomically. Called when all it names is on the disk."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "made": manifest.made,
        "splits": {
            split: {
                "samples": sum(shard.samples for shard in shards),
                "bytes": sum(shard.bytes for shard in shards),
                "index": index_name(split),
                "index_sha256": manifest.index_sha256[split],
                "shards": [dataclasses.asdict(shard) for shard in shards],
            }
            for split, shards in manifest.splits.items()
        },
        "classes": manifest.classes,
    }
    text = json.dumps(content, indent=1, ensure_ascii=True) + "\n"
    with atomic_write(manifest.root / MANIFEST) as file:
        file.write(text.encode())


def read_manifest(root: Path) -> Manifest:
    """Read and check ``manifest.json``. Raises ConfigError where there is none, DataError where it is damaged."""
    if not root.is_dir():
        raise ConfigError(f"no such folder of shards: {root} (python tools/make_shards.py SRC {root} makes one)")
    path = root / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{root} has no {MANIFEST}, so it is no finished folder of shards: "
            f"python tools/make_shards.py SRC {root} makes one, with --resume it goes on with one"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise DataError(f"{path}: want {FORMAT} {VERSION}, got {content['format']} {content['version']}")
        return Manifest(
            root=root,
            classes=tuple(str(name) for name in content["classes"]),
            splits={
                split: tuple(
                    ShardInfo(name=s["name"], samples=int(s["samples"]), bytes=int(s["bytes"]), sha256=s["sha256"])
                    for s in body["shards"]
                )
                for split, body in content["splits"].items()
            },
            index_sha256={split: body["index_sha256"] for split, body in content["splits"].items()},
            made=dict(content["made"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error!r}): make the shards again, or copy the manifest again") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards:
    """One split of a folder of shards: labels, and random access to the pictures' bytes."""

    root: str
    classes: tuple[str, ...]
    shard_names: tuple[str, ...]
    first: npt.NDArray[np.int64]  # [shards] number of each shard's first sample
    records: npt.NDArray[np.void]  # [n] of RECORD
    _files: dict[int, int] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
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
        wanted = int(record["bytes"])
        try:
            data = os.pread(self._file(shard), wanted, int(record["offset"]))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        if len(data) != wanted:
            raise DataError(f"want {wanted} bytes, got {len(data)}: the shard has been cut short")
        return data

    def sizes(
        self, indices: npt.NDArray[np.int64], pictures: list[bytes]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Widths and heights in pixels, int64 [N] each, from the index."""
        records = self.records[indices]
        return records["width"].astype(np.int64), records["height"].astype(np.int64)

    def _locate(self, index: int) -> tuple[int, Any]:
        return int(np.searchsorted(self.first, index, side="right")) - 1, self.records[index]

    def _file(self, shard: int) -> int:
        fd = self._files.get(shard)
        if fd is None:
            if len(self._files) >= _OPEN_SHARDS:
                oldest = next(iter(self._files))
                os.close(self._files.pop(oldest))
            path = os.path.join(self.root, self.shard_names[shard])
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DataError(f"cannot open shard {path}: {error.strerror}") from error
            self._files[shard] = fd
        return fd

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])


def open_shards(root: Path, split: str) -> Shards:
    """Open one split: every shard is there and has its size, the index fits, every label has a class.

    Raises ConfigError for a wrong call (no such folder or split), DataError for what is missing or damaged.
    """
    manifest = read_manifest(root)
    if split not in manifest.splits:
        raise ConfigError(f"{root} has no split {split!r}; it has {', '.join(manifest.splits) or 'none'}")
    infos = manifest.splits[split]
    for info in infos:
        check_size(root / info.name, info)
    records = read_index(manifest, split)
    counts = np.array([info.samples for info in infos], np.int64)
    return Shards(
        root=str(root),
        classes=manifest.classes,
        shard_names=tuple(info.name for info in infos),
        first=np.cumsum(counts) - counts,
        records=records,
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


def read_index(manifest: Manifest, split: str) -> npt.NDArray[np.void]:
    """The records of a split. Raises DataError where the index is missing or does not fit the manifest."""
    path = manifest.index_path(split)
    try:
        records: npt.NDArray[np.void] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"index {path} cannot be read: {error}; make_shards.py --resume writes it again") from error
    infos = manifest.splits[split]
    wanted = sum(info.samples for info in infos)
    if records.dtype != RECORD or records.shape != (wanted,):
        raise DataError(f"index {path}: want {wanted} records, got {records.shape} of {records.dtype}")
    if wanted and not 0 <= records["label"].min() <= records["label"].max() < len(manifest.classes):
        raise DataError(f"index {path}: a label is outside 0 ... {len(manifest.classes) - 1}, the classes there are")
    return records
