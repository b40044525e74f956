"""Train InceptionV4: python train.py --shards DST

main -> train -> train_step; the loop reads as one line over the feed. Log lines have the form of the original recipe
(ModelZoo InceptionV4_ID1778), whose users' tools parse them; the same numbers go to ``metrics.jsonl``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Sequence

# Before torch loads OpenMP. Its threads spin, for ages, while they wait for each other: where something else wants a
# core (decode workers do), a step on a CPU then takes up to 20 times as long. Spinning less costs 5 to 10 % on an idle
# machine and gives back a factor of 4 on a busy one (benchmarks/2026-11-23-first-run.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# Nor is torch to load torch_npu by itself: without CANN `import torch` would fail. The device table loads it.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
# Where --compile keeps its kernels. torch's own choice is a folder in /tmp, which does not last.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.expanduser("~/.cache/headrace/compiled"))

import torch
from torch import Tensor

from model.compiled import CompileError
from model.epoch_log import NOTHING, EpochLog, Sums
from model.inceptionv4 import InceptionV4, feature_size
from model.initialisation import initialise_evenly
from model.interruptions import Stopped
from model.optimizer import Optimizer
from model.options import TrainOptions, parse_options
from model.precision import Precision
from model.ranks import Ranks, spawn
from model.run import Run
from model.schedule import learning_rate
from model.starvation import Span, Starvation
from model.weights import WeightsError, load_pretrained
from pipeline import ConfigError, DataError, PipelineConfig, build_loader
from pipeline.console import run_tool
from pipeline.device import Device, find_device
from pipeline.host import available_cores
from pipeline.sim import Cards
from pipeline.source import holds_shards, splits_of
from pipeline.transfer import DeviceBatch, Feed, normalise


def main(argv: Sequence[str] | None = None) -> int:
    """Ranks, device, data, model, then epochs. Returns the exit code."""
    options = parse_options(argv)
    ranks = Ranks.from_environment()
    device = find_device(options.device_name)
    if device.images_per_s:
        rehearse(options, device.images_per_s)
        return 0
    cards = options.device_list or tuple(range(device.count()))
    if options.multiprocessing_distributed and not ranks.launched:
        address, port = options.meeting_place
        mine = sys.argv[1:] if argv is None else argv
        return spawn(
            rank_main, mine, cards=len(cards), nodes=options.world_size, node=options.rank, address=address, port=port
        )

    device = own_card(device, cards, ranks)
    if options.compile and not device.compiles:
        raise ConfigError(f"--compile: torch.compile writes no kernels for {device.kind}; leave it out")
    device.use()
    precision = Precision(
        level=options.opt_level,
        dtype=getattr(torch, options.amp_dtype) if options.amp_dtype else device.low_precision,
        device_type=device.kind,
    )
    make_output(options)
    with contextlib.ExitStack() as stack:
        if ranks.many and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, available_cores() // ranks.local_world_size))
        ranks.join(device.collectives)
        stack.callback(ranks.leave)
        feeds = {
            split: open_feed(options, split, ranks, device, precision.input_dtype, stack)
            for split in wanted_splits(options)
        }
        run = build_run(options, ranks, device, precision, next(iter(feeds.values())).loader.classes)
        stack.callback(run.close)
        run.begin()
        announce(run, device, feeds)
        try:
            with run.interruptions:
                if options.evaluate:
                    with run.averaged():
                        evaluate(run, feeds["val"])
                else:
                    train(run, feeds["train"], feeds.get("val"))
                run.finish()
        except Stopped as stopped:
            return stopped.code
    return 0


def train(run: Run, feed: Feed, val: Feed | None) -> None:
    """All epochs: a pass over the training split, a score, a checkpoint. Raises Stopped where a signal asks for it."""
    options = run.options
    go_on(run, feed)
    loader = feed.loader
    starvation = Starvation(options, run.ranks, batch_size=loader.config.batch_size, workers=loader.workers)
    if run.epoch >= options.epochs:
        run.say(f"note: nothing to do: {run.epoch} epochs are done, --epochs is {options.epochs}")
    for epoch in range(run.epoch, options.epochs):
        try:
            if run.position < feed.loader.samples:  # else the run was stopped while it was scored
                train_epoch(run, feed, epoch, starvation)
            run.average_statistics()
            with run.averaged():
                acc1 = evaluate(run, val, epoch) if val else None
        except Stopped as stopped:
            run.save(feed.loader.state_dict())
            run.stop(stopped)
            raise
        run.epoch, run.position, run.sums = epoch + 1, 0, NOTHING
        run.save(feed.loader.state_dict(), acc1)


def go_on(run: Run, feed: Feed) -> None:
    """Put the loader where the run stands: at the beginning of an epoch, or where a checkpoint was written."""
    run.go_on_at(run.epoch * len(feed) + steps_behind(run, feed, run.position))
    if run.loader_state is None:
        feed.loader.set_epoch(run.epoch)
        return
    trained = run.position == feed.loader.samples  # and not scored yet
    try:
        feed.loader.load_state_dict(run.loader_state | {"epoch": run.epoch, "position": 0 if trained else run.position})
    except ConfigError as error:
        raise ConfigError(
            f"--resume: {error}; no sample can be promised to be seen once. Give the data, --seed and --shuffle of the "
            "checkpoint, or --new-data to begin its epoch anew with these"
        ) from error
    if trained:
        feed.loader.set_epoch(run.epoch + 1)


def train_epoch(run: Run, feed: Feed, epoch: int, starvation: Starvation) -> None:
    """One pass over the training split, or what is left of it, with the original's log lines."""
    size = run.image_size = feed.loader.config.size_at(epoch)
    starvation.resized(size)
    if note := resized(feed.loader.config, epoch):
        run.say(note)
    for count in part_sizes(run.options, run.ranks):
        run.prepare(like_a_batch(run, feed, count))
    run.parallel.train()
    later = (run.options.epochs - epoch - 1) * len(feed)
    log = open_log(run, f"Epoch: [{epoch}]", feed, position=run.position, sums=run.sums, later_steps=later)
    for batch in feed:
        run.optimizer.lr = rate(run.options, epoch, (log.number + 0.5) / log.steps)
        loss, logits_NK = train_step(run, batch)
        run.position = batch.end
        if line := log.step(batch, loss, logits_NK):
            run.global_step = epoch * len(feed) + log.number
            run.metrics(kind="train", epoch=epoch, **line)
            check_loss(run, epoch, line)
            if note := starvation.fed(log.recent):
                run.say(note)
        wish = run.interruptions.after_step(log.number)
        if (wish.stop or wish.save) and log.number < log.steps:  # the last step is followed by a checkpoint anyway
            run.sums = log.sums()
            if wish.stop:
                raise Stopped(wish.stop)
            run.save(feed.loader.state_dict())
    run.sums = log.sums()
    fps = log.images_per_s()
    batch_size = feed.loader.config.batch_size
    run.say(f"{run.prefix}[batch_size: {batch_size} ] * FPS@all {fps:.3f}" if run.prefix else
            f"batch_size: {batch_size} * FPS@all {fps:.3f}")  # fmt: skip
    scaling = {} if run.optimizer.scale == 1 else {"loss_scale": run.optimizer.scale, "skipped": run.optimizer.skipped}
    more = {"lr": run.optimizer.lr, "image_size": size, "fps_all": fps, **scaling}
    run.metrics(kind="epoch", epoch=epoch, **more, **log.averages())


def resized(config: PipelineConfig, epoch: int) -> str | None:
    """The line to say where an epoch's pictures are of another size than those of the epoch before it."""
    size = config.size_at(epoch)
    return None if size == config.size_at(max(0, epoch - 1)) else f"epoch {epoch}: pictures of {size} px from here on"


def check_loss(run: Run, epoch: int, line: dict[str, float]) -> None:
    """Raises DataError where training cannot recover.

    Without a dynamic scale what is not finite stays so for good; with one, its steps are skipped, until there is
    nothing left to scale down: below 1, gradients overflow that were never scaled up.
    """
    if run.optimizer.skips:
        wrong = f"the loss scale has come down to {run.optimizer.scale}" if run.optimizer.scale < 1 else ""
    else:
        wrong = "" if math.isfinite(line["step_loss"]) else f"the loss is {line['step_loss']}"
    if wrong:
        run.checkpoints.wait()
        raise DataError(
            f"{wrong} at step {line['step']:.0f} of epoch {epoch}: training has diverged. A lower --lr, --clip-agc "
            "0.05 or, with --amp, --loss-scale dynamic may help; the last good checkpoint is "
            f"{run.checkpoints.last or 'none'}"
        )


def train_step(run: Run, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
    """Forward, backward, step; nothing here waits for the device. Returns loss [] and logits [N, K]."""
    count = len(batch.labels)
    if not count:
        return idle_step(run, batch)
    place = {"epoch": run.epoch, "position": batch.end, "rank": run.ranks.rank}
    most = max(part_sizes(run.options, run.ranks)) if run.options.accumulate > 1 else count
    parts = run.augment(batch.images, batch.labels, **place).parts(most)
    # Gradients are averaged over the ranks. In an epoch's last step the ranks have unequal shares of the pictures.
    share = count * run.ranks.world_size / batch.global_size
    losses, logits = [], []
    for number, part in enumerate(parts, 1):
        with contextlib.nullcontext() if number == len(parts) else run.ranks.apart(run.parallel):
            logits_NK = run.forward(part.images)
            loss = part.loss(run.criterion, logits_NK)
            weight = len(part.labels) / count
            run.optimizer.backward(loss if share * weight == 1 else loss * (share * weight), add=number > 1)
        losses.append(loss.detach() * weight)
        logits.append(logits_NK.detach())
    run.update()
    return (losses[0], logits[0]) if len(parts) == 1 else (torch.stack(losses).sum(), torch.cat(logits))


def idle_step(run: Run, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
    """A step in which this rank has no picture: it takes part with gradients of zero, as the others wait for them."""
    mode = run.parallel.training
    run.parallel.eval()  # a made-up picture is not to enter the running statistics
    logits_NK = run.parallel(batch.images.new_zeros(1, *batch.images.shape[1:]))
    run.optimizer.backward(logits_NK.float().sum() * 0)
    run.update()
    run.parallel.train(mode)
    return logits_NK.new_zeros(()), logits_NK[:0].detach()


@torch.inference_mode()
def evaluate(run: Run, feed: Feed, epoch: int | None = None) -> float:
    """Score every picture of the val split once, over all ranks; returns Acc@1 in percent."""
    run.model.eval()
    log = open_log(run, "Test: ", feed)
    for batch in feed:
        loss = logits_NK = batch.images.new_zeros(())
        if len(batch.labels):
            with run.precision.autocast():
                logits_NK = run.model(batch.images).float()
            loss = run.criterion(logits_NK, batch.labels)
        log.step(batch, loss, logits_NK)
        if stop := run.interruptions.after_step().stop:
            raise Stopped(stop)
    scores = log.averages()
    average = f"{run.prefix}[AVG-ACC]" if run.prefix else ""
    run.say(f"{average} * Acc@1 {scores['acc1']:.3f} Acc@5 {scores['acc5']:.3f}")
    run.metrics(kind="val", epoch=epoch, samples=feed.loader.samples, **scores)
    return scores["acc1"]


def rehearse(options: TrainOptions, images_per_s: float) -> None:
    """Everything but the training: can this host feed such cards? (--device sim:474.6x8)"""
    with build_loader(configure(options, "train", Ranks())) as loader:
        print(
            f"rehearsing for cards that take {images_per_s:,.1f} images/s"
            f"{' of any size' if loader.config.sizes else ''}: {loader.samples:,} pictures at "
            f"{_sizes(loader.config)}, decoding with {loader.backend} on {_cores(loader.workers)}; nothing is trained",
            flush=True,
        )
        cards = Cards(images_per_s, slots=loader.config.slots)
        # As one card that is as fast as all: the cards themselves have left out what is decoded in advance.
        size, workers = options.batch_size, loader.workers
        starvation = Starvation(options, Ranks(), batch_size=size, workers=workers, warm_up_steps=0)
        loader.set_epoch(options.start_epoch)
        for epoch in range(options.start_epoch, options.epochs):
            starvation.resized(loader.config.size_at(epoch))
            if note := resized(loader.config, epoch):
                print(note, flush=True)
            cards.forget()
            for batch in loader:
                cards.take(len(batch.labels))
            done = cards.seen
            if not done.images:
                print(f"epoch {epoch}: the ring of {loader.config.slots} batches held it all, so it says nothing yet")
                continue
            print(f"epoch {epoch}: the cards waited for the host {100 * done.stall:.1f} % of the time")
            print(f"batch_size: {options.batch_size} * FPS@all {done.images_per_s:.3f}", flush=True)
            if note := starvation.fed(Span(wall_s=done.seconds, stall_s=done.wait_s, images=done.images)):
                print(note, flush=True)


def own_card(device: Device, cards: Sequence[int], ranks: Ranks) -> Device:
    """The card of this rank. Raises ConfigError where there are more ranks than cards."""
    if not ranks.launched or not device.asynchronous:
        return device
    if ranks.local_rank >= len(cards) or max(cards) >= device.count():
        raise ConfigError(
            f"{ranks.local_world_size} processes want {device.kind} {','.join(map(str, cards))}; "
            f"there is {device.kind}:0 to {device.kind}:{device.count() - 1}: see --device-list, --nproc-per-node"
        )
    return dataclasses.replace(device, index=cards[ranks.local_rank])


def configure(options: TrainOptions, split: str, ranks: Ranks) -> PipelineConfig:
    """One rank's part of a split. ``--batch-size`` and ``--workers`` are the node's, shared among its cards."""
    here = ranks.local_world_size
    if options.batch_size < here:
        raise ConfigError(
            f"--batch-size is of all cards of the node: must be at least {here}, was {options.batch_size}"
        )
    return PipelineConfig(
        shards=options.shards,
        data=options.data,
        split=split,
        batch_size=options.batch_size // here,
        image_size=options.image_size,
        sizes=options.progressive,
        crop_scale=options.crop_scale,
        seed=options.seed,
        cache_dir=options.cache_dir,
        cache_gb=options.cache_gb,
        shuffle=options.shuffle,
        shuffle_window=options.shuffle_window,
        rank=ranks.rank,
        world_size=ranks.world_size,
        backend=options.backend,
        on_error=options.on_error,
        verify_shards=options.verify_shards and ranks.local_rank == 0,
        workers="auto" if options.workers == "auto" else -(-options.workers // here),
    )


def wanted_splits(options: TrainOptions) -> list[str]:
    """The splits to open: train and, where the data has it, val. What is missing, the loader reports."""
    if options.evaluate:
        return ["val"]
    return ["train", "val"] if "val" in splits_of(configure(options, "train", Ranks())) else ["train"]


def open_feed(
    options: TrainOptions, split: str, ranks: Ranks, device: Device, dtype: torch.dtype, stack: contextlib.ExitStack
) -> Feed:
    """One split as batches on the device; ``stack`` closes it."""
    config = configure(options, split, ranks)
    start = time.perf_counter()
    loader = stack.enter_context(build_loader(config))
    if split == "train" and ranks.first and not holds_shards(config):
        print(
            f"note: reading {loader.samples:,} single files, listed in {time.perf_counter() - start:.1f} s; shards "
            "open at once, read in large requests and are checked by hash: "
            f"python tools/make_shards.py {options.data} DST",
            flush=True,
        )
    if split == "train" and feature_size(smallest_size(options)) == 1:
        refuse_single_pictures(options, ranks, loader.samples)
    feed = Feed(loader, device, dtype)
    stack.callback(feed.close)
    return feed


def refuse_single_pictures(options: TrainOptions, ranks: Ranks, samples: int) -> None:
    """Raises ConfigError where the model would get one picture alone, of whose one pixel batch norm makes nothing."""
    batch, smallest = options.batch_size // ranks.local_world_size, smallest_size(options)
    rest = samples % (batch * ranks.world_size)
    last = {rest // ranks.world_size, -(-rest // ranks.world_size)}
    for name, shares in (("each step", {batch}), ("the last batch of an epoch", last - {0})):
        for share in shares:
            if share // -(-share // max(part_sizes(options, ranks))) == 1:
                raise ConfigError(
                    f"{name} would give the model one picture alone, of {samples:,}, and at {smallest} px batch norm "
                    f"cannot train on 1: choose another --batch-size than {options.batch_size}"
                    f"{' or less to --accumulate' if options.accumulate > 1 else ''}"
                )


def smallest_size(options: TrainOptions) -> int:
    """Pixels of the smallest pictures of any epoch."""
    return min((size for _, size in options.progressive), default=options.image_size)


def part_sizes(options: TrainOptions, ranks: Ranks) -> set[int]:
    """How many pictures of a rank's whole batch go through the model at once: one number, or two in a row."""
    batch = options.batch_size // ranks.local_world_size
    parts = -(-batch // -(-batch // options.accumulate))
    return {batch // parts, -(-batch // parts)}


def build_run(
    options: TrainOptions, ranks: Ranks, device: Device, precision: Precision, classes: tuple[str, ...]
) -> Run:
    """The network, with pretrained weights where asked for, and its optimiser. Raises ConfigError or WeightsError."""
    width = options.num_classes or len(classes)
    if width < len(classes):
        raise ConfigError(f"--num-classes must be at least the data set's {len(classes)}, was {width}")
    torch.manual_seed(options.seed)
    model = InceptionV4(num_classes=width, blocks=options.blocks)
    if options.init == "even":
        initialise_evenly(model)
    loaded = load_pretrained(model, options.pretrained, new_head=options.new_head) if options.pretrained else None
    model.to(device.torch_device).to(memory_format=device.memory_format)  # type: ignore[call-overload]
    precision.convert(model)
    optimizer = Optimizer(
        model,
        precision,
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        loss_scale=options.loss_scale,
        overflow=device.overflow_flag(),
        any_rank=ranks.max,
    )
    prefix = f"[{device.kind} id: {device.index} ] " if ranks.launched else ""
    run = Run(options, ranks, precision, model, optimizer, classes, prefix)
    if loaded:
        run.say(loaded)
    return run


def make_output(options: TrainOptions) -> None:
    """Make the folder --output. Raises ConfigError where it cannot be."""
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {options.output} cannot be made: {error.strerror}") from error


def rate(options: TrainOptions, epoch: int, done: float) -> float:
    """The learning rate in ``epoch``, of which ``done`` is behind us."""
    return learning_rate(
        epoch,
        lr=options.lr,
        epochs=options.epochs,
        schedule=options.lr_schedule,
        warm_up_epochs=options.warm_up_epochs,
        done=done,
    )


def like_a_batch(run: Run, feed: Feed, count: int) -> Tensor:
    """``count`` pictures, all grey, of the size and in the layout in which the model gets them."""
    size = run.image_size
    images = torch.full((count, size, size, 3), 127, dtype=torch.uint8, device=feed.device.torch_device)
    return normalise(images, feed.dtype, feed.device.memory_format)


def steps_behind(run: Run, feed: Feed, position: int) -> int:
    """How many steps it takes to ``position``, in samples of an epoch."""
    return -(-position // (feed.loader.config.batch_size * run.ranks.world_size))


def open_log(
    run: Run, prefix: str, feed: Feed, *, position: int = 0, sums: Sums = NOTHING, later_steps: int = 0
) -> EpochLog:
    """The log of one pass, of which an interrupted run may have done a part."""
    behind = steps_behind(run, feed, position)
    return EpochLog(
        run.prefix + prefix,
        steps=behind + steps_behind(run, feed, feed.loader.samples - position),
        behind=behind,
        later_steps=later_steps,
        sums=sums,
        print_freq=run.options.print_freq,
        device=feed.device.torch_device,
        synchronize=feed.device.synchronize,
        total=run.ranks.sum,
        stall_s=feed.stall_s,
        rank=run.ranks.rank,
        world_size=run.ranks.world_size,
        live=run.live,
        slots=feed.loader.config.slots,
    )


def announce(run: Run, device: Device, feeds: dict[str, Feed]) -> None:
    """Say once what is about to happen, and what is slower or other than it could be."""
    options, ranks, precision = run.options, run.ranks, run.precision
    loader = next(iter(feeds.values())).loader
    splits = ", ".join(f"{feed.loader.samples:,} {split}" for split, feed in feeds.items())
    depth = "" if options.blocks == (4, 7, 3) else f" with blocks {','.join(map(str, options.blocks))}"
    low = "" if precision.level == "O0" else f" {str(precision.dtype).removeprefix('torch.')}"
    several = f" x {ranks.world_size}" if ranks.many else ""
    run.say(
        f"InceptionV4{depth} on {device.name()}{several}, {precision.level}{low or ' float32'}; "
        f"{splits} pictures of {len(run.classes)} classes at {_sizes(loader.config)}, "
        f"{loader.config.batch_size}{several} a step; decoding with {loader.backend} on {_cores(loader.workers)}"
        f"{' a card' if ranks.many else ''}"
    )
    run.metrics(
        kind="run",
        options={name: str(value) for name, value in vars(options).items() if value is not None},
        device=device.name(),
        backend=loader.backend,
        workers=loader.workers,
        world_size=ranks.world_size,
        samples={split: feed.loader.samples for split, feed in feeds.items()},
        torch=torch.__version__,
    )
    notes = [
        device.advice,
        device.bf16_advice() if precision.level != "O0" and precision.dtype == torch.bfloat16 else None,
    ]
    if options.dist_backend not in (None, device.collectives):
        notes.append(f"--dist-backend {options.dist_backend} is not for {device.kind}: {device.collectives} is used")
    if options.batch_size % ranks.local_world_size:
        whole = loader.config.batch_size * ranks.local_world_size
        notes.append(
            f"--batch-size {options.batch_size} does not divide by {ranks.local_world_size} cards: {whole} it is"
        )
    if options.ema and "val" in feeds:
        notes.append("scores are those of the averaged weights (--ema)")
    for note in filter(None, notes):
        run.say(f"note: {note}")


def _sizes(config: PipelineConfig) -> str:
    if not (config.training and config.sizes):
        return f"{config.image_size} px"
    (_, first), *later = config.sizes
    changes = "".join(f", {size} from epoch {epoch} on" for epoch, size in later)
    return f"{first} px{changes}, scored at {config.image_size}"


def _cores(count: int) -> str:
    return f"{count} core{'s'[: count > 1]}"


def entry(argv: Sequence[str] | None = None) -> Callable[[], int]:
    """``main`` with the model's errors as the pipeline's, so that all end in one line."""

    def run() -> int:
        try:
            return main(argv)
        except WeightsError as error:
            raise DataError(str(error)) from error
        except CompileError as error:
            raise ConfigError(str(error)) from error

    def rank() -> int:
        try:
            return run()
        except Exception as error:
            # One rank's end breaks the others' collectives, and what is wrong for one is often wrong for all: whoever
            # started us ends us within these seconds where another rank has said it already.
            if not (Ranks.from_environment().first and isinstance(error, (ConfigError, DataError))):
                time.sleep(3)
            raise

    return rank if Ranks.from_environment().launched else run


def rank_main(argv: Sequence[str]) -> None:
    """What --multiprocessing-distributed runs in each process."""
    run_tool("train.py", entry(argv))


if __name__ == "__main__":
    run_tool("train.py", entry())
