"""Cards only: what no other device can show."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest
import torch

from pipeline import PipelineConfig, build_loader
from pipeline.device import find_device
from pipeline.idle import IdleTime
from pipeline.transfer import Feed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no cuda device here")


def test_cuda_nonblocking(shards: Path) -> None:
    """The ring is pinned, and handing out a batch does not wait for the step before."""
    config = PipelineConfig(shards=shards, batch_size=8, image_size=64, workers=2)
    with build_loader(config) as loader, warnings.catch_warnings():
        warnings.simplefilter("error")
        feed = Feed(loader, find_device("cuda"))
        assert torch.from_numpy(loader.ring.memory).is_pinned()
        batches = iter(feed)
        next(batches)
        torch.cuda.synchronize()
        torch.cuda._sleep(2_000_000_000)  # type: ignore[no-untyped-call]  # about a second of work
        start = time.perf_counter()
        next(batches)
        assert not torch.cuda.current_stream().query(), "the step before should still be running"
        assert time.perf_counter() - start < 0.5
        torch.cuda.synchronize()
        feed.close()


def test_a_card_that_computes_does_not_stall() -> None:
    """A host that waits 50 ms costs the card nothing where it has more work than that, and 50 ms where it has none."""
    device = find_device("cuda")
    stalls_s = []
    for cycles in (2_000_000_000, 0):  # about a second
        idle = IdleTime(device)
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
        idle.begin()
        time.sleep(0.05)
        idle.end()
        torch.cuda.synchronize()
        stalls_s.append(idle.total_s())
    assert stalls_s[0] < 0.05 <= stalls_s[1]


def test_a_slot_is_not_refilled_before_its_copy(shards: Path) -> None:
    """Copies are held up on purpose; a slot that was refilled too early would show as another batch's pixels."""
    config = PipelineConfig(shards=shards, batch_size=8, image_size=64, workers=2, slots=2)
    with build_loader(config) as loader:
        want = [b.images.clone() for b in loader]
    with build_loader(config) as loader:
        feed = Feed(loader, find_device("cuda"))
        assert feed._stream is not None
        with torch.cuda.stream(feed._stream):
            torch.cuda._sleep(1_000_000_000)  # type: ignore[no-untyped-call]
        got = [((b.images.float() * 127.5) + 127.5).round().to(torch.uint8).cpu() for b in feed]
        feed.close()
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine.permute(0, 2, 3, 1), theirs)
