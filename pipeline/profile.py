"""Can this host feed the devices, and if not, what stands in the way? (tools/profile_loader.py, headrace-profile)

Three things are measured: what the loader delivers, what a picture costs in CPU time over all its processes, and what
each stage of that costs in one process of its own. The rest is arithmetic, and it is shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .backends.pillow import PillowBackend
from .config import PipelineConfig
from .console import Progress, run_tool
from .errors import ConfigError
from .files import atomic_write
from .host import available_cores
from .loader import Loader, build_loader
from .place import local_folder
from .worker import make_crops

EXAMPLE = """example: eight NPUs that each train 474.6 images/s
  python tools/profile_loader.py --shards /data/shards --demand 474.6 --devices 8
"""
WINDOWS = 5  # the supply is the median of so many
CROP_SHARE = 0.55  # of a whole picture's decode, what a training crop's takes from a crop-addressed one (benchmarks/)
STAGES = ("read", "decode", "resize")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supply:
    """What the loader delivers with nobody computing."""

    images_per_s: float  # median of the windows
    low: float
    high: float
    cpu_us_per_image: float  # user and system time of all decode processes and of the loader itself
    images: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One step from the disk to the slot: CPU time and wall time of one process, per picture."""

    name: str
    cpu_us_per_image: float
    wall_us_per_image: float


def measure_supply(loader: Loader, seconds: float) -> Supply:
    """Ask for batches without pause. The first ring of them, which waited for the processes to start, is left out."""
    ticks = os.sysconf("SC_CLK_TCK")

    def cpu_s() -> float:
        total = time.process_time()
        for pid in loader.decode_pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / ticks  # utime and stime
        return total

    rates: list[float] = []
    images = warm = 0
    window_images, window_start = 0, 0.0
    cpu_start = 0.0
    with Progress("loader", WINDOWS, "windows") as progress:
        while len(rates) < WINDOWS:
            for batch in loader:
                now = time.perf_counter()
                if warm <= loader.config.slots:
                    warm += 1
                    window_start = now
                    cpu_start = cpu_s()
                    continue
                images += len(batch.labels)
                window_images += len(batch.labels)
                if now - window_start >= seconds / WINDOWS:
                    rates.append(window_images / (now - window_start))
                    window_images, window_start = 0, now
                    progress.update(len(rates))
                if len(rates) == WINDOWS:
                    break
    return Supply(
        images_per_s=statistics.median(rates),
        low=min(rates),
        high=max(rates),
        cpu_us_per_image=(cpu_s() - cpu_start) / images * 1e6,
        images=images,
    )


def measure_stages(loader: Loader, seconds: float) -> list[Stage]:
    """The stages one after the other, in this process, with Pillow, pictures in random order.

    DALI runs decode and resize as one graph: its price is the supply's CPU time, the split is Pillow's.
    """
    config, source = loader.config, loader.source
    backend = PillowBackend(image_size=config.image_size, max_pictures=1)
    out = np.empty((config.image_size, config.image_size, 3), np.uint8)
    cpu, wall = np.zeros(len(STAGES)), np.zeros(len(STAGES))
    order = np.random.default_rng(0).permutation(len(source))
    count, deadline = -1, 0.0  # the first picture only loads what is compiled
    while count < 1 or time.perf_counter() < deadline:
        if count == 0:
            cpu[:], wall[:], deadline = 0, 0, time.perf_counter() + seconds
        index = int(order[count % len(order)])
        marks = [_clocks()]
        indices = np.array([index])
        pictures = source.open(indices)
        crops = make_crops(config, 0, indices, pictures.widths, pictures.heights)
        region = crops.region[0].tolist()
        excerpt = pictures.excerpt(0, region)
        marks.append(_clocks())
        pixels = backend.cut(pictures, 0, region, excerpt)
        marks.append(_clocks())
        box, flip = crops.box[0].tolist(), bool(crops.flip[0])
        backend.resampler.resize(pixels, region[2], region[3], box=box, flip=flip, out_HWC=out)
        marks.append(_clocks())
        times = np.diff(np.array(marks), axis=0)
        cpu += times[:, 0]
        wall += times[:, 1]
        count += 1
    return [
        Stage(name=name, cpu_us_per_image=c / count * 1e6, wall_us_per_image=w / count * 1e6)
        for name, c, w in zip(STAGES, cpu.tolist(), wall.tolist(), strict=True)
    ]


def _clocks() -> tuple[float, float]:
    """CPU seconds of this thread, and wall seconds."""
    return time.thread_time(), time.perf_counter()


def report(
    loader: Loader, supply: Supply, stages: list[Stage], demand: float, devices: int, place: str
) -> dict[str, Any]:
    """Verdict, stages and remedies, as the JSON of ``--json``."""
    asked = demand * devices
    cores = available_cores()
    stall = max(0.0, 1 - supply.images_per_s / asked)
    read = stages[0]
    disk_wait_us = max(0.0, read.wall_us_per_image - read.cpu_us_per_image)
    cpu_us = sum(stage.cpu_us_per_image for stage in stages)
    limit = "io" if disk_wait_us > cpu_us else "cpu"
    verdict = limit if stall else "compute"
    cores_needed = asked * supply.cpu_us_per_image / 1e6
    return {
        "verdict": verdict,
        "sentence": _sentence(verdict, asked, devices, supply, stall, cores_needed, cores),
        "demand": asked,
        "supply": supply.images_per_s,
        "supply_spread": [supply.low, supply.high],
        "stall_fraction": stall,
        "images": supply.images,
        "cpu_us_per_image": supply.cpu_us_per_image,
        "cores_needed": cores_needed,
        "cores_here": cores,
        "backend": loader.backend,
        "workers": loader.workers,
        "image_size": loader.config.image_size,
        "split": loader.config.split,
        "stages": [
            {
                "name": stage.name,
                "cpu_us_per_image": stage.cpu_us_per_image,
                "wall_us_per_image": stage.wall_us_per_image,
                "share": stage.cpu_us_per_image / cpu_us,
            }
            for stage in stages
        ],
        "remedies": _remedies(loader, supply, stages, place, cores),
    }


def _sentence(
    verdict: str, asked: float, devices: int, supply: Supply, stall: float, cores_needed: float, cores: int
) -> str:
    who = f"{devices} device{'s'[: devices > 1]} ask{'s'[: devices == 1]} for {asked:,.0f} images/s"
    gives = f"this host gives {supply.images_per_s:,.0f} ({supply.low:,.0f} to {supply.high:,.0f})"
    if verdict == "compute":
        return f"NOT INPUT-BOUND: {who}, {gives}: the loader is not what limits them."
    what = "CPU decode" if verdict == "cpu" else "disk"
    return (
        f"INPUT-BOUND ({what}): {who}, {gives}: they would stand idle {100 * stall:.0f} % of the time. "
        f"At {supply.cpu_us_per_image / 1e3:.2f} CPU-ms a picture it takes {cores_needed:.1f} cores; here are {cores}."
    )


def _remedies(loader: Loader, supply: Supply, stages: list[Stage], place: str, cores: int) -> list[dict[str, Any]]:
    """What could be done on this host, best first, with the rate that the measured costs predict."""
    remedies: list[dict[str, Any]] = []
    per_core = 1e6 / supply.cpu_us_per_image
    command = f"python train.py {place}"
    if loader.workers < cores:
        remedies.append(
            {
                "action": f"decode on all {cores} cores instead of {loader.workers} (leaves none to the trainer)",
                "command": f"{command} --workers {cores}",
                "predicted_images_per_s": per_core * cores,
            }
        )
    if not loader.source.crop_addressed:
        decode_us = next(stage.cpu_us_per_image for stage in stages if stage.name == "decode")
        faster_us = supply.cpu_us_per_image - decode_us * (1 - CROP_SHARE)
        remedies.append(
            {
                "action": "make the pictures crop-addressed, with the same pixels",
                "command": "python tools/make_shards.py SRC DST && python train.py --shards DST",
                "predicted_images_per_s": supply.images_per_s * supply.cpu_us_per_image / faster_us,
            }
        )
    remedies.sort(key=lambda remedy: -remedy["predicted_images_per_s"])
    return [remedy for remedy in remedies if remedy["predicted_images_per_s"] > 1.02 * supply.images_per_s]


def show(result: dict[str, Any]) -> None:
    """The report for a terminal."""
    print(result["sentence"])
    print(
        f"\nmeasured: {result['images']:,} pictures of split {result['split']} at {result['image_size']} px, "
        f"{result['backend']} on {result['workers']} of {result['cores_here']} cores, "
        f"{result['cpu_us_per_image']:,.0f} CPU-us a picture over all processes\n"
    )
    print("  stage     CPU us   share   waiting us   (one process alone, Pillow)")
    for stage in result["stages"]:
        waiting = max(0.0, stage["wall_us_per_image"] - stage["cpu_us_per_image"])
        print(f"  {stage['name']:8s}{stage['cpu_us_per_image']:8,.0f}{100 * stage['share']:7.0f} %{waiting:13,.0f}")
    if result["remedies"]:
        print("\nwhat would help here, with the rate that these costs predict:")
        for remedy in result["remedies"]:
            print(f"  {remedy['predicted_images_per_s']:8,.0f}/s  {remedy['action']}: {remedy['command']}")
    elif result["verdict"] != "compute":
        print("\nnothing that this tool knows of helps on this host: it takes more cores, or a faster disk.")


def run(argv: Sequence[str] | None = None) -> int:
    """Measure, show, and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="profile_loader",
        description="Can this host feed the devices, and if not, what stands in the way?",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shards", metavar="DST", help="a folder of shards")
    parser.add_argument("--data", metavar="SRC", type=Path, help="an ImageNet folder")
    parser.add_argument("--demand", metavar="IMG_PER_S", type=float, default=474.6,
                        help="what one device trains (default: 474.6, an Ascend NPU on InceptionV4)")  # fmt: skip
    parser.add_argument("--devices", metavar="N", type=int, default=1, help="devices that this host feeds (default: 1)")
    parser.add_argument("--seconds", metavar="S", type=float, default=10.0, help="how long to measure (default: 10)")
    parser.add_argument("--image-size", metavar="PX", type=int, default=299, help="default: 299")
    parser.add_argument("--batch-size", metavar="B", type=int, default=64, help="default: 64")
    parser.add_argument("--backend", default="auto", help="auto, pillow, dali")
    parser.add_argument("--workers", metavar="N", type=int, help="cores that decode (default: all there are)")
    parser.add_argument("--json", metavar="F", type=Path, help="write the report to a file")
    args = parser.parse_args(argv)
    for name in ("demand", "devices", "seconds"):
        if not getattr(args, name) > 0:
            raise ConfigError(f"--{name} must be above 0, was {getattr(args, name)}")
    local_folder(args.shards or args.data or "", "profile_loader")
    config = PipelineConfig(
        shards=args.shards,
        data=args.data,
        image_size=args.image_size,
        batch_size=args.batch_size,
        backend=args.backend,
        workers=args.workers or available_cores(),
    )
    with build_loader(config) as loader:
        supply = measure_supply(loader, 0.8 * args.seconds)
        stages = measure_stages(loader, 0.2 * args.seconds)  # the ring is full, the workers rest
    place = f"--shards {args.shards}" if args.shards else f"--data {args.data}"
    result = report(loader, supply, stages, args.demand, args.devices, place)
    show(result)
    if args.json:
        with atomic_write(args.json) as file:
            file.write(json.dumps(result, indent=1).encode() + b"\n")
    return 0


def main() -> None:
    """The console entry."""
    run_tool("profile_loader", run)
