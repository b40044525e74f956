from __future__ import annotations

import numpy as np
import pytest

from pipeline.order import batch_indices, epoch_order


@pytest.mark.parametrize("n", [1, 2, 17, 1000])
def test_a_shuffle_is_a_permutation(n: int) -> None:
    order = epoch_order(n, seed=3, epoch=5, shuffle=True)
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    orders = {(s, e): epoch_order(500, seed=s, epoch=e, shuffle=True).tobytes() for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert orders[1, 2] == epoch_order(500, seed=1, epoch=2, shuffle=True).tobytes()


def test_the_shuffle_leaves_no_sample_near_its_place() -> None:
    """The mean distance of a sample from its place is a third of n for a uniform permutation."""
    n = 20_000
    order = epoch_order(n, seed=0, epoch=0, shuffle=True)
    assert abs(np.abs(order - np.arange(n)).mean() / n - 1 / 3) < 0.01
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize(("n", "global_batch"), [(100, 12), (97, 12), (5, 12), (24, 12), (25, 24)])
def test_global_batches_are_the_same_sets_for_any_number_of_ranks(n: int, global_batch: int) -> None:
    order = epoch_order(n, seed=1, epoch=1, shuffle=True)
    for world_size in (1, 2, 3, 4, 6, 12):
        seen: list[int] = []
        for start in range(0, n, global_batch):
            shares = [
                batch_indices(order, start, batch_size=global_batch // world_size, rank=r, world_size=world_size)
                for r in range(world_size)
            ]
            sizes = [len(share) for share in shares]
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= global_batch // world_size
            batch = np.concatenate(shares)
            assert batch.tolist() == order[start : start + global_batch].tolist()
            seen += batch.tolist()
        assert sorted(seen) == list(range(n))
