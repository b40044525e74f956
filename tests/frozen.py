"""Training without batch statistics, to compare ranks and devices: what each picture gives hangs on no other picture.

Batch norm normalises by the pictures that a rank holds, and so two ranks of 10 are not one of 20. With the running
statistics (the model in ``eval``) everything else has to be equal: order, crops, shares,
gradients, reductions, steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import train
from model.options import parse_options
from model.precision import Precision
from model.ranks import Ranks
from pipeline.device import find_device


def main(argv: Sequence[str]) -> int:
    """``OUTPUT`` and train.py's flags: losses of all steps and the last weights go to OUTPUT/<rank>.pt."""
    folder, *flags = argv
    options = parse_options(flags)
    ranks = Ranks.from_environment()
    device = find_device(options.device_name)
    device = train.own_card(device, tuple(range(device.count())), ranks)
    device.use()
    precision = Precision(level=options.opt_level, dtype=torch.float16, device_type=device.kind)
    losses = []
    with contextlib.ExitStack() as stack:
        ranks.join(device.collectives)
        stack.callback(ranks.leave)
        feed = train.open_feed(options, "train", ranks, device, precision.input_dtype, stack)
        other = dataclasses.replace(options, seed=options.seed + ranks.rank, output=Path(folder))
        run = train.build_run(other, ranks, device, precision, feed.loader.classes)
        run.begin()  # from here on all have rank 0's weights
        run.parallel.eval()
        for _ in range(options.epochs):
            for batch in feed:
                loss, _logits = train.train_step(run, batch)
                part = ranks.sum(loss.float() * len(batch.labels)).item() / batch.global_size
                losses.append((batch.global_size, len(batch.labels), part))
        weights = {name: value.cpu() for name, value in run.optimizer.weights().items()}
    torch.save({"losses": losses, "weights": weights}, Path(folder) / f"{ranks.rank}.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
