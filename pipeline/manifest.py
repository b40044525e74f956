"""What a folder of shards holds, in one small file that is written last: a folder without one is not finished."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError, DataError, shown
from .files import atomic_write

FORMAT = "headrace-shards"
VERSION = 2
MANIFEST = "manifest.json"
T = TypeVar("T")


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
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{root} has no {MANIFEST}, so it is no finished folder of shards: "
            f"python tools/make_shards.py SRC {root} makes one, with --resume it goes on with one"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return parse_manifest(data, root, str(path))


def parse_manifest(data: bytes, root: Path, path: str) -> Manifest:
    """The manifest in ``data``, which came from ``path``. Raises DataError where it is damaged.

    It may come from elsewhere, and its names become files here: they must be names of files and nothing more.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {shown(error)}") from error
    try:
        if content["format"] != FORMAT or content["version"] != VERSION:
            got = shown(f"{content['format']} {content['version']}")
            raise DataError(f"{path}: want {FORMAT} {VERSION}, got {got}")
        splits = _of(dict, content["splits"])
        return Manifest(
            root=root,
            classes=tuple(_of(str, name) for name in _of(list, content["classes"])),
            splits={
                _plain_name(split): tuple(
                    ShardInfo(
                        name=_plain_name(s["name"]),
                        samples=_count(s["samples"]),
                        bytes=_count(s["bytes"]),
                        sha256=_sha256(s["sha256"]),
                    )
                    for s in _of(list, body["shards"])
                )
                for split, body in splits.items()
            },
            index_sha256={split: _sha256(body["index_sha256"]) for split, body in splits.items()},
            made=_of(dict, content["made"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {shown(error)}): "
            "make the shards again, or copy the manifest again"
        ) from error


def _of(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"want {kind.__name__}, got {shown(repr(value))}")
    return value


def _sha256(value: object) -> str:
    if not re.fullmatch("[0-9a-f]{64}", _of(str, value)):
        raise ValueError(f"want a SHA-256, got {shown(repr(value))}")
    return _of(str, value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not 0 <= _of(int, value) < 1 << 63:
        raise ValueError(f"want a number from 0 on, got {shown(value)}")
    return _of(int, value)


def _plain_name(value: object) -> str:
    """A name that leads nowhere but into the folder: a manifest may come from anywhere."""
    name = _of(str, value)
    if name != os.path.basename(name) or name in ("", ".", "..") or not name.isprintable() or len(name) > 200:
        raise ValueError(f"want a plain file name, got {shown(repr(name))}")
    return name
