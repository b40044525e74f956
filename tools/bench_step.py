"""What a training step costs on a device: ours in several settings, and timm's inception_v4 as its users train it.

    python tools/bench_step.py --device cuda --batch-size 155
    python tools/bench_step.py --device cpu --batch-size 16 --levels O0,O2 --compile off

Pictures lie on the device already, so that nothing but the step is measured. All run in one process, turn by turn, and
the median of the turns counts. timm's (left out where it is not installed) are trained as its train.py does: autocast,
a GradScaler for float16, torch.optim.SGD. The peak is that of a product of two large matrices, in the device's low
precision, measured in the same turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import itertools
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

import train

# isort: split
import torch

from model.compiled import CompileError
from model.inceptionv4 import InceptionV4
from model.options import TrainOptions
from model.precision import Precision
from model.ranks import Ranks
from pipeline.console import run_tool
from pipeline.device import Device, find_device
from pipeline.errors import ConfigError
from pipeline.transfer import DeviceBatch, normalise

CLASSES = tuple(map(str, range(1000)))
WARM_UP_STEPS = 3  # cudnn searches, allocators grow
Step = Callable[[], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to take the step."""

    whose: str  # headrace or timm
    level: str  # O0 to O3; timm: fp32 or autocast
    channels_last: bool
    compile: bool

    def __str__(self) -> str:
        extras = ["channels_last"] * self.channels_last + ["compiled"] * self.compile
        return " ".join([self.whose, self.level, *extras])


def batch_on(device: Device, args: argparse.Namespace, dtype: torch.dtype) -> DeviceBatch:
    """A batch of noise, normalised on the device as the feed does it."""
    size, pixels = args.batch_size, args.image_size
    images = torch.randint(256, (size, pixels, pixels, 3), dtype=torch.uint8, device=device.torch_device)
    labels = torch.randint(len(CLASSES), (size,), device=device.torch_device)
    ready = normalise(images, dtype, device.memory_format)
    return DeviceBatch(images=ready, labels=labels, global_size=size, end=size, wait_s=0.0, ready=0)


def ours(contender: Contender, device: Device, args: argparse.Namespace) -> Step:
    """train.py's own step."""
    options = TrainOptions(shards="none", blocks=args.blocks, label_smoothing=0.1, lr=0.01,
                           batch_size=args.batch_size, compile="default" if contender.compile else None)  # fmt: skip
    precision = Precision(level=contender.level, dtype=device.low_precision, device_type=device.kind)
    run = train.build_run(options, Ranks(), device, precision, CLASSES)
    run.begin_network()
    batch = batch_on(device, args, precision.input_dtype)
    run.prepare(batch.images)
    return lambda: train.train_step(run, batch)


def timms(contender: Contender, device: Device, args: argparse.Namespace) -> Step:
    """The same network and recipe, as timm's train.py has it."""
    import timm

    model = timm.create_model("inception_v4", num_classes=len(CLASSES)).to(device.torch_device)
    model = model.to(memory_format=device.memory_format).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, foreach=True)
    low = contender.level == "autocast"
    scaler = torch.amp.GradScaler(device.kind, enabled=low and device.low_precision == torch.float16)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    batch = batch_on(device, args, torch.float32)
    network = torch.compile(model) if contender.compile else model

    def step() -> None:
        with torch.autocast(device.kind, device.low_precision, enabled=low):
            loss = criterion(network(batch.images), batch.labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def build(contender: Contender, device: Device, args: argparse.Namespace) -> Step:
    """The step of a contender, after its first ones."""
    layout = device.memory_format if contender.channels_last else torch.contiguous_format
    device = dataclasses.replace(device, memory_format=layout)
    step = (timms if contender.whose == "timm" else ours)(contender, device, args)
    for _ in range(WARM_UP_STEPS):
        step()
    device.synchronize()
    return step


def matrices(device: Device) -> tuple[Step, float]:
    """A product of two square matrices, and how many FLOP it takes."""
    side = 8192 if device.asynchronous else 2048
    a, b = (torch.randn(side, side, device=device.torch_device).to(device.low_precision) for _ in range(2))
    return lambda: a @ b, 2.0 * side**3


def per_second(step: Step, device: Device, seconds: float) -> float:
    """How many steps fit into a second, over one turn."""
    device.synchronize()
    start = time.perf_counter()
    for done in itertools.count(1):
        step()
        if done % 5 == 0 or not device.asynchronous:
            device.synchronize()
            if time.perf_counter() - start >= seconds:
                break
    return done / (time.perf_counter() - start)


def flop_an_image(args: argparse.Namespace) -> float:
    """Forward, and twice that backward: 73.7e9 at full depth and 299 pixels. Counted, on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        InceptionV4(blocks=args.blocks).eval()(torch.empty(1, 3, args.image_size, args.image_size))
    return 3 * float(counter.get_total_flops())


def memory_gb(contender: Contender, args: argparse.Namespace) -> float:
    """What the weights, the optimiser and a step need at most, in 10^9 bytes, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(send, contender, args))
    process.start()
    send.close()
    try:
        return float(receive.recv())
    except EOFError:
        raise ConfigError(f"{contender} does not run here: see above") from None
    finally:
        process.join()


def _measure_memory(send: object, contender: Contender, args: argparse.Namespace) -> None:
    device = find_device(args.device)
    device.use()
    before = _most_memory(device)
    step = build(contender, device, args)
    step()
    device.synchronize()
    send.send(_most_memory(device) - before)  # type: ignore[attr-defined]


def _most_memory(device: Device) -> float:
    if device.asynchronous:
        return float(torch.accelerator.max_memory_allocated() / 1e9)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def contenders(device: Device, args: argparse.Namespace) -> list[Contender]:
    """All that were asked for and can run here."""
    layouts = [False, True] if args.layouts == "both" else [args.layouts == "channels_last"]
    if device.memory_format != torch.channels_last:
        layouts = [False]
    compiling = {"off": [False], "on": [True], "both": [False, True]}[args.compile] if device.compiles else [False]
    found = []
    if args.blocks != (4, 7, 3):
        print("timm has no InceptionV4 with other blocks than 4,7,3: ours is compared with nobody's")
    elif importlib.util.find_spec("timm") is None:
        print("timm is not installed, so ours is compared with nobody's: pip install timm")
    else:
        found = [("timm", level) for level in ("fp32", "autocast")]
    found += [("headrace", level) for level in args.levels]
    return [
        Contender(whose=whose, level=level, channels_last=layout, compile=compiled)
        for (whose, level), layout, compiled in itertools.product(found, layouts, compiling)
    ]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=155)
    parser.add_argument("--image-size", type=int, default=299)
    parser.add_argument("--blocks", type=lambda text: tuple(map(int, text.split(","))), default=(4, 7, 3))
    parser.add_argument("--levels", type=lambda text: text.split(","), default=["O0", "O1", "O2"])
    parser.add_argument("--layouts", choices=("channels_last", "contiguous", "both"), default="channels_last")
    parser.add_argument("--compile", choices=("off", "on", "both"), default="off")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    args = parse(argv)
    device = find_device(args.device)
    device.use()
    entered = contenders(device, args)
    memory = {one: memory_gb(one, args) for one in entered}
    steps = {}
    for one in entered:
        try:
            steps[one] = build(one, device, args)
        except CompileError as error:
            raise ConfigError(str(error)) from error
        gc.collect()
    product, flop = matrices(device)
    rates: dict[Contender, list[float]] = {one: [] for one in steps}
    peaks = []
    for _ in range(args.turns):
        peaks.append(flop * per_second(product, device, args.seconds / 5))
        for one, step in steps.items():
            rates[one].append(args.batch_size * per_second(step, device, args.seconds))
    peak, an_image = statistics.median(peaks), flop_an_image(args)
    middles = {one: statistics.median(turns) for one, turns in rates.items()}
    rival = max((one for one in middles if one.whose == "timm"), key=middles.__getitem__, default=None)
    low = str(device.low_precision).removeprefix("torch.")
    print(
        f"{device.name()}, torch {torch.__version__}, {torch.get_num_threads()} threads; {args.batch_size} pictures of "
        f"{args.image_size} px, blocks {','.join(map(str, args.blocks))}, {an_image / 1e9:.1f} GFLOP an image; "
        f"peak {peak / 1e12:.2f} TFLOP/s in {low}; medians of {args.turns} turns of {args.seconds} s"
    )
    rows = []
    for one, middle in middles.items():
        share, turns = middle * an_image / peak, rates[one]
        against = f"  x {statistics.median(map(truediv, turns, rates[rival])):.2f}" if rival else ""
        print(f"{one!s:38} {middle:8.2f} images/s  ({min(turns):.2f} to {max(turns):.2f})  {100 * share:3.0f} % of the "
              f"peak  {memory[one]:5.1f} GB{against}")  # fmt: skip
        rows.append(dataclasses.asdict(one) | {"images_per_s": turns, "peak_share": share, "memory_gb": memory[one]})
    if rival:
        print(f"x: times as fast as {rival}, timm's fastest here; the median of what each turn says")
    if args.json:
        args.json.write_text(json.dumps({"device": device.name(), "peak_flops": peaks, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    run_tool("bench_step.py", main)
