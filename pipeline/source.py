"""Where samples come from: the one thing that shards and folders have in common."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .config import PipelineConfig
from .folder import folder_classes, folder_splits, open_folder
from .shards import open_shards

I64 = npt.NDArray[np.int64]


class Source(Protocol):
    """n samples, numbered 0 ... n-1, each read on its own."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> I64: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...

    def sizes(self, indices: I64, pictures: list[bytes]) -> tuple[I64, I64]: ...


def open_source(config: PipelineConfig) -> Source:
    """Open what the config names. Raises ConfigError or DataError."""
    if config.shards is not None:
        return open_shards(config.root, config.split)
    paths = folder_splits(config.root)
    chosen = folder_splits(config.root, (config.split,))
    return open_folder(chosen[config.split], folder_classes(paths))
