"""What became of one shard: its place in the manifest, its part of the index, and what is to be said of its pictures.

While a folder is being made, each shard's outcome lies beside it in a small file, ``.train-000003.json``. It is written
when the tar is whole, so it says that the tar is, and it holds what the tar does not: what was left out and what was
done to the pictures. A run that is resumed reads it, and so does rank 0 to collect what the others have written. The
finished manifest holds all of them together.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .files import atomic_write
from .manifest import Manifest, ShardInfo
from .prepare import COUNTED, LISTED
from .shards import RECORD

_LINES = (*LISTED, "skipped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One shard, written or, where ``damaged`` says why, not."""

    run: str  # who wrote or checked it: the token of one run of make_shards.py
    plan: str  # the digest of what belongs into it
    policy: str  # what was done with pictures with something wrong
    info: ShardInfo | None  # None: not written
    records: npt.NDArray[np.void]  # [samples] of RECORD
    lines: Mapping[str, Sequence[str]]  # by kind, a line for each picture that is named
    counts: Mapping[str, int]  # by kind
    damaged: Sequence[str] = ()  # a line for each picture that cannot be used


def outcome_path(destination: Path, shard: str) -> Path:
    """Where a shard's outcome lies."""
    return destination / f".{shard.removesuffix('.tar')}.json"


def write_outcome(destination: Path, shard: str, outcome: Outcome) -> None:
    """Put it beside its tar, atomically."""
    content = dataclasses.asdict(outcome) | {"records": base64.b64encode(outcome.records.tobytes()).decode()}
    with atomic_write(outcome_path(destination, shard)) as file:
        file.write(json.dumps(content).encode())


def read_outcome(destination: Path, shard: str) -> Outcome | None:
    """The outcome of a shard, or None where there is none yet."""
    try:
        content = json.loads(outcome_path(destination, shard).read_bytes())
        info = content.pop("info")
        records = np.frombuffer(base64.b64decode(content.pop("records")), RECORD)
        return Outcome(**content, info=ShardInfo(**info) if info else None, records=records)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """What the manifest says of all pictures together, and as ``by_shard`` how much of it is of which shard."""
    lines: dict[str, list[str]] = {}
    counts = dict.fromkeys(COUNTED, 0)
    by_shard: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        assert outcome.info
        for kind, some in outcome.lines.items():
            lines.setdefault(kind, []).extend(some)
        for kind, number in outcome.counts.items():
            counts[kind] += number
        numbers = {kind: len(some) for kind, some in outcome.lines.items()} | dict(outcome.counts)
        by_shard[outcome.info.name] = {"plan": outcome.plan, **dict(sorted(numbers.items()))}
    return counts | {kind: lines[kind] for kind in _LINES if kind in lines} | {"by_shard": by_shard}


def outcomes_of(manifest: Manifest) -> dict[str, Outcome]:
    """The outcomes of a finished folder, without their records, by shard: the inverse of ``summary``."""
    by_shard, taken = manifest.made.get("by_shard", {}), dict.fromkeys(_LINES, 0)
    policy = str(manifest.made.get("policy", ""))
    outcomes: dict[str, Outcome] = {}
    for info in (info for infos in manifest.splits.values() for info in infos):
        numbers = dict(by_shard.get(info.name, {}))
        plan = numbers.pop("plan", "")
        lines: dict[str, Sequence[str]] = {}
        for kind in _LINES:
            if number := numbers.pop(kind, 0):
                lines[kind] = manifest.made.get(kind, [])[taken[kind] : taken[kind] + number]
                taken[kind] += number
        outcomes[info.name] = Outcome(
            run="", plan=plan, policy=policy, info=info, records=np.empty(0, RECORD), lines=lines, counts=numbers
        )
    return outcomes
