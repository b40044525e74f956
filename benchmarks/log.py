"""Claim: what train.py says of itself costs under 1 % of a step.

    python benchmarks/log.py

CPU time of this process, the median of several rounds, set against the shortest step that is to be expected: 64
pictures at 474.6 images/s, 135 ms. (An asynchronous device adds two events a step.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pty
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from model.epoch_log import EpochLog
from model.live import Live
from model.options import TrainOptions
from model.ranks import Ranks
from model.starvation import Span, Starvation
from model.tensorboard import Scalars

ROUNDS, CALLS = 9, 1000
STEP_S = 64 / 474.6
DRAWN_EVERY_S = 0.2
PRINT_FREQ = 10


@dataclasses.dataclass(frozen=True)
class Fed:
    """A batch as the log sees it."""

    labels: Tensor
    global_size: int = 64
    wait_s: float = 0.001
    ready: int = 2


@dataclasses.dataclass
class Flight:
    """A batch as the loader sees it."""

    missing: int


def cpu_us(do: Callable[[], object], calls: int = CALLS) -> float:
    """CPU time for one call, of all threads."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(calls):
            do()
        rounds.append((time.process_time() - start) / calls * 1e6)
    return statistics.median(rounds)


def on_terminal() -> tuple[float, float]:
    """Asking whether the live line is due, and drawing it."""
    ours, theirs = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):  # what a terminal says once nobody has it open any more
            while os.read(ours, 65536):
                pass

    threading.Thread(target=read).start()
    with open(theirs, "w") as screen, contextlib.redirect_stdout(screen):
        live = Live()
        live.open("Epoch: [0]")
        due = cpu_us(live.due)
        numbers = {"done": 10, "behind": 0, "steps": 5005, "later_steps": 10**5, "samples": 640, "ready": 2, "slots": 4}
        return due, cpu_us(lambda: live.draw(**numbers, stall_s=0.1, loss=6.9))


def main() -> None:
    """Measure and show."""
    due, draw = on_terminal()
    flights = deque(Flight(0) for _ in range(4))
    watch = Starvation(TrainOptions(shards="x"), Ranks(), batch_size=64, workers=8, warm_up_steps=0)
    span = Span(steps=10, wall_s=1.35, stall_s=0.01, images=640, ready=20)
    log = EpochLog(
        "Epoch: [0]", steps=10**9, print_freq=10**9, device=torch.device("cpu"), synchronize=lambda: None,
        stall_s=lambda: 0.0, live=Live(quiet=True), slots=4, rank=1, world_size=2,
    )  # fmt: skip
    batch, loss, logits_NK = Fed(torch.zeros(0, dtype=torch.int64)), torch.tensor(1.0), torch.zeros(0, 1000)
    line = dict.fromkeys("abcdefghijklm", 1.0)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Scalars(Path(folder), behind=0)) as scalars:
        tensorboard = cpu_us(lambda: scalars.write("train", line, 1), 100)
    rows = [
        ("batches ready in the ring", cpu_us(lambda: sum(not f.missing for f in islice(flights, 1, None))), 1.0),
        ("is the live line due", due, 1.0),
        ("draw the live line", draw, STEP_S / DRAWN_EVERY_S),
        ("watch for starvation", cpu_us(lambda: watch.fed(span)), 1 / PRINT_FREQ),
        ("--tensorboard", tensorboard, 1 / PRINT_FREQ),
        ("the log's step, but for the device's work", cpu_us(lambda: log.step(batch, loss, logits_NK)), 1.0),
    ]
    print(f"{'CPU time':42s}us a call   us a step   of a step")
    for name, us, calls in rows:
        print(f"{name:42s}{us:9.2f}{us * calls:12.2f}{us * calls / STEP_S / 1e4:10.4f} %")


if __name__ == "__main__":
    main()
