"""Do the predicted rates come true? Every remedy is predicted from 200 pictures, then applied to all of them.

    python benchmarks/predictions.py PICTURES

The outcome is measured in turns with the way as it was, and so is what the prediction is held against.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import Loader, PipelineConfig
from pipeline.profiler.bench import Bench, Host
from pipeline.profiler.forecast import forecast
from pipeline.profiler.measure import take
from pipeline.profiler.remedies import predict
from pipeline.shards import open_shards
from pipeline.source import Source
from pipeline.writer import WriterConfig, write_shards
from tests.faulty import SlowShards

_TURNS, _SECONDS = 5, 1.0


def outcome(before: tuple[PipelineConfig, Source | None], after: tuple[PipelineConfig, Source | None]) -> float:
    """How many times as fast the second is."""
    with Loader(before[0], source=before[1]) as old, Loader(after[0], source=after[1]) as new:
        turns = [[take(each, _SECONDS, windows=1).images_per_s for each in (old, new)] for _ in range(_TURNS)]
    return statistics.median(there / here for here, there in turns)


def batch_forecast(host: Host, config: PipelineConfig, batch_size: int) -> float:
    """What another batch size gives, from the pictures' costs alone."""

    def rate(size: int) -> float:
        return forecast(
            host.usual.ledger.cpu_us,
            workers=host.usual.workers,
            cores=2,
            slots=config.slots,
            batch_size=size,
            demand=None,
            loader_us_per_image=host.usual.run.loader_us,
        ).images_per_s

    return rate(batch_size) / rate(config.batch_size)


def trials(pictures: Path, made: dict[str, Path]) -> Iterator[tuple[str, float, float]]:
    """(what, predicted gain, gain)"""
    folder = PipelineConfig(data=pictures, workers=2)
    for name, usual in {
        "folder": folder,
        "verbatim": PipelineConfig(shards=made["verbatim"], workers=2),
        "crop": PipelineConfig(shards=made["crop"], workers=2),
        "crop, 1 worker": PipelineConfig(shards=made["crop"], workers=1),
        "folder, 1 worker": dataclasses.replace(folder, workers=1),
    }.items():
        host = Bench(usual, demand=1e5, seconds=20.0, pictures=200).measure()
        supply = host.usual.run.images_per_s
        for way, other in host.other.items():
            promised = predict(host, cheaper=other.cheaper, size=other.bytes / host.usual.run.bytes) / supply
            changes: dict[str, Any] = {"data": None, "shards": made[way]} if way in made else {"backend": way}
            yield f"{name} -> {way}", promised, outcome((usual, None), (dataclasses.replace(usual, **changes), None))
        for count, other in host.by_workers.items():
            applied = dataclasses.replace(usual, workers=count)
            yield f"{name} -> {count} workers", other.faster, outcome((usual, None), (applied, None))
        if name == "crop":
            for size in (16, 256):
                applied = dataclasses.replace(usual, batch_size=size)
                promised = batch_forecast(host, usual, size)
                yield f"{name} -> batches of {size}", promised, outcome((usual, None), (applied, None))
    crop = PipelineConfig(shards=made["crop"], workers=2)

    def slow() -> Source:
        return SlowShards(**vars(open_shards(made["crop"], "train")), bytes_per_s=2e7)

    host = Bench(crop, demand=1e5, seconds=20.0, pictures=200, source=slow(), alternatives=False).measure()
    yield "slow disk -> memory", host.in_memory.faster, outcome((crop, slow()), (crop, None))


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    args = parser.parse_args()
    errors = []
    with tempfile.TemporaryDirectory() as scratch:
        made = {jpeg: Path(scratch) / jpeg for jpeg in ("verbatim", "crop", "recode")}
        for jpeg, path in made.items():
            write_shards(WriterConfig(source=args.pictures, destination=path, jpeg=jpeg, workers=2))
        for what, promised, came in trials(args.pictures, made):
            errors.append(promised / came - 1)
            print(
                f"{what:32s} predicted {promised:6.2f} times, it is {came:6.2f}: {100 * errors[-1]:+5.1f} %", flush=True
            )
    print(f"within 10 %: {sum(abs(error) <= 0.1 for error in errors)} of {len(errors)}")


if __name__ == "__main__":
    main()
