"""Is the profiler right? Bottlenecks are planted one at a time; the verdict must name them, and the stall be the truth.

    python benchmarks/ground_truth.py SHARDS [--turns 3] [--only disk,neighbour]

The truth of a stall is counted apart from the profiler: how many pictures fewer than the devices ask for are delivered
while they ask, in a run of its own, under the same plant.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image

from pipeline import Loader, PipelineConfig
from pipeline.device import find_device
from pipeline.profiler.bench import Bench
from pipeline.profiler.findings import write_report
from pipeline.profiler.machine import read_machine
from pipeline.profiler.on_device import OnDevice, measure_on_device
from pipeline.profiler.remedies import Place
from pipeline.shards import open_shards
from pipeline.sim import Cards
from pipeline.source import Source
from pipeline.transfer import DeviceBatch, Feed
from tests.faulty import SlowShards


class FreeFeed(Feed):
    """A bus, and a device, that bring batches in no time."""

    bytes_per_s = float("inf")
    copying_s = 0.0  # until now

    def _normalised(self, batch: DeviceBatch) -> DeviceBatch:
        return batch


class SlowFeed(FreeFeed):
    """A bus of so many bytes a second, whose copies nothing hides."""

    bytes_per_s = 100e6

    def _normalised(self, batch: DeviceBatch) -> DeviceBatch:
        begin = time.perf_counter()
        time.sleep(batch.images.numel() / self.bytes_per_s)
        self.copying_s += time.perf_counter() - begin
        return batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plant:
    """A bottleneck, and what the profiler must call it."""

    cause: str
    demand: float  # images/s
    workers: int = 2
    source: Callable[[Path], Source] | None = None
    data: Callable[[Path], Path] | None = None  # an ImageNet folder instead of the shards
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    step_s: float | None = None  # of a real loop over a Feed, of which the copies are slow
    feed: type[FreeFeed] = FreeFeed


def slow_disk(root: Path) -> Source:
    """About 60 pictures a second for each worker, where two cores would decode ten times that."""
    shards = open_shards(root, "train")
    return SlowShards(**vars(shards), bytes_per_s=5e6)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """As in a container that was given one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """Somebody else's program, as many processes as there are cores."""
    # An orphan: no child of ours.
    code = "import os\nif pid := os.fork(): print(pid)\nelse:\n os.close(1)\n while True: pass"
    pids = []
    for _ in os.sched_getaffinity(0):
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True
        )
        pids.append(int(done.stdout))
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def monsters(root: Path) -> Path:
    """The shards' pictures as a folder, 1 in 100 of them blown up to 24 megapixels."""
    shards = open_shards(root, "train")
    folder = Path(tempfile.mkdtemp(prefix="headrace-monsters-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "train" / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(len(shards)):
        path = folder / "train" / "a" / f"{number:04d}.JPEG"
        path.write_bytes(shards.read(number))
        if number % 100 == 7:
            noise = Image.fromarray(rng.integers(0, 256, (750, 1000, 3), np.uint8)).resize((6000, 4000))
            noise.save(path, quality=92)
    return folder


PLANTS = {
    "slow disk": Plant(cause="disk", demand=474.6, source=slow_disk),
    "one core": Plant(cause="decode", demand=3796.8, workers=1, around=one_core),
    "one worker": Plant(cause="workers", demand=3796.8, workers=1),
    "monsters": Plant(cause="stragglers", demand=800.0, data=monsters),
    "neighbour": Plant(cause="neighbour", demand=1500.0, around=neighbour),
    "slow bus": Plant(cause="transfer", demand=0, step_s=0.1, feed=SlowFeed),
    "slow model": Plant(cause="step", demand=0, step_s=0.4),
    "slow cards": Plant(cause="step", demand=150.0),
}


def count_stall(config: PipelineConfig, source: Source | None, demand: float, seconds: float) -> float:
    """What the devices lack of the pictures that they could have trained in some seconds."""
    with Loader(config, source=source) as loader:
        cards = Cards(demand, slots=0)
        begin, images, taken, before = 0.0, 0, 0, 0
        while True:
            for batch in loader:
                cards.take(len(batch.labels))
                taken += 1
                now = time.perf_counter()
                images += before if begin else 0  # trained since the batch before this one was taken
                before = len(batch.labels)
                if not begin and taken > config.slots + 2:
                    begin = now
                if begin and now - begin > seconds:
                    return 1 - images / (now - begin) / demand


def on_device(plant: Plant, config: PipelineConfig, seconds: float) -> tuple[OnDevice, float]:
    """The profiler's figures of a real loop, and the truth: the share of another's time that the planted bus took."""
    assert plant.step_s is not None
    step_s, device = plant.step_s, find_device("cpu")
    measured = measure_on_device(
        lambda loader: plant.feed(loader, device, torch.float32), lambda _: time.sleep(step_s), config, seconds
    )
    with Loader(config) as loader, contextlib.closing(plant.feed(loader, device, torch.float32)) as feed:
        for _ in feed:  # an epoch, which the start of the workers is part of
            time.sleep(step_s)
        begin, before = time.perf_counter(), feed.copying_s
        while time.perf_counter() - begin < seconds / 3:
            for _ in feed:
                time.sleep(step_s)
        return measured, (feed.copying_s - before) / (time.perf_counter() - begin)


def main() -> None:
    """Every plant so many times, and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--only")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is planted is taken away
    named = close = total = 0
    print(f"{'planted':12s} {'verdict':10s} {'cause':12s} {'stall':>7s} {'truth':>7s}  sentence")
    for _ in range(args.turns):
        for name, plant in PLANTS.items():
            if args.only and name not in args.only.split(","):
                continue
            where = {"data": plant.data(args.shards)} if plant.data else {"shards": args.shards}
            config = PipelineConfig(**where, workers=plant.workers, backend="pillow")
            with plant.around():
                device = truth = None
                demand = plant.demand
                if plant.step_s:
                    device, truth = on_device(plant, config, args.seconds)
                    demand = device.synthetic.images_per_s
                source = plant.source(args.shards) if plant.source else None
                host = Bench(config, demand=demand, seconds=args.seconds, source=source, alternatives=False).measure()
                report, _ = write_report(
                    config,
                    host,
                    device,
                    demand_per_device=demand,
                    devices=1,
                    machine=read_machine(),
                    place=Place(flag="--shards", path="DST", dataset_bytes=1e12, memory_bytes=None),
                )
                if truth is None:
                    again = plant.source(args.shards) if plant.source else None
                    truth = max(0.0, count_stall(config, again, demand, args.seconds / 3))
            right, near = report.cause == plant.cause, abs(report.stall_fraction - truth) <= 0.05
            named, close, total = named + right, close + near, total + 1
            print(
                f"{name:12s} {report.verdict:10s} {report.cause:12s} {report.stall_fraction:7.3f} {truth:7.3f}  "
                f"{'' if right else f'WANTED {plant.cause}: '}{report.sentence}",
                flush=True,
            )
    print(f"named {named} of {total}; stall within 5 points in {close} of {total}")


if __name__ == "__main__":
    main()
