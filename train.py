"""Train InceptionV4: python train.py --shards DST

main -> train -> train_step; the loop reads as one line over the feed. Log lines have the form of the original recipe
(ModelZoo InceptionV4_ID1778), whose users' tools parse them; the same numbers go to ``metrics.jsonl``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before torch loads OpenMP. Its threads spin, for ages, while they wait for each other: where something else wants a
# core (decode workers do), a step on a CPU then takes up to 20 times as long. Spinning less costs 5 to 10 % on an idle
# machine and gives back a factor of 4 on a busy one (benchmarks/2026-11-23-first-run.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from torch import Tensor, nn

from model.agc import clip_gradients_adaptively
from model.checkpoint import BEST, CheckpointError, check_fit, load_checkpoint, save_checkpoint, set_aside
from model.epoch_log import EpochLog
from model.inceptionv4 import InceptionV4, feature_size
from model.options import TrainOptions, parse_options
from model.schedule import learning_rate
from model.weights import WeightsError, load_pretrained
from pipeline import ConfigError, DataError, Loader, PipelineConfig, build_loader
from pipeline.console import run_tool
from pipeline.device import Device, find_device
from pipeline.folder import folder_splits
from pipeline.shards import MANIFEST, read_manifest
from pipeline.transfer import DeviceBatch, Feed

METRICS = "metrics.jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    """Config, device, loaders, model, then epochs. Returns the exit code."""
    options = parse_options(argv)
    device = find_device(f"cuda:{options.gpu}" if options.gpu is not None else options.device)
    torch.manual_seed(options.seed)

    with contextlib.ExitStack() as stack:
        feeds = {split: open_feed(options, split, device, stack) for split in wanted_splits(options)}
        classes = next(iter(feeds.values())).loader.classes
        model = build_model(options, len(classes))
        model.to(device.torch_device).to(memory_format=device.memory_format)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            model.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
        )
        run = Run(options, device, model, optimizer, classes)
        if options.resume:
            run.resume(options.resume)
        elif not options.evaluate and (earlier := set_aside(options.output, METRICS)):
            print(f"note: an earlier run's files were moved to {earlier}", flush=True)
        announce(run, feeds)
        if options.evaluate:
            evaluate(run, feeds["val"])
        else:
            train(run, feeds["train"], feeds.get("val"))
    return 0


def train(run: Run, feed: Feed, val: Feed | None) -> None:
    """All epochs: a pass over the training split, a score, a checkpoint."""
    options = run.options
    if run.epoch >= options.epochs:
        print(f"note: nothing to do: {run.epoch} epochs are done, --epochs is {options.epochs}", flush=True)
    for epoch in range(run.epoch, options.epochs):
        feed.loader.set_epoch(epoch)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(
                epoch,
                lr=options.lr,
                epochs=options.epochs,
                schedule=options.lr_schedule,
                warm_up_epochs=options.warm_up_epochs,
            )
        train_epoch(run, feed, epoch)
        acc1 = evaluate(run, val, epoch) if val else None
        run.epoch = epoch + 1
        run.save(acc1)


def train_epoch(run: Run, feed: Feed, epoch: int) -> None:
    """One pass over the training split, with the original's log lines."""
    run.model.train()
    log = run.log(f"Epoch: [{epoch}]", feed)
    for batch in feed:
        loss, logits_NK = train_step(run, batch)
        if line := log.step(batch.labels, loss, logits_NK, batch.wait_s):
            run.metrics(kind="train", epoch=epoch, **line)
    fps = log.images_per_s()
    print(f"batch_size: {run.options.batch_size} * FPS@all {fps:.3f}", flush=True)
    run.metrics(kind="epoch", epoch=epoch, lr=run.optimizer.param_groups[0]["lr"], **log.averages(), fps_all=fps)


def train_step(run: Run, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
    """Forward, backward, step; nothing here waits for the device. Returns loss [] and logits [N, K]."""
    with run.autocast():
        logits_NK = run.model(batch.images)
    loss = run.criterion(logits_NK.float(), batch.labels)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if run.options.clip_agc:
        clip_gradients_adaptively(run.model.parameters(), run.options.clip_agc)
    run.optimizer.step()
    return loss.detach(), logits_NK.detach()


@torch.inference_mode()
def evaluate(run: Run, feed: Feed, epoch: int | None = None) -> float:
    """Score every picture of the val split once; returns Acc@1 in percent."""
    run.model.eval()
    log = run.log("Test: ", feed)
    for batch in feed:
        with run.autocast():
            logits_NK = run.model(batch.images)
        log.step(batch.labels, run.criterion(logits_NK.float(), batch.labels), logits_NK, batch.wait_s)
    scores = log.averages()
    print(f" * Acc@1 {scores['acc1']:.3f} Acc@5 {scores['acc5']:.3f}", flush=True)
    run.metrics(kind="val", epoch=epoch, samples=feed.loader.samples, **scores)
    return scores["acc1"]


@dataclasses.dataclass
class Run:
    """What a training run holds on to."""

    options: TrainOptions
    device: Device
    model: InceptionV4
    optimizer: torch.optim.Optimizer
    classes: tuple[str, ...]
    epoch: int = 0
    best_acc1: float = 0.0

    def __post_init__(self) -> None:
        self.epoch = self.options.start_epoch
        # (1 - s) * NLL + s * mean(-log p), as in the original
        self.criterion = nn.CrossEntropyLoss(label_smoothing=self.options.label_smoothing)
        try:
            self.options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {self.options.output} cannot be made: {error.strerror}") from error

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.kind, torch.bfloat16, enabled=self.options.amp)

    def log(self, prefix: str, feed: Feed) -> EpochLog:
        """The log of one pass."""
        return EpochLog(
            prefix,
            steps=len(feed),
            print_freq=self.options.print_freq,
            device=self.device.torch_device,
            synchronize=self.device.synchronize,
        )

    def metrics(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        with open(self.options.output / METRICS, "a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")

    def save(self, acc1: float | None) -> None:
        """Write the checkpoint of the epochs done so far."""
        is_best = acc1 is not None and (acc1 > self.best_acc1 or not (self.options.output / BEST).exists())
        self.best_acc1 = max(self.best_acc1, acc1 or 0.0)
        state = {
            "epoch": self.epoch,
            "arch": self.options.arch,
            "state_dict": self.model.state_dict(),
            "best_acc1": self.best_acc1,
            "optimizer": self.optimizer.state_dict(),
            "amp": None,
            "blocks": list(self.options.blocks),
            "classes": list(self.classes),
        }
        save_checkpoint(state, self.options.output, is_best=is_best)

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint ends. Raises CheckpointError, before anything is changed, where it does not fit."""
        state = load_checkpoint(path)
        check_fit(state, path, blocks=self.options.blocks, classes=self.model.num_classes)
        try:
            self.model.load_state_dict(state["state_dict"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} does not fit the model: {str(error).splitlines()[0]}") from error
        self.epoch = int(state["epoch"])
        self.best_acc1 = float(state.get("best_acc1", 0.0))
        print(f"=> resumed from {path} (epoch {self.epoch}, best Acc@1 {self.best_acc1:.3f})", flush=True)


def locate(options: TrainOptions) -> dict[str, Any]:
    """Where the pictures are, as PipelineConfig wants it; ``--data`` may be a folder of shards too."""
    if options.data and not (options.data / MANIFEST).exists():
        return {"data": options.data}
    root = options.shards or options.data
    assert root is not None
    return {"shards": root}


def wanted_splits(options: TrainOptions) -> list[str]:
    """The splits to open: train and, where the data has it, val. What is missing, the loader reports."""
    if options.evaluate:
        return ["val"]
    ((kind, root),) = locate(options).items()
    have = read_manifest(root).splits if kind == "shards" else folder_splits(root)
    return ["train", "val"] if "val" in have else ["train"]


def open_feed(options: TrainOptions, split: str, device: Device, stack: contextlib.ExitStack) -> Feed:
    """One split as batches on the device; ``stack`` closes it."""
    where = locate(options)
    config = PipelineConfig(
        **where,
        split=split,
        batch_size=options.batch_size,
        image_size=options.image_size,
        crop_scale=options.crop_scale,
        seed=options.seed,
        backend=options.backend,
        workers=options.workers,
    )
    start = time.perf_counter()
    loader = stack.enter_context(build_loader(config))
    if "data" in where and split == "train":
        print(
            f"note: reading {loader.samples:,} single files, listed in {time.perf_counter() - start:.1f} s; shards "
            "open at once, read in large requests and are checked by hash: "
            f"python tools/make_shards.py {options.data} DST",
            flush=True,
        )
    if split == "train" and loader.samples % options.batch_size == 1 and feature_size(options.image_size) == 1:
        raise ConfigError(
            f"the last batch of an epoch would be 1 of {loader.samples:,} pictures, and at {options.image_size} px "
            f"batch norm cannot train on 1: choose another --batch-size than {options.batch_size}"
        )
    feed = Feed(loader, device)
    stack.callback(feed.close)
    return feed


def build_model(options: TrainOptions, classes: int) -> InceptionV4:
    """The network, with pretrained weights where asked for. Raises ConfigError or WeightsError."""
    width = options.num_classes or classes
    if width < classes:
        raise ConfigError(f"--num-classes must be at least the data set's {classes}, was {width}")
    model = InceptionV4(num_classes=width, blocks=options.blocks)
    if options.pretrained:
        print(load_pretrained(model, options.pretrained, new_head=options.new_head))
    return model


def announce(run: Run, feeds: dict[str, Feed]) -> None:
    """Say once what is about to happen, and what is slower than it could be."""
    options = run.options
    splits = ", ".join(f"{feed.loader.samples:,} {split}" for split, feed in feeds.items())
    loader: Loader = next(iter(feeds.values())).loader
    depth = "" if options.blocks == (4, 7, 3) else f" with blocks {','.join(map(str, options.blocks))}"
    print(
        f"InceptionV4{depth} on {run.device.name()}, {'bf16 autocast' if options.amp else 'fp32'}; "
        f"{splits} pictures of {len(run.classes)} classes at {options.image_size} px; "
        f"decoding with {loader.backend} on {loader.workers} core{'s'[: loader.workers > 1]}",
        flush=True,
    )
    run.metrics(
        kind="run",
        options={name: str(value) for name, value in dataclasses.asdict(options).items() if value is not None},
        device=run.device.name(),
        backend=loader.backend,
        workers=loader.workers,
        samples={split: feed.loader.samples for split, feed in feeds.items()},
        torch=torch.__version__,
    )
    notes = [run.device.bf16_advice() if options.amp else None]
    for note in filter(None, notes):
        print(f"note: {note}", flush=True)


def entry(argv: Sequence[str] | None = None) -> Callable[[], int]:
    """``main`` with the model's errors as the pipeline's, so that all end in one line."""

    def run() -> int:
        try:
            return main(argv)
        except WeightsError as error:
            raise DataError(str(error)) from error

    return run


if __name__ == "__main__":
    run_tool("train.py", entry())
