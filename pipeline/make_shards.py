"""The command line of tools/make_shards.py (installed: headrace-make-shards)."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from .console import run_tool
from .errors import ConfigError, DataError
from .files import WriteError
from .host import available_cores
from .manifest import MANIFEST
from .prepare import JPEG_MODES
from .writer import WriterConfig, write_shards

EXAMPLE = """example:
  python tools/make_shards.py /data/imagenet /data/shards
  python train.py --shards /data/shards

on several machines, which see the same SRC and DST (it takes RANK and WORLD_SIZE from the environment):
  torchrun --nnodes 4 --node-rank R --master-addr HOST tools/make_shards.py /data/imagenet /data/shards
"""


def parse(argv: Sequence[str] | None) -> WriterConfig:
    """Flags -> config. Exits with code 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="make_shards",
        description="Turn an ImageNet folder into webdataset tar shards with a manifest.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="train/<class>/<picture>, val/<class>/<picture>; "
                        "a folder of class folders is all train")  # fmt: skip
    parser.add_argument("destination", metavar="DST", type=Path, help="a new or empty folder")
    parser.add_argument("--split", metavar="A,B", help="which splits (default: those that SRC has)")
    parser.add_argument("--jpeg", choices=JPEG_MODES, default="crop",
                        help="crop: the same pixels, rewritten so that a crop is decoded at the price of the crop; "
                        "what is no grey or colour JPEG is encoded as one (default); recode: resized and encoded anew, "
                        "likewise; verbatim: as they are")  # fmt: skip
    parser.add_argument("--max-side", metavar="N", type=int, default=400, help="recode: long side (default: 400)")
    parser.add_argument("--quality", metavar="Q", type=int, default=90, help="recode: JPEG quality (default: 90)")
    parser.add_argument("--shard-mb", metavar="MB", type=float, default=128.0, help="size of a tar (default: 128)")
    parser.add_argument(
        "--workers", metavar="N", type=int, default=available_cores(), help="processes (default: cores)"
    )
    parser.add_argument("--on-error", choices=("fail", "skip"), default="fail",
                        help="damaged pictures: list all and stop, or leave them out and list them")  # fmt: skip
    parser.add_argument("--on-warning", choices=("keep", "skip", "fail"), default="keep",
                        help="pictures that libjpeg decodes with a warning: keep them as it shows them (default), or "
                        "treat them as damaged; listed in any case")  # fmt: skip
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the shuffle (default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on with a folder that was begun with the same flags")
    args = parser.parse_args(argv)
    return WriterConfig(
        source=args.source,
        destination=args.destination,
        splits=tuple(args.split.split(",")) if args.split else None,
        jpeg=args.jpeg,
        max_side=args.max_side,
        quality=args.quality,
        shard_mb=args.shard_mb,
        workers=args.workers,
        on_error=args.on_error,
        on_warning=args.on_warning,
        seed=args.seed,
        resume=args.resume,
        rank=_of_environment("RANK", 0),
        world_size=_of_environment("WORLD_SIZE", 1),
    )


def _of_environment(name: str, default: int) -> int:
    """What torchrun says, or any other launcher."""
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"{name} in the environment must be a whole number, was {text!r}")
    return int(text)


def run(argv: Sequence[str] | None = None) -> int:
    """Make the shards and say what was made."""
    config = parse(argv)
    start = time.monotonic()
    if config.world_size > 1:
        world = config.world_size
        print(f"rank {config.rank} of {world} writes the shards n with n % {world} == {config.rank}", flush=True)
    try:
        manifest, skipped = write_shards(config)
    except WriteError as error:
        raise DataError(f"{error}; make room, then go on with --resume") from error
    elapsed_s = time.monotonic() - start
    for split, shards in manifest.splits.items():
        samples, size = sum(s.samples for s in shards), sum(s.bytes for s in shards)
        print(f"{split}: {samples:,} pictures in {len(shards)} shard{'s'[: len(shards) != 1]}, {size / 1e6:,.1f} MB")
    if config.rank:
        print(f"rank {config.rank} is done after {elapsed_s:.1f} s; rank 0 completes {config.destination}")
        return 0
    print(f"{len(manifest.classes):,} classes; {config.destination} is complete after {elapsed_s:.1f} s")
    for key, what in _REMARKS.items():
        found = manifest.made.get(key, 0)
        if number := found if isinstance(found, int) else len(found):
            listed = "" if isinstance(found, int) else f"; {MANIFEST} lists them ({key})"
            print(f"{number:,} picture{'s'[: number > 1]}: {what}{listed}")
    for line in skipped:
        print(f"skipped {line}")
    return 0


_REMARKS = {
    "progressive": "progressive JPEG, written as baseline without loss",
    "arithmetic": "arithmetic-coded JPEG, written as baseline without loss",
    "exif_orientation": "EXIF says that it is turned, which is ignored, as in the original recipe",
    "normalised": "no grey or colour JPEG, or one with no lossless crop-addressed form: decoded and encoded as JPEG",
    "kept": "no grey or colour JPEG, kept as it is",
    "warnings": "libjpeg decodes it with a warning; it is kept as libjpeg shows it (--on-warning)",
    "not_crop_addressed": "not crop-addressed, so it will be decoded whole",
    "skipped": "damaged, left out",
}


def main() -> None:
    """The console entry."""
    run_tool("make_shards", run)
