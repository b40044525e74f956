"""Claim: a server that fails a tenth of all requests costs a cold epoch from a URL under a tenth of its speed.

python benchmarks/remote.py SRC     (an ImageNet folder; 24 shards are made of it, and served on loopback)
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline import PipelineConfig, build_loader
from pipeline.folder import folder_classes, folder_splits, open_folder
from pipeline.manifest import read_manifest
from pipeline.writer import WriterConfig, write_shards
from tests.http_server import Fault, no_fault, serve

SHARDS = 24
FAULTS = ("500", "reset", "short")


def make(source: Path, destination: Path) -> int:
    """24 shards of the training pictures; returns how many there are."""
    splits = folder_splits(source)
    folder = open_folder(splits["train"], folder_classes(splits))
    total = sum(Path(folder.root, folder.name(i)).stat().st_size for i in range(len(folder)))
    config = WriterConfig(source=source, destination=destination, splits=("train",), shard_mb=total / SHARDS / 1e6)
    write_shards(config)
    made = len(read_manifest(destination).splits["train"])
    assert made == SHARDS, made
    return len(folder)


def failing(seed: int) -> Fault:
    """A tenth of the requests fail, in one of three ways, the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311

    def fault(name: str, before: int) -> str | None:  # noqa: ARG001 - a server passes them
        return chance.choice(FAULTS) if chance.random() < 0.1 else None

    return fault


def cold_epoch(where: str | Path, cache: Path, image_size: int) -> float:
    """Images/s from the first request for a batch to the last batch, nothing cached; each sample exactly once."""
    shutil.rmtree(cache, ignore_errors=True)
    config = PipelineConfig(shards=where, batch_size=64, image_size=image_size, cache_dir=cache)
    with build_loader(config) as loader:
        start = time.perf_counter()
        seen = np.concatenate([batch.indices.numpy().copy() for batch in loader])
        took = time.perf_counter() - start
    assert sorted(seen.tolist()) == list(range(len(seen)))
    return len(seen) / took


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--runs", type=int, default=5, help="alternating (default: 5)")
    parser.add_argument("--image-size", type=int, default=299)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        shards, cache = Path(scratch, "shards"), Path(scratch, "cache")
        images = make(args.source, shards)
        clean = stack.enter_context(serve(shards, no_fault))
        broken = stack.enter_context(serve(shards, failing(0)))
        places = {"local folder": shards, "clean server": clean.url, "10 % of requests fail": broken.url}
        rates: dict[str, list[float]] = {name: [] for name in places}
        cold_epoch(shards, cache, args.image_size)  # kernels are compiled
        for _ in range(args.runs):
            for name, where in places.items():
                rates[name].append(cold_epoch(where, cache, args.image_size))
        print(f"{images:,} pictures in {SHARDS} shards at {args.image_size} px, {args.runs} alternating cold epochs")
        base = statistics.median(rates["clean server"])
        for name, values in rates.items():
            middle = statistics.median(values)
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            print(f"  {name:24s}{middle:8,.0f} images/s  ({spread})  {middle / base:.2f} of the clean server's")
        print(f"  requests: {clean.asked.total()} and {broken.asked.total()}")


if __name__ == "__main__":
    main()
