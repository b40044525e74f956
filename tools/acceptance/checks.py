"""The eight checks, in the order in which a training step depends on them."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.run import METRICS
from model.starvation import WARM_UP_STEPS
from pipeline import build_loader
from pipeline.device import find_device
from pipeline.host import cores
from pipeline.transfer import Feed, normalise
from tools.acceptance.bench import (
    LR,
    Bench,
    copy_times,
    full_fp32,
    learned,
    new_run,
    noise,
    pace,
    run_command,
    short_epoch,
    small,
    three_steps,
)
from tools.acceptance.page import Outcome, failed, passed, skipped
from train import train_step

PUBLISHED = 474.6  # images/s, InceptionV4_ID1778 (ModelZoo) on one Ascend 910: 4,7,3 blocks, 299 px, O2
PUBLISHED_EFFICIENCY = 2366.2 / (8 * 474.6)  # the same on eight
EXACT_BATCHES = 32  # of an epoch, at most: an epoch of ImageNet takes longer than five minutes
# The same fp32 steps in another order of summing (one CPU, channels_last against contiguous, 1 thread against 2) differ
# by 3e-7 in the first loss, 2e-4 in the third, and 2e-2 in the worst weights: biases of batch norms, which begin at 0
# and so hold nothing but their gradients. float16 gives 2e-1 there.
FIRST_LOSS, LATER_LOSSES, WEIGHTS = 1e-3, 1e-2, 1e-1
HALF_LOSSES = 5e-2
ISSUE = "send us this page, with what is on stderr"


class Overflowing(nn.CrossEntropyLoss):
    """A loss so large that no gradient of it is finite once it is scaled, in any type."""

    def forward(self, logits_NK: Tensor, labels: Tensor) -> Tensor:
        return super().forward(logits_NK, labels) * 1e38


def check_host(bench: Bench) -> Outcome:
    """That the card can be opened and computes."""
    bench.device.use()
    there = torch.arange(1000, device=bench.device.torch_device)
    if int(there.sum().item()) != 499_500:
        return failed("0 + 1 + ... + 999 is not 499,500 on the device", "nothing else can be right: see `npu-smi info`")
    return passed(f"{bench.device.name()} is there and adds up; the table above has the rest")


def check_strict(bench: Bench) -> Outcome:
    """That what the card lacks does not run on the host unseen, in anything that follows."""
    if bench.device.kind != "npu":
        return skipped("not applicable: only torch_npu falls back to the CPU")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            torch.linalg.eigvals(torch.eye(2, device=bench.device.torch_device))
        except RuntimeError:
            return passed("TORCH_NPU_FALLBACK_CPU_DISABLE=1: an operator that the card lacks (eigvals) is refused")
    if any("fall" in str(warning.message) and "back" in str(warning.message) for warning in told):
        return failed(
            "eigvals ran on the CPU in spite of TORCH_NPU_FALLBACK_CPU_DISABLE=1",
            "this torch_npu does not know the setting: the checks below hold, but an operator of the network may run "
            "on the host; look for `fall back to run on the CPU` on stderr, or take a later torch_npu",
        )
    return passed("TORCH_NPU_FALLBACK_CPU_DISABLE=1, set before torch_npu was loaded")


def check_copies(bench: Bench) -> Outcome:
    """The ring's way to the card: pinned, and copied while the host goes on."""
    device = bench.device
    if not device.asynchronous:
        return skipped("not applicable: batches stay on the host")
    ring = torch.from_numpy(bench.loader.ring.memory)
    feed = Feed(bench.loader, device)
    try:
        registered = ring.is_pinned()
        batch = torch.from_numpy(bench.loader.ring.slots[0].images(bench.args.image_size))
        batch_call_s, batch_s, _ = copy_times(device, batch if registered else batch.pin_memory())
        large = torch.empty((16 if bench.args.quick else 256) * 2**20, dtype=torch.uint8, pin_memory=True).fill_(1)
        call_s, all_s, pending = copy_times(device, large)
    finally:
        feed.close()
    figure = (
        f"the ring is {'registered' if registered else 'staged'}; a batch of {batch.numel() / 1e6:.1f} MB: the call "
        f"took {1e3 * batch_call_s:.2f} ms of {1e3 * batch_s:.2f} ms; {large.numel() / 2**20:.0f} MiB pinned: "
        f"{1e3 * call_s:.2f} ms of {1e3 * all_s:.2f} ms, {large.numel() / 1e9 / all_s:.1f} GB/s"
    )
    if not pending or call_s > all_s / 4:
        return failed(
            figure,
            "a copy from pinned memory makes the host wait, so nothing overlaps with it: training works, and is slower "
            "by the time of the copies. Unset ASCEND_LAUNCH_BLOCKING (CUDA_LAUNCH_BLOCKING), then run again",
        )
    if not registered:
        return passed(
            figure,
            "the card would not register the ring, so each batch is copied once more on the host (about 0.1 ms a "
            "picture): check `ulimit -l`; torch_npu before 2.12 cannot",
        )
    return passed(figure)


def check_exactness(bench: Bench) -> Outcome:
    """That what reaches the model is what the host has decoded: no slot is reused early, no label is lost."""
    loader = bench.loader
    feed = Feed(loader, bench.device, torch.float32)
    largest, wrong_labels, batches = 0.0, 0, 0
    try:
        for epoch in range(2):
            loader.set_epoch(epoch)
            loader.copies.clear()
            for batch in itertools.islice(feed, EXACT_BATCHES):
                images, labels = loader.copies.popleft()
                wanted = normalise(images, torch.float32, bench.device.memory_format)
                largest = max(largest, float((batch.images.cpu() - wanted).abs().nan_to_num(math.inf).max()))
                wrong_labels += int((batch.labels.cpu() != labels).sum())
                batches += 1
    finally:
        feed.close()
        loader.copies.clear()
    figure = (
        f"{batches} batches of 2 epochs{'' if batches == 2 * len(loader) else f' of {len(loader):,}'}: "
        f"{'the same bits' if largest == 0 else f'largest difference {largest:.1e} (1e-6 is allowed)'}, "
        f"{wrong_labels} wrong labels"
    )
    if largest <= 1e-6 and not wrong_labels:
        return passed(figure)
    return failed(
        figure,
        "what the model is given is not what was decoded, so nothing it learns can be trusted. Run again with "
        "ASCEND_LAUNCH_BLOCKING=1: if that passes, a copy is read before it is done",
    )


def check_fp32(bench: Bench) -> Outcome:
    """That the card computes what the CPU computes: the same three steps, from the same weights."""
    if not bench.device.asynchronous:
        return skipped("not applicable: it is the CPU")
    with full_fp32(bench.device) as switched:
        losses, weights = three_steps(bench, bench.device)
    wanted_losses, wanted_weights = three_steps(bench, find_device("cpu"))
    apart = relative(losses, wanted_losses)
    worst = {
        name: float((weights[name] - wanted).norm() / wanted.norm().clamp(min=1e-30))
        for name, wanted in wanted_weights.items()
    }
    name = max(worst, key=lambda name: math.inf if math.isnan(worst[name]) else worst[name])
    figure = (
        f"losses {_numbers(losses)}, CPU {_numbers(wanted_losses)}: {_tiny(apart)} apart ({FIRST_LOSS:.0e} is allowed "
        f"in the first step, {LATER_LOSSES:.0e} later); weights {worst[name]:.1e} apart at most, in {name} "
        f"({WEIGHTS:.0e}){switched}"
    )
    if apart[0] <= FIRST_LOSS and all(a <= LATER_LOSSES for a in apart) and all(w <= WEIGHTS for w in worst.values()):
        return passed(figure)
    return failed(
        figure,
        "an operator computes something else on the card than on the CPU. If the first loss is apart, it is one of the "
        "forward pass; if only weights are, of the backward pass or of the fused SGD. Try another CANN, and send us "
        "this page",
    )


def check_half(bench: Bench) -> Outcome:
    """That O2 trains as O0 does, and that a step which overflows changes nothing but the scale."""
    size, pixels = small(bench)
    plain = new_run(bench, bench.device, "O0")
    batch = noise(bench.device, plain.precision.input_dtype, size, pixels)
    wanted = [train_step(plain, batch)[0].item() for _ in range(3)]

    run = new_run(bench, bench.device, "O2", scale="dynamic", dtype=torch.float16)
    batch = noise(bench.device, run.precision.input_dtype, size, pixels)
    if bench.args.quick:  # from 2**16 the scale has to come down first, and such steps take their time
        run.optimizer.load_amp_state_dict({"loss_scaler0": {"loss_scale": 2.0**12, "unskipped": 0}})
    losses: list[float] = []
    for _ in range(20):  # a step that is skipped changes nothing: the next has the same loss
        skipped_before = run.optimizer.skipped
        loss = train_step(run, batch)[0].item()
        if run.optimizer.skipped == skipped_before:
            losses.append(loss)
        if len(losses) == 3:
            break
    before, scale, skips = learned(run), run.optimizer.scale, run.optimizer.skipped
    criterion, run.criterion = run.criterion, Overflowing()
    train_step(run, batch)
    run.criterion = criterion
    after, halved, skips_after = learned(run), run.optimizer.scale, run.optimizer.skipped
    following = train_step(run, batch)[0].item()
    kept = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    apart = relative(losses, wanted)
    problems = [
        text
        for text, bad in (
            (f"losses are more than {HALF_LOSSES:.0e} apart", not all(a <= HALF_LOSSES for a in apart)),
            (f"only {len(losses)} of {skips + len(losses)} steps were taken", len(losses) < 3),
            ("the step that overflowed was not skipped", skips_after != skips + 1),
            (f"the scale went from {scale:g} to {halved:g}", halved != scale / 2),
            ("it changed weights or momenta", not kept),
            (
                "the step after it is not finite, or was skipped",
                not good(following) or run.optimizer.skipped > skips + 1,
            ),
        )
        if bad
    ]
    fine = f"skipped, no bit changed, scale {scale:g} to {halved:g}, next loss {following:.4f}"
    figure = (
        f"losses {_numbers(losses)}, O0 {_numbers(wanted)}: {_tiny(apart)} apart ({HALF_LOSSES:.0e} is allowed); "
        f"a step that overflows: {'; '.join(problems) or fine}"
    )
    if not problems:
        return passed(figure)
    return failed(
        figure,
        "mixed precision is not safe here: train with --opt-level O0 until it is. Where an overflow goes unseen the "
        "card may saturate (INF_NAN_MODE_ENABLE=0, or an Ascend 910A): say so in the issue",
    )


def check_one_card(bench: Bench) -> Outcome:
    """What the card could train, and what it does train from shards."""
    args, device = bench.args, bench.device
    run = new_run(bench, device, bench.level, scale=128.0, blocks=args.blocks, classes=bench.loader.classes)
    dtype = run.precision.input_dtype
    batch = noise(device, dtype, args.batch_size, args.image_size, bench.loader.classes)
    card, _, _ = pace(bench, run, itertools.repeat(batch))
    shards = short_epoch(bench.shards, bench.scratch / "one", (bench.warm_up + args.steps) * args.batch_size)
    with build_loader(dataclasses.replace(bench.loader.config, shards=shards)) as loader:
        feed = Feed(loader, device, dtype)
        try:
            got, stall, loss = pace(bench, run, feed)
        finally:
            feed.close()
    bench.images_per_s = got
    published = (
        f"{card / PUBLISHED:.2f} and {got / PUBLISHED:.2f} times the published {PUBLISHED} of one Ascend 910"
        if bench.comparable
        else f"not the network of the published {PUBLISHED} images/s"
    )
    figure = (
        f"{card:.1f} images/s from pictures on the device, {got:.1f} from shards (FPS), waiting {100 * stall:.1f} % of "
        f"the time; {bench.level}, blocks {','.join(map(str, args.blocks))}, {args.image_size} px, {args.batch_size} a "
        f"step; {published}"
    )
    if not good(loss):
        return failed(figure + f"; the loss is {loss}", "it does not stay finite in training: see checks 5 and 6")
    if stall > 0.05 and not args.quick:
        return passed(
            figure,
            "the card waits for the host: python tools/profile_loader.py --shards DST "
            f"--demand {card:.0f} --devices {bench.cards} says what stands in the way",
        )
    return passed(figure)


def check_all_cards(bench: Bench) -> Outcome:
    """What all cards train together, through train.py itself."""
    args, device, n = bench.args, bench.device, bench.cards
    if n == 1:
        return skipped("not applicable: one card (--cards N)")
    output = bench.scratch / "output"
    steps = args.steps + min(WARM_UP_STEPS, args.steps)  # so many FPS@all leaves out
    shards = short_epoch(bench.shards, bench.scratch / "all", steps * args.batch_size * n)
    os.sched_setaffinity(0, cores())  # torch_npu has bound this thread to one core, and a child would inherit it
    if device.asynchronous:
        gc.collect()
        getattr(torch, device.kind).empty_cache()  # this process has held memory of the first card
    run_command(
        "train.py", "--shards", shards, "--output", output, "--multiprocessing-distributed", "--device", device.kind,
        "--device-list", ",".join(map(str, range(n))), "--batch-size", args.batch_size * n, "--epochs", 1, "--lr", LR,
        "--image-size", args.image_size, "--blocks", ",".join(map(str, args.blocks)), "--opt-level", bench.level,
        "--loss-scale", 128,
    )  # fmt: skip
    lines = [json.loads(line) for line in (output / METRICS).read_text().splitlines()]
    epoch = next(line for line in lines if line["kind"] == "epoch")
    together = float(epoch["fps_all"])
    figure = f"{together:.1f} images/s on {n} cards"
    if bench.images_per_s:
        figure += f": {100 * together / (n * bench.images_per_s):.0f} % of {n} times one card from shards"
    figure += f" (the original recipe on eight: {100 * PUBLISHED_EFFICIENCY:.0f} %)"
    if good(epoch["loss"]):
        return passed(figure)
    return failed(figure + f"; the loss is {epoch['loss']}", "gradients are not averaged as they should be: " + ISSUE)


CHECKS: dict[str, Callable[[Bench], Outcome]] = {
    "the host": check_host,
    "no hidden CPU fallback": check_strict,
    "the way to the card": check_copies,
    "exactness of batches": check_exactness,
    "fp32 against the CPU": check_fp32,
    "O2 and an overflow": check_half,
    "one card": check_one_card,
    "all cards": check_all_cards,
}


def relative(ours: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """|a - b| / |b| of each."""
    return [abs(a - b) / max(abs(b), 1e-30) for a, b in zip(ours, wanted, strict=False)]


def good(loss: float) -> bool:
    """Whether a loss is a number."""
    return math.isfinite(loss)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _tiny(values: Sequence[float]) -> str:
    return " ".join(f"{value:.0e}" for value in values)
