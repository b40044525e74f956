"""Folder -> shards: which sample goes where, the tars themselves, and the manifest at the end.

What is written depends on the pictures, the seed and the shard size alone: any number of workers, and a run that was
interrupted and resumed, give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from . import __version__
from .console import Progress
from .errors import ConfigError, DataError
from .files import atomic_write
from .folder import Folder, folder_classes, folder_splits, open_folder
from .idx import idx_line, idx_name, idx_text
from .plan import ShardPlan, plan_shards
from .prepare import JPEG_MODES, Recode, prepare
from .processes import map_in_processes
from .scan import scan_shard
from .shards import (
    BLOCK,
    MANIFEST,
    MAX_SIDE,
    RECORD,
    Manifest,
    ShardInfo,
    index_name,
    read_manifest,
    write_manifest,
)
from .transcoder import compile_kernels

MIN_MAX_SIDE = 16
_MAKING = ".making.json"  # how an unfinished folder is being made: a run that resumes it must agree


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """How shards are made. The fields are the flags of tools/make_shards.py."""

    source: Path
    destination: Path
    splits: tuple[str, ...] | None = None  # None: those that the folder has
    jpeg: str = "crop"
    max_side: int = 400  # recode: pixels
    quality: int = 90  # recode
    shard_mb: float = 128.0
    workers: int = 1
    on_error: str = "fail"
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.jpeg not in JPEG_MODES:
            raise ConfigError(f"--jpeg must be {' or '.join(JPEG_MODES)}, was {self.jpeg!r}")
        if not MIN_MAX_SIDE <= self.max_side <= MAX_SIDE:
            raise ConfigError(f"--max-side must be in [{MIN_MAX_SIDE}, {MAX_SIDE}], was {self.max_side}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"--quality must be in [1, 100], was {self.quality}")
        if not self.shard_mb > 0:
            raise ConfigError(f"--shard-mb must be above 0, was {self.shard_mb}")
        if self.workers < 1:
            raise ConfigError(f"--workers must be at least 1, was {self.workers}")
        if self.on_error not in ("fail", "skip"):
            raise ConfigError(f"--on-error must be fail or skip, was {self.on_error!r}")
        if self.seed < 0:
            raise ConfigError(f"--seed must be at least 0, was {self.seed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """One tar as it was written, with its part of the split's index."""

    info: ShardInfo
    records: npt.NDArray[np.void]
    skipped: tuple[str, ...] = ()  # one line for each picture that was left out


class _HashedFile:
    """A file that is being written: counts and hashes what passes."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def member(self, name: str, data: bytes) -> int:
        """Append one file to the tar; returns where its data begins. No time, no owner: the same bytes every time."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o444
        self.write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.bytes
        self.write(data + bytes(-len(data) % BLOCK))
        return offset

    def sha256(self) -> str:
        return self._hash.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """Writes the shards of one split; called once for each, in any process."""

    folder: Folder
    source: str  # the folder's root is named relative to it in messages
    destination: Path
    jpeg: str
    recode: Recode
    on_error: str
    resume: bool
    finished: dict[str, ShardInfo]  # what the manifest says, where the folder was finished before

    def __call__(self, plan: ShardPlan, count: Callable[[], None]) -> WrittenShard:
        """Write one tar and its .idx, or find them already written. ``count`` is called for each picture."""
        if self.resume and (written := self._already_written(plan)):
            for _ in plan.keys:
                count()
            return written
        records = np.zeros(len(plan.samples), RECORD)
        idx: list[str] = []
        skipped: list[str] = []
        with atomic_write(self.destination / plan.name) as file:
            tar = _HashedFile(file)
            for sample, key in zip(plan.samples.tolist(), plan.keys, strict=True):
                count()
                try:
                    picture = prepare(self.jpeg, self.folder.read(sample), self.recode)
                except DataError as error:
                    path = os.path.join(self.folder.root, self.folder.name(sample))
                    skipped.append(f"{os.path.relpath(path, self.source)}: {error}")
                    continue
                label = int(self.folder.labels[sample])
                at = tar.member(f"{key}.jpg", picture.data)
                label_text = str(label).encode()
                label_at = tar.member(f"{key}.cls", label_text)
                size = len(picture.data)
                records[len(idx)] = (at, size, label, picture.width, picture.height, picture.header, picture.crc)
                idx.append(idx_line(key, at, size, label_at, len(label_text)))
            if skipped and self.on_error == "fail":
                raise _DamagedError(skipped)
            tar.write(bytes(2 * BLOCK))  # the end of a tar
        self._write_idx(plan, idx)
        info = ShardInfo(name=plan.name, samples=len(idx), bytes=tar.bytes, sha256=tar.sha256())
        return WrittenShard(info=info, records=records[: len(idx)], skipped=tuple(skipped))

    def _write_idx(self, plan: ShardPlan, lines: list[str]) -> None:
        with atomic_write(self.destination / idx_name(plan.name)) as file:
            file.write(idx_text(lines).encode())

    def _already_written(self, plan: ShardPlan) -> WrittenShard | None:
        """The shard as an earlier run left it, where it holds just what the plan says."""
        try:
            scanned = scan_shard(self.destination / plan.name)
        except DataError:
            return None
        if scanned.keys != plan.keys or not np.array_equal(scanned.records["label"], self.folder.labels[plan.samples]):
            return None
        if self.finished.get(plan.name, scanned.info) != scanned.info:
            return None  # it has changed since
        self._write_idx(plan, scanned.idx)
        return WrittenShard(info=scanned.info, records=scanned.records)


class _DamagedError(Exception):
    """The pictures of a shard that cannot be used, a line each."""


def write_shards(config: WriterConfig) -> tuple[Manifest, list[str]]:
    """Make the folder of shards; returns its manifest and a line for each picture that was skipped.

    Raises ConfigError for a wrong call, DataError for damaged pictures with ``on_error="fail"``: all of them are
    named, and no manifest is written.
    """
    paths = folder_splits(config.source, config.splits)
    classes = folder_classes(paths)
    folders = {split: open_folder(path, classes) for split, path in paths.items()}
    made: dict[str, object] = {
        "by": f"headrace {__version__}",
        "splits": list(folders),
        "jpeg": config.jpeg,
        "seed": config.seed,
        "shard_mb": config.shard_mb,
    }
    if config.jpeg == "recode":
        made |= {"max_side": config.max_side, "quality": config.quality}
    finished = _claim(config, made)
    splits: dict[str, tuple[ShardInfo, ...]] = {}
    index_sha256: dict[str, str] = {}
    skipped: list[str] = []
    damaged: list[str] = []
    as_they_are = 0
    if config.jpeg != "verbatim":
        compile_kernels()  # once, before every worker would
    for split, folder in folders.items():
        written, lost = _write_split(config, split, folder, finished)
        damaged += lost
        if damaged:
            continue  # go on looking: the user wants the whole list
        skipped += [line for shard in written for line in shard.skipped]
        as_they_are += sum(int((shard.records["header"] == 0).sum()) for shard in written)
        splits[split] = tuple(shard.info for shard in written)
        with atomic_write(config.destination / index_name(split)) as file:
            index = _HashedFile(file)
            np.lib.format.write_array(index, np.concatenate([shard.records for shard in written]), allow_pickle=False)
        index_sha256[split] = index.sha256()
        _remove_others(config.destination, split, {info.name for info in splits[split]})
    if damaged:
        listed = "\n  ".join(damaged)
        raise DataError(
            f"{len(damaged)} damaged picture{'s' if len(damaged) > 1 else ''}; mend or remove them and go on with "
            f"--resume, or leave them out with --resume --on-error skip:\n  {listed}"
        )
    if skipped:
        made["skipped"] = skipped
    if config.jpeg != "verbatim":
        made["not_crop_addressed"] = as_they_are
    manifest = Manifest(root=config.destination, classes=classes, splits=splits, index_sha256=index_sha256, made=made)
    write_manifest(manifest)
    (config.destination / _MAKING).unlink()
    return manifest, skipped


def _remove_others(destination: Path, split: str, names: set[str]) -> None:
    """Remove a split's shards of an earlier run that had more: whoever reads ``<split>-*.tar`` would take them."""
    for tar in destination.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9][0-9].tar"):
        if tar.name not in names:
            tar.unlink()
            (destination / idx_name(tar.name)).unlink(missing_ok=True)


def _claim(config: WriterConfig, made: dict[str, object]) -> dict[str, ShardInfo]:
    """Take the destination: a new or empty folder, or with ``resume`` one that was being made in the same way.

    Returns the shards of a folder that was finished before, by name.
    """
    finished: dict[str, ShardInfo] = {}
    destination = config.destination
    try:
        destination.mkdir(parents=True, exist_ok=True)
        holds = [name for name in os.listdir(destination) if name == _MAKING or not name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"cannot write to {destination}: {error.strerror}") from error
    if holds and not config.resume:
        what = "a finished folder of shards" if MANIFEST in holds else "not empty"
        raise ConfigError(f"{destination} is {what}: choose another folder, or go on with it with --resume")
    if holds:
        if MANIFEST in holds:
            manifest = read_manifest(destination)
            before = manifest.made
            finished = {info.name: info for infos in manifest.splits.values() for info in infos}
        else:
            before = _read_making(destination)
        for name, value in made.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{destination} was begun with {name} {before.get(name)!r}, now it is {value!r}: "
                    "resume with the same, or choose another folder"
                )
    with atomic_write(destination / _MAKING) as file:
        file.write(json.dumps(made).encode())
    return finished


def _read_making(destination: Path) -> dict[str, object]:
    try:
        return dict(json.loads((destination / _MAKING).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{destination} is not empty and holds no shards that were begun: {error}") from error


def _write_split(
    config: WriterConfig, split: str, folder: Folder, finished: dict[str, ShardInfo]
) -> tuple[list[WrittenShard], list[str]]:
    plans = plan_shards(folder, split, seed=config.seed, shard_bytes=config.shard_mb * 1e6)
    writer = ShardWriter(
        folder=folder,
        source=str(config.source),
        destination=config.destination,
        jpeg=config.jpeg,
        recode=Recode(max_side=config.max_side, quality=config.quality),
        on_error=config.on_error,
        resume=config.resume,
        finished=finished,
    )
    written: list[WrittenShard] = []
    damaged: list[str] = []
    with Progress(split, len(folder), "pictures") as progress:
        for result in map_in_processes(writer, plans, workers=config.workers, progress=progress.update):
            if isinstance(result, WrittenShard):
                written.append(result)
            elif isinstance(result, _DamagedError):
                damaged += result.args[0]
            else:
                raise result
    return written, damaged
