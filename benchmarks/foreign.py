"""A plain torch DataLoader over torchvision's ImageFolder, profiled: and how close the promised switch comes.

    python benchmarks/foreign.py PICTURES [--turns 5]      (where torchvision is installed)

The transforms are the original recipe's. The promise is made from 512 of the pictures; the outcome is measured on
shards of all of them, in turns with the DataLoader.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pipeline import Loader, PipelineConfig
from pipeline.host import available_cores
from pipeline.profiler import profile
from pipeline.profiler.measure import take
from pipeline.writer import WriterConfig, write_shards

DEMAND = 8 * 474.6


def their_loader(pictures: Path) -> DataLoader[Any]:
    """As in the original recipe."""
    steps = [
        transforms.RandomResizedCrop(299),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
    data = datasets.ImageFolder(str(pictures / "train"), transforms.Compose(steps))
    return DataLoader(data, batch_size=64, shuffle=True, num_workers=available_cores(), persistent_workers=True)


def epoch_rate(loader: DataLoader[Any]) -> float:
    """Images/s of some epochs, without the first batches."""
    images, begin = 0, 0.0
    for _ in range(3):
        for labels in (batch[1] for batch in loader):
            images += len(labels) if begin else 0
            begin = begin or time.perf_counter()
    return images / (time.perf_counter() - begin)


def main() -> None:
    """Profile, switch, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    theirs = their_loader(args.pictures)
    report = profile(theirs, demand=DEMAND, seconds=30.0, data=args.pictures)
    print(report, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        shards = Path(scratch) / "shards"
        write_shards(WriterConfig(source=args.pictures, destination=shards, workers=available_cores()))
        with Loader(PipelineConfig(shards=shards, workers=available_cores())) as ours:
            turns = [(epoch_rate(theirs), take(ours, 2.0).images_per_s) for _ in range(args.turns)]
    promised = report.switches[-1].images_per_s / report.supply
    came = statistics.median(new / old for old, new in turns)
    rates = ", ".join(f"{old:,.0f} -> {new:,.0f}" for old, new in turns)
    off = 100 * (promised / came - 1)
    print(f"\npromised: {promised:.2f} times as fast; it is {came:.2f} ({off:+.0f} %), by turn: {rates}")


if __name__ == "__main__":
    main()
