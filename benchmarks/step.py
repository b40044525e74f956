"""What a training step costs on a card: ours at O0, O1 and O2, and timm's inception_v4 as its users train it.

    python benchmarks/step.py --device cuda --batch-size 155 --seconds 5

Pictures lie on the device already, so that nothing but the step is measured. Turns alternate; medians of five.
timm's: channels_last, float16 autocast, GradScaler, torch.optim.SGD(foreach), the flags of its train.py (--amp
--channels-last). It is left out where timm is not installed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

import train

# isort: split
import torch

from model.options import TrainOptions
from model.precision import Precision
from model.ranks import Ranks
from pipeline.device import Device, find_device
from pipeline.transfer import DeviceBatch, normalise

TURNS = 5
CLASSES = tuple(map(str, range(1000)))


def batch_on(device: Device, size: int, pixels: int, dtype: torch.dtype) -> DeviceBatch:
    """A batch of noise, normalised on the device as the feed does it."""
    images = torch.randint(256, (size, pixels, pixels, 3), dtype=torch.uint8, device=device.torch_device)
    labels = torch.randint(len(CLASSES), (size,), device=device.torch_device)
    ready = normalise(images, dtype, device.memory_format)
    return DeviceBatch(images=ready, labels=labels, global_size=size, end=size, wait_s=0.0, ready=0)


def ours(device: Device, level: str, args: argparse.Namespace) -> Callable[[], object]:
    """train.py's own step."""
    options = TrainOptions(shards=Path(), blocks=args.blocks, label_smoothing=0.1, lr=0.01, loss_scale=128.0)
    precision = Precision(level=level, dtype=device.low_precision, device_type=device.kind)
    run = train.build_run(options, Ranks(), device, precision, CLASSES)
    batch = batch_on(device, args.batch_size, args.image_size, precision.input_dtype)
    return lambda: train.train_step(run, batch)


def timms(device: Device, args: argparse.Namespace) -> Callable[[], object]:
    """The same network and recipe, as timm's train.py has it."""
    import timm

    model = timm.create_model("inception_v4", num_classes=len(CLASSES)).to(device.torch_device)
    model = model.to(memory_format=device.memory_format).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, foreach=True)
    scaler = torch.amp.GradScaler(device.kind, enabled=device.low_precision == torch.float16)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    batch = batch_on(device, args.batch_size, args.image_size, torch.float32)

    def step() -> None:
        with torch.autocast(device.kind, device.low_precision):
            loss = criterion(model(batch.images), batch.labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def images_per_s(step: Callable[[], object], device: Device, size: int, seconds: float) -> float:
    """The rate over one turn."""
    device.synchronize()
    start = time.perf_counter()
    for done in itertools.count(1):
        step()
        if done % 5 == 0 or seconds < 1:
            device.synchronize()
            if time.perf_counter() - start >= seconds:
                break
    return size * done / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=155)
    parser.add_argument("--image-size", type=int, default=299)
    parser.add_argument("--blocks", type=lambda text: tuple(map(int, text.split(","))), default=(4, 7, 3))
    parser.add_argument("--levels", type=lambda text: text.split(","), default=["O0", "O1", "O2"])
    parser.add_argument("--seconds", type=float, default=5.0, help="a turn")
    args = parser.parse_args()
    device = find_device(args.device)
    device.use()
    steps = {f"headrace {level}": ours(device, level, args) for level in args.levels}
    try:
        steps["timm, autocast"] = timms(device, args)
    except ImportError:
        print("timm is not installed: pip install timm")
    for step in steps.values():  # cudnn searches, allocators grow
        for _ in range(3):
            step()
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            rates[name].append(images_per_s(step, device, args.batch_size, args.seconds))
    print(f"{device.name()}, torch {torch.__version__}, {args.batch_size} pictures of {args.image_size} px, "
          f"blocks {args.blocks}, {TURNS} turns of {args.seconds} s")  # fmt: skip
    reference = statistics.median(rates[next(reversed(rates))])
    for name, turns in rates.items():
        middle = statistics.median(turns)
        print(f"{name:16} {middle:8.1f} images/s  ({min(turns):.1f} to {max(turns):.1f})  x {middle / reference:.2f}")


if __name__ == "__main__":
    main()
