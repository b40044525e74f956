"""train.py, which writes down what its loader hands out: one line a batch, before it is trained on.

In the file that HEADRACE_JOURNAL names: attempt, epoch, samples behind it, rank, the samples' numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import train
from pipeline.console import run_tool
from pipeline.loader import Batch, Loader

_handed_out = Loader.held_batches


def _journalled(loader: Loader) -> Iterator[Batch]:
    for batch in _handed_out(loader):
        if loader.config.training:
            line = [os.environ["HEADRACE_ATTEMPT"], batch.epoch, batch.end, loader.config.rank, batch.indices.tolist()]
            with open(os.environ["HEADRACE_JOURNAL"], "a") as file:
                file.write(json.dumps(line) + "\n")
        yield batch


Loader.held_batches = _journalled  # type: ignore[method-assign, assignment]  # also in the ranks, which import this anew

if __name__ == "__main__":
    run_tool("train.py", train.entry())
