"""The pictures of one task: their sizes and labels at once, their bytes when it is known which part is wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .crop_jpeg import Excerpt
from .watch import ALL, UNWATCHED, Watch

I64 = npt.NDArray[np.int64]


class Pictures(ABC):
    """N pictures of a source.

    ``read_whole`` has the rows of those of which every byte was read; ``damaged`` says what was wrong with a picture
    that could be decoded nevertheless, by row; ``replaced`` what was wrong with one that could not, by the row where
    another is in its place. ``begin`` is to be called with each row before its picture is read, ``lap`` behind each
    stage of it.
    """

    def __init__(self, indices: I64, *, widths: I64, heights: I64, labels: I64, watch: Watch = UNWATCHED):
        self._indices: list[int] = indices.tolist()  # the samples' numbers
        self.widths = widths  # int64 [N], pixels
        self.heights = heights
        self.labels = labels
        self.read_whole: set[int] = set()
        self.damaged: dict[int, str] = {}
        self.replaced: dict[int, str] = {}
        self._watch = watch

    def begin(self, row: int) -> None:
        """Note that a picture is read or decoded from now on."""
        self._watch.begin(self._indices[row])

    def lap(self, stage: int, row: int | None = None) -> None:
        """Note that a stage of one picture, or of all of them, ends here."""
        self._watch.lap(stage, ALL if row is None else self._indices[row])

    @abstractmethod
    def excerpt(self, row: int, region: Sequence[int]) -> Excerpt:
        """A picture that holds ``region`` (x, y, width, height) of a picture. Raises DataError where it cannot be read.

        The smallest that the source can give, and never one that decodes to other pixels than the whole does.
        """

    @abstractmethod
    def whole(self, row: int) -> Excerpt:
        """All bytes of a picture. Raises DataError where they cannot be read."""
