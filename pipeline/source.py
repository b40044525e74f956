"""Where samples come from: the one thing that shards and folders have in common."""

from __future__ import annotations

from typing import Protocol

from .config import PipelineConfig
from .folder import folder_classes, folder_splits, open_folder
from .host import available_cores
from .manifest import MANIFEST, read_manifest
from .pictures import I64, Pictures
from .shards import Shards, open_shards
from .verify import verify_shards
from .watch import UNWATCHED, Watch


class Source(Protocol):
    """n samples, numbered 0 ... n-1, each read on its own."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def crop_addressed(self) -> bool: ...

    @property
    def first(self) -> I64: ...  # number of each shard's first sample: what a block shuffle keeps together

    @property
    def fingerprint(self) -> str: ...  # the same for the same samples under the same numbers

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...

    def open(self, indices: I64, watch: Watch = UNWATCHED) -> Pictures: ...

    def close(self) -> None: ...


def open_source(config: PipelineConfig) -> Source:
    """Open what the config names on this machine's disks. Raises ConfigError or DataError."""
    if holds_shards(config):
        if config.verify_shards:
            verify_shards(read_manifest(config.root), config.split, available_cores())
        return open_shards(config.root, config.split, config.place.names)
    paths = folder_splits(config.root)
    chosen = folder_splits(config.root, (config.split,))
    return open_folder(chosen[config.split], folder_classes(paths))


def holds_shards(config: PipelineConfig) -> bool:
    """Whether the config names a folder of shards, be it as ``data``; else it is taken for an ImageNet folder."""
    return config.shards is not None or config.place.remote or (config.root / MANIFEST).exists()


def splits_of(config: PipelineConfig) -> tuple[str, ...]:
    """The splits that the data has. Raises ConfigError or DataError."""
    if config.place.remote:
        from .delivery import remote_splits  # decode processes, which import this file, have no use for it

        return remote_splits(config)
    if holds_shards(config):
        return tuple(read_manifest(config.root).splits)
    return tuple(folder_splits(config.root))


def slow_source_advice(source: Source) -> str | None:
    """One line where the pictures could be read faster, with what it costs to leave them as they are."""
    if isinstance(source, Shards) and not source.crop_addressed:
        return (
            f"the shards in {source.root} are not crop-addressed, so every picture is decoded whole: about 1.6 times "
            "the CPU time per picture. make_shards.py --jpeg crop makes them so, with the same pixels"
        )
    return None
