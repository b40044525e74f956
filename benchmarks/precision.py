"""Claim: what O2 adds to an optimiser's step costs no more than one fp32 step of SGD (model/master_weights.py: 20 bytes
for each parameter, as many as the step itself moves).

python benchmarks/precision.py                 (the host)
python benchmarks/precision.py --device cuda

The step alone, on InceptionV4's parameters with gradients of noise; O0 and O2 take turns, so that whatever else the
machine does falls on all alike. The figures are medians; an extra of 1.00 is one fp32 step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

# As train.py does, before torch loads OpenMP: spinning threads measure whatever else wants a core.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.inceptionv4 import InceptionV4
from model.optimizer import Optimizer
from model.precision import Precision

Scale = float | Literal["dynamic"]
CASES: tuple[tuple[str, str, Scale], ...] = (
    ("O0", "O0", 1.0),
    ("O2, static scale 1", "O2", 1.0),
    ("O2, static scale 1024", "O2", 1024.0),
    ("O2, dynamic scale", "O2", "dynamic"),
)


def prepare(device: torch.device, level: str, scale: Scale, dtype: torch.dtype) -> Callable[[], None]:
    """A model and its optimiser, with gradients in place; returns its step."""
    model = InceptionV4(1000).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = Precision(level=level, dtype=dtype, device_type=device.type)
    precision.convert(model)
    optimizer = Optimizer(model, precision, lr=1e-6, momentum=0.9, weight_decay=4e-5, loss_scale=scale)
    for p in model.parameters():
        # fp32 ones are unscaled in place, again and again here: at zero they stay clear of the slow denormal numbers
        p.grad = torch.zeros_like(p) if level != "O0" and p.dtype == torch.float32 else torch.randn_like(p)
    return optimizer.step


def host_name(device: torch.device) -> str:
    """The processor, or the card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = names[0].split(":")[1].strip() if names else device.type
    return f"{name}, {torch.get_num_threads()} threads"


def main() -> None:
    """Print one block of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--dtype", default="float16", choices=("float16", "bfloat16"), help="the half (default: float16)"
    )
    parser.add_argument("--seconds", type=float, default=20, help="how long to measure (default: 20)")
    args = parser.parse_args()
    device = torch.device(args.device)

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    steps = {name: prepare(device, level, scale, getattr(torch, args.dtype)) for name, level, scale in CASES}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():  # once to warm up
        step()
    until = time.perf_counter() + args.seconds
    while time.perf_counter() < until:
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            times[name].append(time.perf_counter() - start)

    base = statistics.median(times["O0"])
    print(f"optimiser step, InceptionV4, 42.7 M parameters, {args.dtype}; torch {torch.__version__}")
    print(f"{host_name(device)}; medians of {len(times['O0'])} turns")
    print(f"{'':22} {'ms':>8} {'of O0':>7} {'extra, in fp32 steps':>21}")
    for name, values in times.items():
        ratio = statistics.median(values) / base
        print(f"{name:22} {1000 * ratio * base:8.2f} {ratio:7.2f} {ratio - 1:21.2f}")


if __name__ == "__main__":
    main()
