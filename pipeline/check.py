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
from .processes import map_in_processes
from .scan import idx_name, scan_shard
from .shards import Manifest, ShardInfo, check_size, read_index, read_manifest

EXAMPLE = """example:
  python tools/check_shards.py /data/shards --deep
"""


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """Checks one tar at a time, in any process; gives back what is wrong with it, a line each."""

    manifest: Manifest
    deep: bool

    def __call__(self, task: tuple[str, int], count: Callable[[], None]) -> tuple[list[str], list[str]]:
        """``task`` is a split and the number of a shard. Returns problems, and the keys that were found."""
        split, number = task
        info = self.manifest.splits[split][number]
        path = self.manifest.root / info.name
        try:
            check_size(path, info)
            scanned = scan_shard(path)
        except DataError as error:
            return [str(error)], []
        problems = list(self._differences(path, info, split, number, scanned.records, scanned.info, scanned.idx))
        for row, key in enumerate(scanned.keys):
            count()
            if self.deep and (problem := _decode(path, scanned.records[row])):
                problems.append(f"{path}: {key}.jpg: {problem}")
        return problems, list(scanned.keys)

    def _differences(
        self,
        path: Path,
        info: ShardInfo,
        split: str,
        number: int,
        records: npt.NDArray[np.void],
        found: ShardInfo,
        idx: list[str],
    ) -> Iterator[str]:
        if found != info:
            for name in ("samples", "sha256"):
                want, got = getattr(info, name), getattr(found, name)
                if want != got:
                    yield f"{path}: the manifest says {name} {want}, the shard has {got}"
        first = sum(other.samples for other in self.manifest.splits[split][:number])
        try:
            indexed = read_index(self.manifest, split)[first : first + info.samples]
        except DataError:
            indexed = records  # said once for the split
        if not np.array_equal(indexed, records):
            yield f"{path}: the index {self.manifest.index_path(split)} does not describe this shard"
        outside = records["label"][(records["label"] < 0) | (records["label"] >= len(self.manifest.classes))]
        if len(outside):
            yield f"{path}: label {outside[0]} is outside 0 ... {len(self.manifest.classes) - 1}"
        dali = path.with_name(idx_name(path.name))
        want_idx = f"v1.2 {len(idx)}\n{''.join(idx)}"
        try:
            if dali.read_text() != want_idx:
                yield f"{dali} does not describe its shard"
        except (OSError, UnicodeDecodeError) as error:
            yield f"{dali} cannot be read: {error}"


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
    for split in manifest.splits:
        try:
            read_index(manifest, split)
            if sha256_of(manifest.index_path(split)) != manifest.index_sha256[split]:
                problems.append(f"{manifest.index_path(split)} is not the file that the manifest was written with")
        except DataError as error:
            problems.append(str(error))
    tasks = [(split, number) for split, infos in manifest.splits.items() for number in range(len(infos))]
    total = sum(info.samples for infos in manifest.splits.values() for info in infos)
    seen: dict[str, str] = {}
    with Progress("check", total, "samples") as progress:
        check = ShardCheck(manifest=manifest, deep=deep)
        results = map_in_processes(check, tasks, workers=workers, progress=progress.update)
        for (split, number), result in zip(tasks, results, strict=True):
            if isinstance(result, Exception):
                raise result
            problems += result[0]
            name = manifest.splits[split][number].name
            for key in result[1]:
                if (other := seen.setdefault(key, name)) != name:
                    problems.append(f"{root}: {name} and {other} both hold the key {key}")
    return problems, len(seen)


def run(argv: Sequence[str] | None = None) -> int:
    """Check, list what is wrong on stdout, and give 0 or 1."""
    parser = argparse.ArgumentParser(
        prog="check_shards",
        description="Check a folder of shards against its manifest: sizes, hashes, members, labels and indexes.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", metavar="DST", type=Path, help="a folder that tools/make_shards.py wrote")
    parser.add_argument("--deep", action="store_true", help="decode every picture too")
    parser.add_argument(
        "--workers", metavar="N", type=int, default=available_cores(), help="processes (default: cores)"
    )
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, was {args.workers}")
    problems, samples = check_shards(args.root, deep=args.deep, workers=args.workers)
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
