"""Which shards an epoch needs when: pure arithmetic over its order."""

from __future__ import annotations

import dataclasses

import numpy as np

from .pictures import I64


@dataclasses.dataclass(frozen=True)
class Needs:
    """From where to where in an epoch each shard is needed: places of its first and of its last sample in the order."""

    first: I64  # [shards]; the epoch's length for a shard without samples
    last: I64  # [shards]; -1 for a shard without samples
    by_need: I64  # [shards] shard numbers by their first place

    @classmethod
    def of(cls, order: I64, first_samples: I64) -> Needs:
        """``order`` int64 [n]: samples as an epoch visits them. ``first_samples`` int64 [shards], ascending."""
        shard = np.searchsorted(first_samples, order, side="right") - 1
        places = np.arange(len(order), dtype=np.int64)
        first = np.full(len(first_samples), len(order), np.int64)
        first[shard[::-1]] = places[::-1]  # of several, the last that is written stays
        last = np.full(len(first_samples), -1, np.int64)
        last[shard] = places
        return cls(first=first, last=last, by_need=np.argsort(first, kind="stable").astype(np.int64))

    def between(self, begin: int, end: int) -> list[int]:
        """Shards that are in use somewhere from ``begin`` to ``end`` (excluded), soonest needed first."""
        used = (self.first < end) & (self.last >= begin)
        numbers: list[int] = self.by_need[used[self.by_need]].tolist()
        return numbers

    def after(self, end: int, count: int) -> list[int]:
        """The next ``count`` shards at most that are needed from ``end`` on and not before."""
        start = int(np.searchsorted(self.first[self.by_need], end))
        later = self.by_need[start : start + count]
        numbers: list[int] = later[self.last[later] >= 0].tolist()
        return numbers

    def most_at_once(self, sizes: I64, stretch: int) -> int:
        """The most that is in use at once, of ``sizes`` [shards], within any ``stretch`` places of the order."""
        used = self.last >= 0
        moments = np.concatenate([self.first[used] - stretch + 1, self.last[used] + 1])
        change = np.concatenate([sizes[used], -sizes[used]])
        by_time = np.lexsort((change, moments))  # where one ends as another begins, it ends first
        return int(np.cumsum(change[by_time]).max())
