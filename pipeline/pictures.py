"""The pictures of one task: their sizes and labels at once, their bytes when it is known which part is wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .crop_jpeg import Excerpt

I64 = npt.NDArray[np.int64]
Begin = Callable[[int], None]  # told each row before its picture is read


def unwatched(number: int) -> None:
    """For whoever need not know what is begun."""


class Pictures(ABC):
    """N pictures of a source.

    ``read_whole`` has the rows of those of which every byte was read; ``damaged`` says what was wrong with a picture
    that could be decoded nevertheless, by row; ``replaced`` what was wrong with one that could not, by the row where
    another is in its place. ``begin`` is to be called with each row before its picture is read.
    """

    def __init__(self, *, widths: I64, heights: I64, labels: I64, begin: Begin = unwatched):
        self.widths = widths  # int64 [N], pixels
        self.heights = heights
        self.labels = labels
        self.read_whole: set[int] = set()
        self.damaged: dict[int, str] = {}
        self.replaced: dict[int, str] = {}
        self.begin = begin

    @abstractmethod
    def excerpt(self, row: int, region: Sequence[int]) -> Excerpt:
        """A picture that holds ``region`` (x, y, width, height) of a picture. Raises DataError where it cannot be read.

        The smallest that the source can give, and never one that decodes to other pixels than the whole does.
        """

    @abstractmethod
    def whole(self, row: int) -> Excerpt:
        """All bytes of a picture. Raises DataError where they cannot be read."""
