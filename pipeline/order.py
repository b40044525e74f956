"""Which samples make up which batch: pure functions of (seed, epoch), whatever the number of ranks and workers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .rng import STREAM_ORDER, STREAM_SHARDS, random_bits

Indices = npt.NDArray[np.int64]


def epoch_order(n: int, *, seed: int, epoch: int, shuffle: bool) -> Indices:
    """The order in which an epoch visits the samples 0 ... n-1, each exactly once: int64 [n].

    Shuffled by sorting one random number per sample. Costs about 0.1 s per million samples, once an epoch, and does
    not change with the version of numpy as ``Generator.permutation`` may.
    """
    indices = np.arange(n, dtype=np.int64)
    if not shuffle:
        return indices
    return np.argsort(random_bits(seed, epoch, STREAM_ORDER, indices), kind="stable").astype(np.int64)


def block_order(n: int, first: Indices, *, seed: int, epoch: int, window: int) -> Indices:
    """As :func:`epoch_order` shuffled, but at any moment samples of ``window`` shards only are visited: int64 [n].

    For pictures that are far away: whole shards can be fetched, used, and let go. ``first``: int64 [shards], the number
    of each shard's first sample. The shards take turns in a random order; the samples of the one whose turn is t are
    spread evenly over the turns from t - window / 2 to t + window / 2, cut off at the ends of the epoch. So there is no
    border at which one set of shards gives way to the next. ``window`` = 1 is one shard after the other, twice the
    number of shards the same as a global shuffle. Costs about 0.2 s per million samples, once an epoch.
    """
    shards = len(first)
    by_turn = np.argsort(random_bits(seed, epoch, STREAM_SHARDS, np.arange(shards)), kind="stable")
    middle = np.empty(shards)
    middle[by_turn] = np.arange(shards) + 0.5
    begin, end = np.maximum(middle - window / 2, 0), np.minimum(middle + window / 2, shards)
    shard = np.repeat(np.arange(shards), np.diff(first, append=n))
    share = (random_bits(seed, epoch, STREAM_ORDER, np.arange(n)) >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    return np.argsort(begin[shard] + (end - begin)[shard] * share, kind="stable").astype(np.int64)


def batch_indices(order: Indices, start: int, *, batch_size: int, rank: int, world_size: int) -> Indices:
    """One rank's share of the global batch that begins ``start`` samples into the epoch: int64 [N].

    A global batch is the next ``batch_size * world_size`` places of the order, so the same samples meet in it for any
    number of ranks that keeps that product. N = batch_size but in the last batch of an epoch, which is dealt out as
    evenly as it goes: shares differ by one sample at most, and a rank can come away with none.
    """
    batch = order[start : start + batch_size * world_size]
    return batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size]
