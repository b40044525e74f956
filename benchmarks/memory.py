"""Claims: what a loader takes of memory; 14 million samples open in under 2 s and 500 MB, and the first batch of 1.3
million is there in under 1 s.

python benchmarks/memory.py DST     (a folder of crop-addressed shards; large sets are its samples many times over)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline import PipelineConfig, build_loader
from pipeline.manifest import MANIFEST, index_name, read_manifest
from pipeline.shards import open_shards


def many_times(shards: Path, samples: int, to: Path) -> None:
    """A folder whose index names the samples of ``shards`` again and again."""
    source = open_shards(shards, "train")
    records = np.resize(source.records, samples)
    np.save(to / index_name("train"), records)
    content = json.loads((shards / MANIFEST).read_text())
    split = content["splits"]["train"]
    assert len(split["shards"]) == 1, "take a small sample: one shard"
    split["samples"] = split["shards"][0]["samples"] = samples
    content["splits"] = {"train": split}
    (to / MANIFEST).write_text(json.dumps(content))
    (to / split["shards"][0]["name"]).symlink_to((shards / split["shards"][0]["name"]).resolve())


def peak_mb() -> float:
    """The most memory that this process has had resident (getrusage would count that of its parent, before exec)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def report_open(root: str) -> None:
    """In a process of its own: what opening costs."""
    before, start = peak_mb(), time.perf_counter()
    source = open_shards(Path(root), "train")
    took = time.perf_counter() - start
    print(f"{len(source):,} samples open in {took:.2f} s; {before:.0f} MB before, {peak_mb():.0f} MB at the most")


def report_first_batch(root: str) -> None:
    """In a process of its own: how long until the first batch, kernels compiled before."""
    start = time.perf_counter()
    with build_loader(PipelineConfig(shards=root, workers=2)) as loader:
        next(iter(loader))
        print(f"{loader.samples:,} samples: first batch of 64 after {time.perf_counter() - start:.2f} s")


def report_loader(root: str, backend: str) -> None:
    """In a process of its own: what a running loader takes, after an epoch."""
    with build_loader(PipelineConfig(shards=root, workers=2, backend=backend)) as loader:
        for _ in loader:
            pass
        ring_mb = loader.ring.memory.nbytes / 2**20
        for name, pid in [("trainer", 0), *((f"worker {n}", pid) for n, pid in enumerate(loader.decode_pids))]:
            smaps = Path(f"/proc/{pid or 'self'}/smaps_rollup").read_text().splitlines()
            kb = {line.split(":")[0]: int(line.split()[1]) for line in smaps[1:]}
            own = (kb["Private_Clean"] + kb["Private_Dirty"]) / 1024
            print(f"{backend}, {name}: {kb['Rss'] / 1024:.0f} MB resident, {own:.0f} MB of its own")
        print(f"{backend}, ring of {loader.config.slots} slots: {ring_mb:.0f} MB, shared")


def main(shards: Path) -> None:
    """Print the figures."""
    print(", ".join(f"{name}: {len(infos)} shard(s)" for name, infos in read_manifest(shards).splits.items()))

    def run(function: str, *args: object) -> None:
        call = f"{function}({', '.join(repr(str(arg)) for arg in args)})"
        code = f"import sys; sys.path[:0] = [{str(ROOT / 'benchmarks')!r}]; from memory import *; {call}"
        subprocess.run([sys.executable, "-c", code], check=True)

    for backend in ("pillow", "dali"):
        run("report_loader", shards, backend)
    for samples, function in ((14_000_000, "report_open"), (1_300_000, "report_first_batch")):
        with tempfile.TemporaryDirectory() as folder:
            many_times(shards, samples, Path(folder))
            for _ in range(3):
                run(function, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
