"""Random numbers that depend on nothing but what they are for: (seed, epoch, stream, index, draw).

A counter-based generator (the SplitMix64 finaliser of Steele, Lea and Flood, 2014, applied to a counter) has no state
to share, save or drift: any worker, rank or restart that asks for the same number gets it. Vectorised over samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from .kernel import inlined

U64 = npt.NDArray[np.uint64]

_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = 0xFFFFFFFFFFFFFFFF

# What a number is drawn for. Streams with other numbers are independent.
STREAM_ORDER: Final = 1
STREAM_CROP: Final = 2
STREAM_SHARDS: Final = 3


def _mix(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_mix_one = cast(Callable[[np.uint64], np.uint64], inlined(_mix))  # the same for one number, within a kernel


def _key(seed: int, epoch: int, stream: int) -> np.uint64:
    key = np.zeros(1, np.uint64)
    for part in (stream, seed, epoch):
        # Python's arithmetic for the sum: numpy warns when scalars wrap around, arrays wrap in silence.
        key = _mix(np.array([(int(key[0]) + _GOLDEN * (part + 1)) & _MASK], np.uint64))
    return np.uint64(key[0])


def random_bits(seed: int, epoch: int, stream: int, indices: npt.NDArray[np.int64]) -> U64:
    """One 64-bit number for each index: uint64 [N]."""
    return _mix(_key(seed, epoch, stream) + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def random_uniform(
    seed: int, epoch: int, stream: int, indices: npt.NDArray[np.int64], draws: int
) -> npt.NDArray[np.float64]:
    """``draws`` numbers in [0, 1) for each index: float64 [N, draws], 53 random bits each."""
    state = random_bits(seed, epoch, stream, indices)[:, None]
    counter = np.arange(1, draws + 1, dtype=np.uint64)[None, :] * np.uint64(_GOLDEN)
    return (_mix(state + counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@inlined
def nth_uniform(bits: np.uint64, draw: int) -> float:
    """One number of ``random_uniform``, within a kernel, from an index's ``random_bits``."""
    x = _mix_one(bits + np.uint64(draw + 1) * np.uint64(_GOLDEN))
    return float(x >> np.uint64(11)) * 2.0**-53
