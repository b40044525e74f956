"""What the checks are made of: runs of the project's own network, steps on noise, copies and steps by the clock."""

from __future__ import annotations

from train import build_run, train_step  # first: it sets up OpenMP before torch loads

# isort: split
import argparse
import contextlib
import dataclasses
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.inceptionv4 import MIN_IMAGE_SIZE
from model.options import TrainOptions
from model.precision import Precision
from model.ranks import Ranks
from model.run import Run
from pipeline import DataError, PipelineConfig
from pipeline.device import Device
from pipeline.loader import Batch, Loader
from pipeline.manifest import index_name, read_manifest, write_manifest
from pipeline.shards import read_index
from pipeline.transfer import DeviceBatch, normalise
from tools.acceptance.page import say

ROOT = Path(__file__).resolve().parents[2]
LR = 0.001  # at which differences between two computations grow slowly, and the loss falls in each step
CLASSES = tuple("0123456789")  # of pictures of noise
WINDOWS = 5  # a pace is the median of so many
COMMAND_WITHIN_S = 900.0


@dataclasses.dataclass(kw_only=True)
class Bench:
    """What the checks work with."""

    args: argparse.Namespace
    device: Device
    cards: int
    shards: Path
    scratch: Path
    loader: HostCopies
    images_per_s: float | None = None  # of one card from shards, once it is known

    @property
    def warm_up(self) -> int:
        """Steps that are not timed: the ring's batches, which were decoded before the clock starts, and some."""
        return 1 if self.args.quick else self.loader.config.slots + 4

    @property
    def level(self) -> str:
        """The precision of training: the recipe's, and fp32 on a CPU, which has nothing faster."""
        return "O2" if self.device.asynchronous else "O0"

    @property
    def comparable(self) -> bool:
        """Whether it is the network that the published figures are of."""
        return (self.args.blocks, self.args.image_size, self.level) == ((4, 7, 3), 299, "O2")


class HostCopies(Loader):
    """A loader that keeps what it has handed out, as it lay on the host."""

    def __init__(self, config: PipelineConfig):
        super().__init__(config)
        self.copies: deque[tuple[Tensor, Tensor]] = deque()

    def held_batches(self) -> Iterator[Batch]:
        for batch in super().held_batches():
            self.copies.append((batch.images.clone(), batch.labels.clone()))
            yield batch


def new_run(
    bench: Bench,
    device: Device,
    level: str,
    *,
    scale: Any = 1.0,
    dtype: torch.dtype | None = None,
    blocks: tuple[int, int, int] = (0, 0, 0),
    classes: tuple[str, ...] = CLASSES,
) -> Run:
    """train.py's own network and optimiser, with the same weights in each."""
    options = TrainOptions(shards=str(bench.shards), output=bench.scratch, blocks=blocks, lr=LR, loss_scale=scale)
    precision = Precision(level=level, dtype=dtype or device.low_precision, device_type=device.kind)
    return build_run(options, Ranks(), device, precision, classes)


def small(bench: Bench) -> tuple[int, int]:
    """Pictures and pixels of a step that is not timed."""
    return (4, MIN_IMAGE_SIZE) if bench.args.quick else (8, 107)


def noise(
    device: Device, dtype: torch.dtype, size: int, pixels: int, classes: tuple[str, ...] = CLASSES
) -> DeviceBatch:
    """A batch of noise that lies on the device; the same on each."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, pixels, pixels, 3), dtype=torch.uint8, generator=draw)
    labels = torch.randint(len(classes), (size,), generator=draw)
    ready = normalise(images, dtype, device.memory_format).to(device.torch_device)
    return DeviceBatch(
        images=ready,
        labels=labels.to(device.torch_device),
        global_size=size,
        end=size,
        wait_s=0.0,
        ready=0,
    )


def three_steps(bench: Bench, device: Device) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of three steps at O0."""
    run = new_run(bench, device, "O0")
    batch = noise(device, torch.float32, *small(bench))
    losses = [train_step(run, batch)[0].item() for _ in range(3)]
    return losses, {name: weight.detach().cpu() for name, weight in run.model.named_parameters()}


def learned(run: Run) -> list[Tensor]:
    """Copies of all that a step changes, but for the batch norms' statistics, which the forward pass does."""
    weights, state = run.optimizer.weights(), run.optimizer.state_dict()["state"]
    parameters = dict(run.model.named_parameters())
    copies = [p.detach().clone() for p in parameters.values()]
    return copies + [weights[name] for name in parameters] + [of["momentum_buffer"] for of in state.values()]


def copy_times(device: Device, source: Tensor) -> tuple[float, float, bool]:
    """Seconds that the call took, seconds until the copy was done, and whether it was not when the call returned.

    Medians of five; the first of six is left out.
    """
    target = torch.empty(source.shape, dtype=source.dtype, device=device.torch_device)
    stream, event = device.new_stream(), device.new_event()
    device.synchronize()
    calls, totals, pending = [], [], []
    for _ in range(6):
        with device.use_stream(stream):
            start = time.perf_counter()
            target.copy_(source, non_blocking=True)
            calls.append(time.perf_counter() - start)
            event.record(stream)
        pending.append(not event.query())
        event.synchronize()
        totals.append(time.perf_counter() - start)
    return statistics.median(calls[1:]), statistics.median(totals[1:]), all(pending[1:])


def pace(bench: Bench, run: Run, batches: Iterable[DeviceBatch]) -> tuple[float, float, float]:
    """Images/s (the median of windows of steps), the share of the time spent waiting for data, and the last loss."""
    device, source = bench.device, iter(batches)
    windows = min(WINDOWS, bench.args.steps)
    for batch in itertools.islice(source, bench.warm_up):
        train_step(run, batch)
    rates, waited_s, all_s = [], 0.0, 0.0
    for _ in range(windows):
        device.synchronize()
        start, images = time.perf_counter(), 0
        for batch in itertools.islice(source, bench.args.steps // windows):
            loss, _ = train_step(run, batch)
            images += len(batch.labels)
            waited_s += batch.wait_s
        device.synchronize()
        seconds = time.perf_counter() - start
        rates.append(images / seconds)
        all_s += seconds
    return statistics.median(rates), waited_s / all_s, loss.item()


@contextlib.contextmanager
def full_fp32(device: Device) -> Iterator[str]:
    """Without the shortened fp32 (NPU: HF32, on by default in convolutions; CUDA: TF32); says so."""
    owners: list[Any] = []
    short = "HF32" if device.kind == "npu" else "TF32"
    if device.kind == "npu":
        npu: Any = torch.npu  # type: ignore[attr-defined]
        owners = [npu.conv, npu.matmul]
    elif device.kind == "cuda":
        owners = [torch.backends.cudnn, torch.backends.cuda.matmul]
    name = f"allow_{short.lower()}"
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, False)
    try:
        yield f"; {short} switched off for this check" if owners else ""
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, name, value)


def short_epoch(shards: Path, folder: Path, samples: int) -> Path:
    """Make a folder of shards with an epoch of exactly so many pictures: the same tars, their index repeated or cut."""
    folder.mkdir()
    manifest = read_manifest(shards)
    infos, records = manifest.splits["train"], read_index(manifest, "train")
    for info in infos:
        (folder / info.name).symlink_to((shards / info.name).resolve())
    np.save(folder / index_name("train"), np.resize(records, samples))
    chosen, left = [], samples
    for info in itertools.cycle(infos):
        if not left:
            break
        chosen.append(dataclasses.replace(info, samples=min(left, info.samples)))
        left -= chosen[-1].samples
    write_manifest(dataclasses.replace(manifest, root=folder, splits={"train": tuple(chosen)}))
    return folder


def run_command(*arguments: object) -> None:
    """A command of the checkout. Where it fails its output goes to stderr, and DataError has the last line."""
    words = [sys.executable, str(ROOT / str(arguments[0])), *map(str, arguments[1:])]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        out, err = process.communicate(timeout=COMMAND_WITHIN_S)
    except BaseException as error:  # too slow, or interrupted: its ranks are not to stay
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        say(out + err)
        raise DataError(f"{arguments[0]} was not done after {COMMAND_WITHIN_S:.0f} s") from None
    if process.returncode:
        say(out + err)
        last = (err or out).strip().splitlines()[-1:]
        raise DataError(f"{arguments[0]} ended with exit code {process.returncode}: {''.join(last)}")
