"""Pictures that change their size with the epoch: each epoch's are those of a loader that has but that size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import ConfigError, PipelineConfig, build_loader

SIZES = ((0, 96), (1, 75), (2, 130))
Batches = dict[int, list[tuple[torch.Tensor, torch.Tensor]]]


def batches(epochs: int, state: dict[str, Any] | None = None, **how: Any) -> Batches:
    """Of each epoch: pictures and their numbers."""
    found: Batches = {}
    with build_loader(PipelineConfig(batch_size=8, **how)) as loader:
        if state:
            loader.load_state_dict(state)
        while len(found) < epochs:
            for batch in loader:
                found.setdefault(batch.epoch, []).append((batch.images.clone(), batch.indices.clone()))
    return found


def same(mine: Batches, theirs: Batches, epoch: int) -> None:
    assert len(mine[epoch]) == len(theirs[epoch])
    for (images, indices), (want, numbers) in zip(mine[epoch], theirs[epoch], strict=True):
        assert torch.equal(indices, numbers)
        assert torch.equal(images, want)


@pytest.mark.parametrize(("backend", "workers"), [("pillow", 1), ("pillow", 2), ("dali", 1)])
def test_each_epoch_is_that_of_a_loader_of_its_size(shards: Path, backend: str, workers: int) -> None:
    """The ring holds batches of two sizes where an epoch ends, and all three pass through the same slots."""
    common: dict[str, Any] = {"shards": shards, "backend": backend}
    mine = batches(3, sizes=SIZES, image_size=107, workers=workers, **common)
    for epoch, size in SIZES:
        assert {images.shape[1:] for images, _ in mine[epoch]} == {(size, size, 3)}
        same(mine, batches(3, image_size=size, workers=1, **common), epoch)


def test_a_position_is_of_any_sizes(shards: Path) -> None:
    """Two batches before the end of an epoch, with the next one's size behind it."""
    with build_loader(PipelineConfig(shards=shards, batch_size=8, image_size=75, workers=1)) as loader:
        state = loader.state_dict() | {"epoch": 0, "position": 32}
    late = batches(2, state, shards=shards, sizes=SIZES, workers=1)
    whole = batches(2, shards=shards, sizes=SIZES, workers=1)
    assert len(late[0]) == 2
    same(late, {0: whole[0][-2:], 1: whole[1]}, 0)
    same(late, {0: whole[0][-2:], 1: whole[1]}, 1)


def test_scoring_has_one_size(shards: Path) -> None:
    assert batches(1, shards=shards, split="val", sizes=SIZES, image_size=75, workers=1)[0][0][0].shape[1] == 75


@pytest.mark.parametrize("sizes", [((1, 75),), ((0, 75), (0, 96)), ((0, 75), (2, 96), (1, 107)), ((0, 0),)])
def test_sizes_that_make_no_sense_are_refused(sizes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ConfigError, match=r"sizes must be \(epoch, pixels\) from epoch 0 on, epochs rising, was"):
        PipelineConfig(shards="x", sizes=sizes)
