"""A source of which nothing is read, for workers that decode nothing: what is left is what moves batches about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..crop_jpeg import Excerpt
from ..pictures import I64, Pictures
from ..watch import UNWATCHED, Watch


class Unread:
    """So many pictures of one pixel. To be used with ``Loader(replay=True)``."""

    crop_addressed = False
    fingerprint = ""
    classes = ("",)
    first = np.zeros(1, np.int64)

    def __init__(self, samples: int):
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def name(self, index: int) -> str:
        return f"sample {index}"

    def read(self, index: int) -> bytes:
        raise AssertionError

    def open(self, indices: I64, watch: Watch = UNWATCHED) -> Pictures:
        return _Pixels(indices, watch)

    def close(self) -> None:
        """Nothing is held."""


class _Pixels(Pictures):
    def __init__(self, indices: I64, watch: Watch):
        ones = np.ones(len(indices), np.int64)
        super().__init__(indices, widths=ones, heights=ones, labels=np.zeros_like(ones), watch=watch)

    def excerpt(self, row: int, region: Sequence[int]) -> Excerpt:
        raise AssertionError

    def whole(self, row: int) -> Excerpt:
        raise AssertionError
