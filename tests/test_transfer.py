from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import PipelineConfig, build_loader
from pipeline.device import DEVICES, find_device
from pipeline.transfer import Feed, normalise

KINDS = [kind for kind in DEVICES if kind != "sim"]
AVAILABLE = [kind for kind in KINDS if DEVICES[kind].load() is None]


def test_normalise_is_the_recipe() -> None:
    """ToTensor and Normalize(0.5, 0.5), for every value a byte can have."""
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, 3).contiguous()
    want = (images.permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.5
    got = normalise(images, torch.float32, torch.channels_last)
    assert got.dtype == torch.float32
    assert (got.double() - want).abs().max() < 1e-7
    assert got.min() == -1
    assert got.max() == 1


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_format(memory_format: torch.memory_format) -> None:
    images = normalise(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.bfloat16, memory_format)
    assert images.is_contiguous(memory_format=memory_format)
    assert images.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [2, 4])
def test_batches_arrive_whole_in_order_and_once(shards: Path, kind: str, slots: int) -> None:
    """Two epochs through the feed equal the loader's own, on every device there is."""
    if kind not in AVAILABLE:
        pytest.skip(f"no {kind} device here")
    device = find_device(kind)
    config = PipelineConfig(shards=shards, batch_size=8, image_size=64, workers=2, slots=slots)
    with build_loader(config) as loader:
        want = [(b.images.clone(), b.labels.clone()) for _ in range(2) for b in loader]
    with build_loader(config) as loader:
        feed = Feed(loader, device)
        assert len(feed) == 6
        got = [batch for _ in range(2) for batch in feed]
        feed.close()
    assert len(got) == len(want)
    for batch, (images, labels) in zip(got, want, strict=True):
        expected = normalise(images, torch.float32, torch.contiguous_format)
        assert np.array_equal(batch.images.cpu().numpy(), expected.numpy())
        assert torch.equal(batch.labels.cpu(), labels)
        assert batch.images.is_contiguous(memory_format=device.memory_format)
