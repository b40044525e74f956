"""A remedy, applied: what was predicted against what comes out."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

from ..config import PipelineConfig
from ..host import available_cores
from ..loader import Loader
from ..prepare import JPEG_MODES
from ..source import Source, open_source
from .measure import take
from .nearby import Nearby
from .remedies import Candidate
from .report import Verified

_TURNS = 5
_PICTURES = 2048  # that are made anew, where there are so many: others than the prediction was made from


def try_out(
    config: PipelineConfig, candidates: tuple[Candidate, ...], supply: float, seconds: float, say: Callable[[str], None]
) -> Verified | None:
    """The first remedy that this tool can apply by itself; None where there is none.

    In turns with the way as it is, which gave ``supply`` images/s: a machine that has become slower meanwhile is no
    fault of the prediction.
    """
    first = next((one for one in candidates if one.workers or one.other), None)
    if not first:
        return None
    say(f"trying: {first.remedy.action}")
    if first.other in JPEG_MODES:
        with _some(config) as nearby:
            shards = nearby.made_anew(first.other, available_cores())
            how = f"on {len(shards):,} of your pictures, drawn anew, in turns with the way as it is"
            near = dataclasses.replace(config, shuffle="global")
            return _verified(first, supply, (near, nearby.as_they_are()), (near, shards), seconds, how)
    changes: dict[str, Any] = {"workers": first.workers} if first.workers else {"backend": first.other}
    applied = dataclasses.replace(config, **changes)
    how = "on all of your pictures, in turns with the way as it is"
    return _verified(first, supply, (config, None), (applied, None), seconds, how)


def _some(config: PipelineConfig) -> Nearby:
    source = open_source(config)
    try:
        return Nearby(source, _PICTURES, seed=1)
    finally:
        source.close()


def _verified(
    candidate: Candidate,
    supply: float,
    usual: tuple[PipelineConfig, Source | None],
    applied: tuple[PipelineConfig, Source | None],
    seconds: float,
    how: str,
) -> Verified:
    with Loader(usual[0], source=usual[1]) as before, Loader(applied[0], source=applied[1]) as after:
        turns = [
            [take(loader, seconds / _TURNS / 2, windows=1).images_per_s for loader in (before, after)]
            for _ in range(_TURNS)
        ]
    faster = statistics.median(there / here for here, there in turns)
    measured = supply * faster
    predicted = candidate.remedy.predicted_images_per_s
    return Verified(
        action=candidate.remedy.action,
        predicted_images_per_s=predicted,
        measured_images_per_s=measured,
        error=predicted / measured - 1,
        how=how,
    )
