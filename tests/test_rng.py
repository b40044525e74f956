from __future__ import annotations

import numpy as np

from pipeline.rng import random_bits, random_uniform

MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """SplitMix64's finaliser in Python's integers: the independent reference."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def reference_bits(seed: int, epoch: int, stream: int, index: int) -> int:
    golden, key = 0x9E3779B97F4A7C15, 0
    for part in (stream, seed, epoch):
        key = mix((key + golden * (part + 1)) & MASK)
    return mix((key + (index + 1) * golden) & MASK)


def test_equals_integer_arithmetic() -> None:
    indices = np.array([0, 1, 2, 1_281_166, 2**40], np.int64)
    for seed, epoch, stream in ((0, 0, 1), (49, 239, 2), (2**31, 3, 1)):
        got = random_bits(seed, epoch, stream, indices).tolist()
        assert got == [reference_bits(seed, epoch, stream, i) for i in indices.tolist()]


def test_a_number_does_not_depend_on_the_company_it_is_drawn_in() -> None:
    everything = random_uniform(7, 3, 2, np.arange(1000), 23)
    some = np.array([999, 5, 500])
    assert np.array_equal(random_uniform(7, 3, 2, some, 23), everything[some])
    assert np.array_equal(random_uniform(7, 3, 2, some, 5), everything[some][:, :5])


def test_uniform_and_uncorrelated() -> None:
    n = 100_000
    u = random_uniform(1, 2, 2, np.arange(n), 4)
    assert u.min() >= 0
    assert u.max() < 1
    for draw in range(4):
        counts, _ = np.histogram(u[:, draw], bins=100, range=(0, 1))
        chi2 = ((counts - n / 100) ** 2 / (n / 100)).sum()
        assert 50 < chi2 < 170  # 99 degrees of freedom: mean 99, standard deviation 14
    corners = np.corrcoef(np.concatenate((u[:-1].T, u[1:].T)))
    assert np.abs(corners - np.eye(8)).max() < 5 / np.sqrt(n)


def test_seeds_epochs_and_streams_differ() -> None:
    indices = np.arange(2000)
    keys = [(s, e, k) for s in range(4) for e in range(4) for k in (1, 2)]
    drawn = {bits for key in keys for bits in random_bits(*key, indices).tolist()}
    assert len(drawn) == len(keys) * len(indices)
