"""How well a block shuffle mixes, beside a global one: python benchmarks/shuffle.py

Orders only, no pictures: ImageNet's 1,281,167 in 1,150 shards of 128 MB, batches of 1,024.

shards a batch: how many shards the samples of a batch come from, the median over an epoch. meet again: how often two
samples that share a batch share one in the next epoch too, as a multiple of what pure chance gives; a network sees the
same company more often than it should where this is above 1. at once: how much of the data has to be at hand.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from pipeline.order import Indices, block_order, epoch_order

SAMPLES, SHARDS, SHARD_MB, BATCH = 1_281_167, 1_150, 128, 1_024


def main() -> None:
    """Print one line a window."""
    sizes = [len(part) for part in np.array_split(np.arange(SAMPLES), SHARDS)]
    first = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
    print("window   shards a batch   meet again    at once   an epoch's order")
    for window in (1, 2, 4, 8, 16, 32, 64, 256, None):
        start = time.process_time()
        orders = [
            epoch_order(SAMPLES, seed=0, epoch=epoch, shuffle=True)
            if window is None
            else block_order(SAMPLES, first, seed=0, epoch=epoch, window=window)
            for epoch in range(2)
        ]
        order_s = (time.process_time() - start) / 2
        shards = np.searchsorted(first, orders[0], side="right") - 1
        a_batch = [len(set(shards[at : at + BATCH].tolist())) for at in range(0, SAMPLES - BATCH, 50 * BATCH)]
        at_once = f"{(window or SHARDS) * SHARD_MB / 1000:6.1f} GB"
        print(
            f"{window or 'global':>6}   {np.median(a_batch):14.0f}   {meet_again(*orders):10.2f}   {at_once:>8}   "
            f"{order_s:.2f} s"
        )


def meet_again(one: Indices, other: Indices) -> float:
    """Pairs that share a batch in both orders, over the number of them that chance would give."""
    batch = np.empty((2, SAMPLES), np.int64)
    for number, order in enumerate((one, other)):
        batch[number, order] = np.arange(SAMPLES) // BATCH
    _, together = np.unique(batch[0] * SAMPLES + batch[1], return_counts=True)
    pairs = BATCH * (BATCH - 1) / 2 * (SAMPLES / BATCH)
    return float((together * (together - 1) / 2).sum() / (pairs * (BATCH - 1) / (SAMPLES - 1)))


if __name__ == "__main__":
    main()
