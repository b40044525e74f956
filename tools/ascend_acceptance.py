"""Does Headrace work on these cards? ``python tools/ascend_acceptance.py``: five minutes, one page for an issue.

Eight checks (``acceptance/checks.py``); one that fails stops none of the others. They use the project's own pieces,
down to train.py's step. With --device cuda or cpu it is the same page.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout, with nothing installed

# Before torch_npu is loaded: what the card lacks is to raise an error, not to run on the host unseen.
os.environ["TORCH_NPU_FALLBACK_CPU_DISABLE"] = "1"
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # the device table loads torch_npu

from tools.acceptance.bench import Bench, HostCopies, run_command  # first: train.py sets up OpenMP before torch loads

# isort: split
from model.inceptionv4 import MIN_IMAGE_SIZE
from pipeline import ConfigError, PipelineConfig
from pipeline.console import run_tool
from pipeline.device import Device, find_device
from pipeline.files import atomic_write
from pipeline.shards import open_shards
from tools.acceptance.checks import CHECKS, ISSUE
from tools.acceptance.page import Row, failed, host_facts, render, say

EXAMPLE = """examples:
  python tools/ascend_acceptance.py --output page.md                       all cards, pictures made for it
  python tools/ascend_acceptance.py --shards /data/shards --cards 8
  python tools/ascend_acceptance.py --device cpu --quick                   the same page without a card
"""


def carry_out(bench: Bench) -> list[Row]:
    """All checks, in order."""
    rows = []
    for number, (name, check) in enumerate(CHECKS.items(), 1):
        say(f"{number}/{len(CHECKS)} {name}")
        start = time.perf_counter()
        try:
            outcome = check(bench)
        except Exception as error:  # noqa: BLE001 - the other checks are of use all the same
            traceback.print_exc()
            reason = (str(error).strip().splitlines() or [""])[0]
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
            where = f"{os.path.relpath(frames[-1].filename, ROOT)}, line {frames[-1].lineno}"
            outcome = failed(f"{type(error).__name__} in {where}: {reason}", f"it could not be carried out: {ISSUE}")
        rows.append(Row(name=name, outcome=outcome, seconds=time.perf_counter() - start))
        say(f"    {outcome.verdict}: {outcome.figure}")
    return rows


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Raises ConfigError for what makes no sense."""
    parser = argparse.ArgumentParser(
        prog="ascend_acceptance",
        description="Does Headrace work on these cards? Five minutes, one page for an issue.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def blocks(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    parser.add_argument("--shards", metavar="DST", type=Path, help="a folder of shards (default: made for this run)")
    parser.add_argument("--device", default="npu", help="npu, npu:1, cuda, cpu (default: npu)")
    parser.add_argument("--cards", metavar="N", type=int, help="cards that train together (default: all there are)")
    parser.add_argument("--batch-size", metavar="B", type=int, help="pictures in a step of one card (default: 155)")
    parser.add_argument("--image-size", metavar="PX", type=int, help="default: 299")
    parser.add_argument("--blocks", metavar="A,B,C", type=blocks, help="default: 4,7,3, which is InceptionV4")
    parser.add_argument("--steps", metavar="N", type=int, help="that are timed (default: 30)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not how fast")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the page to a file, too")
    args = parser.parse_args(argv)
    usual = {"batch_size": (155, 8), "image_size": (299, MIN_IMAGE_SIZE), "blocks": ((4, 7, 3), (0, 0, 0)),
             "steps": (30, 2)}  # fmt: skip
    for name, values in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, values[args.quick])
    least = {"batch_size": 2, "image_size": MIN_IMAGE_SIZE, "steps": 1, "cards": 1}
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {low}, was {value}")
    if len(args.blocks) != 3 or min(args.blocks) < 0:
        raise ConfigError(f"--blocks must be three counts such as 4,7,3, was {','.join(map(str, args.blocks))}")
    return args


def cards_of(args: argparse.Namespace, device: Device) -> int:
    """How many train together. Raises ConfigError where there are fewer."""
    several = device.asynchronous and ":" not in args.device
    cards = int(args.cards or (device.count() if several else 1))
    if device.asynchronous and cards > device.count():
        raise ConfigError(f"--cards {cards}: there are {device.count()} of {device.kind}")
    return cards


def make_shards(scratch: Path, quick: bool) -> Path:
    """Pictures of our own, as shards."""
    say("making pictures (--shards DST takes yours)")
    run_command("tools/make_sample_images.py", scratch / "pictures", "--train", 4 if quick else 100, "--val", 1)
    run_command("tools/make_shards.py", scratch / "pictures", scratch / "shards", "--shard-mb", 16)
    return scratch / "shards"


def main() -> int:
    """The checks, then the page; 1 where one failed."""
    start = time.monotonic()
    args = parse(None)
    device = find_device(args.device)
    if device.images_per_s:
        raise ConfigError("a simulated device computes nothing: --device npu, cuda or cpu")
    cards = cards_of(args, device)
    if args.shards:
        open_shards(args.shards, "train").close()  # raises where they are none
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-acceptance-")))
        shards = args.shards or make_shards(scratch, args.quick)
        loader = HostCopies(PipelineConfig(shards=shards, batch_size=args.batch_size, image_size=args.image_size))
        stack.callback(loader.close)
        bench = Bench(args=args, device=device, cards=cards, shards=shards, scratch=scratch, loader=loader)
        rows = carry_out(bench)
        pictures = f"{loader.samples:,} pictures {'of --shards' if args.shards else 'made for it'}, decoded with "
        decoding = f"{loader.backend} on {loader.workers} core{'s'[: loader.workers > 1]}"
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    page = render(
        f"Headrace on {device.kind}",
        f"tools/ascend_acceptance.py{' --quick' if args.quick else ''}, {time.strftime('%Y-%m-%d')}, "
        f"{minutes} min {seconds} s; {pictures}{decoding}",
        host_facts(device),
        rows,
    )
    print(page, end="")
    if args.output:
        with atomic_write(args.output) as file:
            file.write(page.encode())
    return int(any(row.outcome.verdict == "FAIL" for row in rows))


if __name__ == "__main__":
    run_tool("ascend_acceptance", main)
