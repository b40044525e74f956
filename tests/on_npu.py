"""What tests/test_npu.py runs in a process of its own, over the emulated card: ``tests/on_npu.py NAME ARGUMENT...``

Each prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch
from torch import Tensor, nn

import train
from model.optimizer import Optimizer
from model.precision import Precision
from pipeline import ConfigError, PipelineConfig, build_loader
from pipeline.device import Device, find_device
from pipeline.idle import IdleTime
from pipeline.profiler import profile
from pipeline.transfer import DeviceBatch, Feed, normalise


def trains(*runs: str) -> dict[str, Any]:
    """Several runs of train.py in one process; each argument is one command line."""
    for run in runs:
        if code := train.main(json.loads(run)):
            raise SystemExit(code)
    return {}


class WithoutWait(Feed):
    """The compute stream does not wait for the copy."""

    def _arrived(self, batch: DeviceBatch, copied: Any) -> None:
        pass


class WithoutHold(Feed):
    """A slot is given back as soon as its copy is queued."""

    def _release(self, copied: deque[Any], *, keep: int) -> None:
        while copied:
            copied.popleft()
            self.loader.release()


def feeds(shards: str) -> dict[str, Any]:
    """Whether two epochs arrive as they left the host, by the feed as it is and by broken ones."""
    device = find_device("npu")
    device.use()
    everything = os.sched_getaffinity(os.getppid())
    result: dict[str, Any] = {}
    variants: list[tuple[str, type[Feed], Device]] = [
        ("whole", Feed, device),
        ("staged", Feed, dataclasses.replace(device, pin=lambda _: False)),
        ("without wait", WithoutWait, device),
        ("without hold", WithoutHold, device),
    ]
    config = PipelineConfig(shards=shards, batch_size=8, image_size=64, workers=2, slots=2)
    with build_loader(config) as loader:
        want = [(b.images.clone(), b.labels.clone()) for _ in range(2) for b in loader]
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in loader.decode_pids]
        result["workers with torch"] = sum("libtorch" in text for text in maps)
        result["workers on all cores"] = all(os.sched_getaffinity(pid) == everything for pid in loader.decode_pids)
    for name, kind, where in variants:
        with build_loader(config) as loader:
            feed = kind(loader, where)
            got = [(b.images.cpu(), b.labels.cpu()) for _ in range(2) for b in feed]
            feed.close()
        result[name] = [
            torch.equal(images, normalise(expected, torch.float32, torch.contiguous_format))
            and torch.equal(labels, expected_labels)
            for (images, labels), (expected, expected_labels) in zip(got, want, strict=True)
        ]
    return result | gaps(device) | {"stall": profile_of_a_slow_loader(device)}


def gaps(device: Device) -> dict[str, Any]:
    """What a host that waits 50 ms costs the card: with half a second of work queued, and with none. In seconds."""
    pinned, result = torch.zeros(1000).pin_memory(), {}
    for name, copies in (("busy", 25), ("idle", 0)):  # each is held up by 20 ms
        idle = IdleTime(device)
        for _ in range(copies):
            pinned.to(device.torch_device, non_blocking=True)
        idle.begin()
        time.sleep(0.05)
        idle.end()
        early = idle.total_s()
        device.synchronize()
        result[name] = [early, idle.total_s()]
    return result


def profile_of_a_slow_loader(device: Device) -> float:
    """The stall that is reported where batches come after 40 ms, and a step is one copy, held up by 20 ms.

    This process has nothing to do but wait for batches: the step returns at once.
    """
    pinned = torch.zeros(8, 1000).pin_memory()

    class Slow:
        def __iter__(self) -> Iterator[Tensor]:
            for _ in range(20):
                time.sleep(0.04)
                yield pinned

    return profile(Slow(), lambda batch: batch.to(device.torch_device, non_blocking=True), seconds=2.0).stall_fraction


def saturates() -> dict[str, Any]:
    """Steps on a chip whose overflows become its largest number; the second one overflows."""
    device = find_device("npu")
    device.use()
    model = nn.Linear(4, 2).to(device.torch_device)
    precision = Precision(level="O2", dtype=torch.float16, device_type="npu")
    precision.convert(model)
    flag = device.overflow_flag()
    optimizer = Optimizer(model, precision, lr=0.5, momentum=0.9, weight_decay=0.0, overflow=flag)
    scales, steps, finite = [], [], []
    for factor in (1e-3, 1e4, 1e-3):
        before = optimizer.weights()
        optimizer.backward(0.01 * model(torch.full((3, 4), factor, device=device.torch_device)).sum())
        finite.append(all(bool(p.grad.isfinite().all()) for p in model.parameters() if isinstance(p.grad, Tensor)))
        optimizer.step()
        scales.append(optimizer.scale)
        steps.append(any(not torch.equal(value, before[name]) for name, value in optimizer.weights().items()))
    return {"flag": flag is not None, "scales": scales, "stepped": steps, "finite": finite}


def finds(*names: str) -> dict[str, Any]:
    """What find_device says."""
    found = {}
    for name in names:
        try:
            found[name] = find_device(name).kind
        except ConfigError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(globals()[name](*arguments)))
