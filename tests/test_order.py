from __future__ import annotations

import numpy as np
import pytest

from pipeline.order import Indices, batch_indices, block_order, epoch_order


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


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_n_pictures_are_scored_n_times_by_any_number_of_ranks_and_batch_size(world_size: int) -> None:
    for n in (*range(1, 40), 997):
        order = epoch_order(n, seed=0, epoch=0, shuffle=False)
        for batch_size in (1, 2, 3, 7, 16, 1000):
            scored = [
                i
                for start in range(0, n, batch_size * world_size)
                for rank in range(world_size)
                for i in batch_indices(order, start, batch_size=batch_size, rank=rank, world_size=world_size).tolist()
            ]
            assert scored == list(range(n))


def first_of(counts: list[int]) -> Indices:
    return np.cumsum([0, *counts[:-1]], dtype=np.int64)


@pytest.mark.parametrize("counts", [[1], [5], [3, 4, 3], [10] * 24, [100, 99, 100, 1]])
@pytest.mark.parametrize("window", [1, 2, 5, 1000])
def test_a_block_shuffle_is_a_permutation_of_few_shards_at_a_time(counts: list[int], window: int) -> None:
    n, first = sum(counts), first_of(counts)
    orders = [block_order(n, first, seed=s, epoch=e, window=window) for s in range(2) for e in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(n))
        shard = np.searchsorted(first, order, side="right") - 1
        places = [np.flatnonzero(shard == k) for k in range(len(counts))]
        begun = np.array([place[0] for place in places])
        done = np.array([place[-1] for place in places])
        open_at = [int(((begun <= at) & (at <= done)).sum()) for at in range(n)]
        assert max(open_at) <= window
    assert len({order.tobytes() for order in orders}) == (4 if n > 10 else len({order.tobytes() for order in orders}))


def test_a_block_shuffle_has_no_border_between_windows() -> None:
    """From beginning to end, about as many shards as the window holds are under way; half of it at the ends."""
    counts, window = [200] * 60, 12
    first = first_of(counts)
    shard = np.searchsorted(first, block_order(12_000, first, seed=1, epoch=0, window=window), side="right") - 1
    many = [len(set(shard[at : at + 300].tolist())) for at in range(0, 12_000, 300)]
    assert min(many[1:-1]) >= window - 3
    assert min(many) >= window // 2


def test_a_block_shuffle_over_all_shards_is_a_global_one() -> None:
    """A sample's distance from its place, and from the sample that was next to it, is that of a uniform permutation."""
    n = 20_000
    order = block_order(n, first_of([500] * 40), seed=0, epoch=0, window=80)
    assert abs(np.abs(order - np.arange(n)).mean() / n - 1 / 3) < 0.01
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(n)
