"""A plain torch DataLoader over torchvision's ImageFolder, profiled: and how close the promised switch comes.

    python benchmarks/foreign.py PICTURES [--turns 5]      (where torchvision is installed)

The transforms are the original recipe's. The promise is made from 512 of the pictures; the outcome is measured on
shards of all of them, in turns with the DataLoader.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pipeline import Loader, PipelineConfig
from pipeline.host import available_cores
from pipeline.profiler import profile
from pipeline.profiler.any_batch import images_of
from pipeline.profiler.any_loader import Epochs, Timer
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
    return DataLoader(data, batch_size=64, shuffle=True, num_workers=available_cores())


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
        config = PipelineConfig(shards=shards, batch_size=64, workers=report.switches[-1].cores)
        with Loader(config) as ours:
            timer, epochs = Timer(images_of, None), Epochs(theirs)
            turns = [(timer.time(epochs, lambda _: None, 3.0), take(ours, 3.0)) for _ in range(args.turns)]
            pids = (os.getpid(), *ours.decode_pids)
    switch = report.switches[-1]
    rates = ", ".join(f"{old.images_per_s:,.0f} -> {new.images_per_s:,.0f}" for old, new in turns)
    cpu_us = [1e6 * sum(new.use.by_process[pid] for pid in pids) / new.images for _, new in turns]
    print(f"\n{args.turns} turns of both, images/s: {rates}")
    compare("times as fast", switch.faster, [n.images_per_s / o.images_per_s for o, n in turns])
    compare("images/s", switch.images_per_s, [new.images_per_s for _, new in turns])
    compare("CPU us a picture", switch.cpu_us, cpu_us)
    before = [1e6 * old.use.ours_s / old.images for old, _ in turns]
    compare("CPU us a picture, as it was", report.cpu_us_per_image, before)


def compare(what: str, promised: float, came: list[float]) -> None:
    """One line."""
    middle = statistics.median(came)
    spread = f"{min(came):,.2f} to {max(came):,.2f}"
    print(
        f"{what:28s} promised {promised:9,.2f}, came {middle:9,.2f} ({spread}): {100 * (promised / middle - 1):+.0f} %"
    )


if __name__ == "__main__":
    main()
