"""A remedy, applied: what was predicted against what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..config import PipelineConfig
from ..host import available_cores
from ..loader import Loader
from ..prepare import JPEG_MODES
from ..source import Source, open_source
from .measure import take
from .nearby import Nearby
from .remedies import Candidate
from .report import Verified

_PICTURES = 2048  # that are made anew, where there are so many: others than the prediction was made from


def try_out(
    config: PipelineConfig, candidates: tuple[Candidate, ...], seconds: float, say: Callable[[str], None]
) -> Verified | None:
    """The first remedy that this tool can apply by itself; None where there is none."""
    first = next((one for one in candidates if one.workers or one.other), None)
    if not first:
        return None
    say(f"trying: {first.remedy.action}")
    if first.other in JPEG_MODES:
        with _some(config) as nearby:
            shards = nearby.made_anew(first.other, available_cores())
            how = f"on {len(shards):,} of your pictures, drawn anew"
            return _verified(first, dataclasses.replace(config, shuffle="global"), shards, seconds, how)
    changes = {"workers": first.workers} if first.workers else {"backend": first.other}
    return _verified(first, dataclasses.replace(config, **changes), None, seconds, "on all of your pictures")


def _some(config: PipelineConfig) -> Nearby:
    source = open_source(config)
    try:
        return Nearby(source, _PICTURES, seed=1)
    finally:
        source.close()


def _verified(
    candidate: Candidate, config: PipelineConfig, source: Source | None, seconds: float, how: str
) -> Verified:
    with Loader(config, source=source) as loader:
        measured = take(loader, seconds).images_per_s
    predicted = candidate.remedy.predicted_images_per_s
    return Verified(
        action=candidate.remedy.action,
        predicted_images_per_s=predicted,
        measured_images_per_s=measured,
        error=predicted / measured - 1,
        how=how,
    )
