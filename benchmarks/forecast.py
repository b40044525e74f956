"""Claim: given what pictures cost in its workers, the forecast is within some per cent of what the loader delivers;
given what they cost alone, it errs as much as that cost drifts between two moments of the same machine.

python benchmarks/forecast.py DST     (a folder of shards that fits the memory; nothing else should run)

A picture's cost is measured alone, in one process, as a worker does it; then the loader runs with as many workers,
slots and pictures in a batch as said, and as fast as it can. The two take turns, as machines drift.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import PipelineConfig, build_loader, host
from pipeline.backends.pillow import PillowBackend
from pipeline.loader import Loader
from pipeline.profiler.forecast import F64, forecast
from pipeline.ring import Ring
from pipeline.source import open_source
from pipeline.worker import Job, fill

REPEATS = 3
SECONDS = 3.0


def picture_costs(config: PipelineConfig, epoch: int) -> F64:
    """Float64 [P]: CPU microseconds of each picture of a split."""
    source, ring = open_source(config), Ring(slots=1, batch_size=1, image_size=config.image_size)
    backend = PillowBackend(image_size=config.image_size, max_pictures=1)
    job = Job(config=config, backend="pillow", rows=1, source=source, cores=host.cores())
    costs = []
    for sample in range(-20, len(source)):  # the first load and warm up
        ring.slots[0].wanted[0] = sample % len(source)
        start = time.thread_time()
        fill(job, backend, ring.slots[0], epoch, 0, 1)
        costs.append((time.thread_time() - start) * 1e6)
    ring.close()
    source.close()
    return np.array(costs[20:])


def supply(loader: Loader) -> tuple[float, float, float]:
    """Images/s; CPU microseconds of a picture in the workers, and in the loader's process."""

    def workers_s() -> float:
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in loader.decode_pids]
        return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")

    for _ in loader:  # processes start
        pass
    images, start, before, own = 0, time.perf_counter(), workers_s(), time.process_time()
    while time.perf_counter() - start < SECONDS:
        for batch in loader:
            images += len(batch.labels)
    took, own = time.perf_counter() - start, time.process_time() - own
    return images / took, (workers_s() - before) / images * 1e6, own / images * 1e6


def main(shards: Path) -> None:
    """Print the table."""
    cores = len(host.cores())
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f} before")
    print("                                 predicted / measured          CPU us of a picture")
    print("workers  slots  batch  images/s  cost alone  in workers      alone  in workers  in loader")
    errors = []
    for workers in (1, 2):
        for slots in (2, 4, 8):
            for batch_size in (16, 64, 256):
                config = PipelineConfig(
                    shards=shards, workers=workers, slots=slots, batch_size=batch_size, backend="pillow"
                )
                turns = []
                for turn in range(REPEATS):
                    costs = picture_costs(config, turn)
                    with build_loader(config) as loader:
                        measured, in_workers, in_loader = supply(loader)
                    alone, there = (
                        forecast(
                            costs * factor, workers=workers, cores=cores, slots=slots, batch_size=batch_size,
                            demand=None, loader_us_per_image=in_loader,
                        ).images_per_s / measured
                        for factor in (1.0, in_workers / costs.mean())
                    )  # fmt: skip
                    turns.append((measured, alone, there, costs.mean(), in_workers, in_loader))
                middle = [statistics.median(column) for column in zip(*turns, strict=True)]
                errors.append((middle[1] - 1, middle[2] - 1))
                print(
                    f"{workers:7d}  {slots:5d}  {batch_size:5d}  {middle[0]:8,.0f}  {middle[1]:10.2f}"
                    f"  {middle[2]:10.2f}  {middle[3]:9,.0f}  {middle[4]:10,.0f}  {middle[5]:9,.1f}",
                    flush=True,
                )
    for name, column in zip(("cost alone", "cost in workers"), zip(*errors, strict=True), strict=True):
        mean, largest = statistics.mean(column), max(column, key=abs)
        print(f"{name}: mean error {100 * mean:+.1f} %, largest {100 * largest:+.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
