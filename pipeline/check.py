"""Is a folder of shards what its manifest says? (the command line of tools/check_shards.py)"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .backends.pillow import decode_rgb
from .console import Progress, run_tool
from .errors import ConfigError, DataError
from .files import sha256_of
from .host import available_cores
from .idx import idx_name, idx_text
from .manifest import ShardInfo, read_manifest
from .place import local_folder
from .processes import map_in_processes
from .scan import ScannedShard, scan_shard
from .shards import check_size, read_index

_NAMED = 20  # pictures of a shard that are named, where more have changed
EXAMPLE = """example:
  python tools/check_shards.py /data/shards --deep
"""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One tar, and what is said of it."""

    info: ShardInfo
    index: Path
    indexed: npt.NDArray[np.void] | None  # its part of the index; None where that cannot be read


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """Checks one tar at a time, in any process; gives back what is wrong with it, a line each."""

    root: Path
    classes: int
    deep: bool

    def __call__(self, task: ShardTask, count: Callable[[], None]) -> tuple[list[str], list[str]]:
        """Returns problems, and the keys that were found."""
        path = self.root / task.info.name
        try:
            check_size(path, task.info)
            scanned = scan_shard(path)
        except DataError as error:
            return [str(error)], []
        problems = list(self._differences(path, task, scanned))
        for row, key in enumerate(scanned.keys):
            count()
            if self.deep and (problem := _decode(path, scanned.records[row])):
                problems.append(f"{path}: {key}.jpg: {problem}")
        return problems, list(scanned.keys)

    def _differences(self, path: Path, task: ShardTask, scanned: ScannedShard) -> Iterator[str]:
        for name in ("samples", "sha256"):
            want, got = getattr(task.info, name), getattr(scanned.info, name)
            if want != got:
                yield f"{path}: the manifest says {name} {want}, the shard has {got}"
        if task.indexed is not None and not np.array_equal(task.indexed, scanned.records):
            yield f"{path}: the index {task.index} does not describe this shard"
            if len(task.indexed) == len(scanned.records):
                changed = np.flatnonzero(task.indexed != scanned.records).tolist()
                yield from (f"{path}: {scanned.keys[row]}.jpg is not what it was" for row in changed[:_NAMED])
        labels = scanned.records["label"]
        outside = labels[(labels < 0) | (labels >= self.classes)]
        if len(outside):
            yield f"{path}: label {outside[0]} is outside 0 ... {self.classes - 1}"
        idx = path.with_name(idx_name(path.name))
        try:
            if idx.read_text() != idx_text(scanned.idx):
                yield f"{idx} does not describe its shard"
        except (OSError, UnicodeDecodeError) as error:
            yield f"{idx} cannot be read: {error}"


def _decode(path: Path, record: np.void) -> str:
    with open(path, "rb") as file:
        file.seek(int(record["offset"]))
        data = file.read(int(record["bytes"]))
    try:
        size = decode_rgb(data).size
    except DataError as error:
        return str(error)
    want = (int(record["width"]), int(record["height"]))
    return "" if size == want else f"the index says {want[0]}x{want[1]}, the picture is {size[0]}x{size[1]}"


def check_shards(root: Path, *, deep: bool, workers: int) -> tuple[list[str], int]:
    """What is wrong with a folder of shards, a line each, and how many samples were looked at.

    Every shard's size, sha256, members, labels, index and .idx; with ``deep`` every picture is decoded.
    Raises ConfigError where there is no manifest to check against.
    """
    manifest = read_manifest(root)
    problems: list[str] = []
    tasks: list[ShardTask] = []
    for split, infos in manifest.splits.items():
        index = manifest.index_path(split)
        records: npt.NDArray[np.void] | None = None
        try:
            records = read_index(manifest, split)
            if sha256_of(index) != manifest.index_sha256[split]:
                problems.append(f"{index} is not the file that the manifest was written with")
        except DataError as error:
            problems.append(str(error))
        first = 0
        for info in infos:
            part = None if records is None else records[first : first + info.samples]
            tasks.append(ShardTask(info=info, index=index, indexed=part))
            first += info.samples
    seen: dict[str, str] = {}
    with Progress("check", sum(task.info.samples for task in tasks), "samples") as progress:
        check = ShardCheck(root=root, classes=len(manifest.classes), deep=deep)
        results = map_in_processes(check, tasks, workers=workers, progress=progress.update)
        for task, result in zip(tasks, results, strict=True):
            if isinstance(result, Exception):
                raise result
            problems += result[0]
            for key in result[1]:
                if (other := seen.setdefault(key, task.info.name)) != task.info.name:
                    problems.append(f"{root}: {task.info.name} and {other} both hold the key {key}")
    return problems, len(seen)


def run(argv: Sequence[str] | None = None) -> int:
    """Check, list what is wrong on stdout, and give 0 or 1."""
    parser = argparse.ArgumentParser(
        prog="check_shards",
        description="Check a folder of shards against its manifest: sizes, hashes, members, labels and indexes.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", metavar="DST", help="a folder that tools/make_shards.py wrote")
    parser.add_argument("--deep", action="store_true", help="decode every picture too")
    parser.add_argument(
        "--workers", metavar="N", type=int, default=available_cores(), help="processes (default: cores)"
    )
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, was {args.workers}")
    problems, samples = check_shards(local_folder(args.root, "check_shards"), deep=args.deep, workers=args.workers)
    for problem in problems:
        print(problem)
    if problems:
        print(
            f"{args.root}: {len(problems)} problem{'s'[: len(problems) > 1]}; copy these files again, or let "
            f"make_shards.py SRC {args.root} --resume write them again",
            file=sys.stderr,
        )
        return 1
    how = "decoded and all good" if args.deep else "all good"
    print(f"{args.root}: {samples:,} samples, {how}")
    return 0


def main() -> None:
    """The console entry."""
    run_tool("check_shards", run)
