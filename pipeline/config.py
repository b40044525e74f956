"""What a loader is built from. Checked here, once; nothing behind it checks again."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from .errors import ConfigError
from .place import Place, is_url, parse_place

SHUFFLES = ("auto", "global", "block")
EVAL_RESIZE = 342 / 299  # the recipe's evaluation: short side 342, central square 299


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """One split of one data set as batches. Raises ConfigError, naming the field, for what makes no sense.

    ``shards`` or ``data`` says where the pictures are. ``split="train"`` shuffles and crops at random; any other
    split is in index order with the evaluation transform.
    """

    shards: str | os.PathLike[str] | None = None  # a folder of shards, its URL, or some of its tars
    data: str | os.PathLike[str] | None = None  # an ImageNet folder, or a folder of shards
    split: str = "train"
    batch_size: int = 64  # of this rank
    image_size: int = 299  # pixels, square
    sizes: tuple[
        tuple[int, int], ...
    ] = ()  # training: (epoch, pixels): from which epoch on another size; () always one
    resize_size: int | None = None  # evaluation: short side before the central crop; None: image_size * 342 / 299
    seed: int = 0
    shuffle: str = "auto"  # training: global, block (samples of a few shards at a time), auto: what suits the source
    shuffle_window: int = 32  # block: how many shards are mixed
    rank: int = 0
    world_size: int = 1
    backend: str = "auto"  # auto, pillow or dali
    workers: int | Literal["auto"] = "auto"  # cores that decode; auto: all but one of those this process may use
    slots: int = 4  # host batches that exist at once: one in use, the others being filled
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the picture's area in a training crop
    flip: bool = True  # mirror half of the training crops
    on_error: Literal["fail", "replace"] = "fail"  # of a picture that cannot be decoded: the next sample replaces it
    watchdog_s: float = 120.0  # a worker that is at one picture for longer, while the loader waits, is ended
    verify_shards: bool = False  # read all shards through, and compare their hashes, before the first batch
    cache_dir: str | os.PathLike[str] | None = None  # of shards from a URL; None: ~/.cache/headrace
    cache_gb: float = 100.0  # 10^9 bytes that the cache may take, for all URLs and all processes of the machine

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.data is None):
            raise ConfigError("give shards (a folder of shards) or data (an ImageNet folder), one of the two")
        _one_of("shuffle", self.shuffle, SHUFFLES)
        _one_of("on_error", self.on_error, ("fail", "replace"))
        for name in ("watchdog_s", "cache_gb"):
            _above_zero(name, getattr(self, name))
        for name in ("batch_size", "image_size", "world_size", "shuffle_window"):
            _at_least(name, getattr(self, name), 1)
        _at_least("seed", self.seed, 0)
        _at_least("slots", self.slots, 2)
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must be in [0, {self.world_size - 1}], was {self.rank}")
        if self.workers != "auto":
            _at_least("workers", self.workers, 1)
        epochs = [epoch for epoch, _ in self.sizes]
        if self.sizes and (epochs[0] != 0 or epochs != sorted(set(epochs)) or min(size for _, size in self.sizes) < 1):
            raise ConfigError(f"sizes must be (epoch, pixels) from epoch 0 on, epochs rising, was {self.sizes}")
        if self.resize_size is not None:
            _at_least("resize_size", self.resize_size, self.image_size)
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale must be 0 < low <= high <= 1, was {self.crop_scale}")

    @property
    def training(self) -> bool:
        """Whether the split is shuffled and cropped at random."""
        return self.split == "train"

    def size_at(self, epoch: int) -> int:
        """Pixels of the pictures of ``epoch``. Which part of a picture is cut out does not hang on it."""
        if not (self.training and self.sizes):
            return self.image_size
        return max((first, size) for first, size in self.sizes if first <= epoch)[1]

    @property
    def largest_size(self) -> int:
        """The pixels of the largest pictures of any epoch."""
        return max(size for _, size in self.sizes) if self.training and self.sizes else self.image_size

    @property
    def place(self) -> Place:
        """Where the pictures are, and which tars of it. Raises ConfigError for a pattern that makes no sense."""
        where = self.shards if self.shards is not None else self.data
        assert where is not None
        return parse_place(where) if self.shards is not None or is_url(where) else Place(os.fspath(where))

    @property
    def root(self) -> Path:
        """Where the pictures are, on this machine's disks."""
        assert not self.place.remote
        return Path(self.place.root)

    @property
    def cache_root(self) -> Path:
        """The folder for what comes from URLs."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"

    @property
    def cache_bytes(self) -> int:
        """How much it may hold."""
        return int(self.cache_gb * 1e9)

    @property
    def eval_resize(self) -> int:
        """Evaluation: the short side before the central crop, in pixels."""
        return self.resize_size or max(self.image_size, round(self.image_size * EVAL_RESIZE))


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be {', '.join(choices)}, was {value!r}")


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be above 0, was {value}")


def _at_least(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name} must be a whole number of at least {low}, was {value!r}")
