"""One tar of shards, with its .idx: from the plan of what belongs into it to what became of it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import DataError
from .files import atomic_write, printable
from .folder import Folder
from .idx import idx_line, idx_name, idx_text
from .manifest import ShardInfo
from .outcome import Outcome, read_outcome, write_outcome
from .plan import ShardPlan
from .prepare import LISTED, Prepared, Recode, prepare
from .scan import scan_shard
from .shards import BLOCK, RECORD


class HashedFile:
    """A file that is being written: counts and hashes what passes."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def member(self, name: str, data: bytes) -> int:
        """Append one file to the tar; returns where its data begins. No time, no owner: the same bytes every time."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o444
        self.write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.bytes
        self.write(data + bytes(-len(data) % BLOCK))
        return offset

    def sha256(self) -> str:
        return self._hash.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What becomes of pictures with something wrong."""

    on_error: str  # fail or skip
    on_warning: str  # keep, skip or fail

    def __str__(self) -> str:
        return f"on_error {self.on_error}, on_warning {self.on_warning}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """Writes the shards of one split; called once for each, in any process."""

    folder: Folder
    source: str  # pictures are named relative to it
    destination: Path
    jpeg: str
    recode: Recode
    policy: Policy
    run: str  # the token of this run
    before: dict[str, Outcome] | None  # to be resumed: what a finished folder's manifest says; None: begin anew

    def __call__(self, plan: ShardPlan, count: Callable[[], None]) -> Outcome:
        """Write one tar and its .idx, or find them already written. ``count`` is called for each picture."""
        outcome = self._already_written(plan)
        if outcome is not None:
            for _ in plan.keys:
                count()
        else:
            try:
                outcome = self._write(plan, count)
            except _DamagedError as error:
                outcome = Outcome(
                    run=self.run,
                    plan=plan.digest,
                    policy=str(self.policy),
                    info=None,
                    records=np.empty(0, RECORD),
                    lines={},
                    counts={},
                    damaged=error.args[0],
                )
        write_outcome(self.destination, plan.name, outcome)
        return outcome

    def _write(self, plan: ShardPlan, count: Callable[[], None]) -> Outcome:
        records = np.zeros(len(plan.samples), RECORD)
        idx: list[str] = []
        lines: dict[str, list[str]] = {}
        counts: dict[str, int] = {}
        damaged: list[str] = []
        with atomic_write(self.destination / plan.name) as file:
            tar = HashedFile(file)
            for sample, key in zip(plan.samples.tolist(), plan.keys, strict=True):
                count()
                name = printable(os.path.relpath(os.path.join(self.folder.root, self.folder.name(sample)), self.source))
                try:
                    picture = self._prepare(sample)
                except DataError as error:
                    damaged.append(f"{name}: {error}")
                    continue
                except _SkippedError as error:
                    lines.setdefault("skipped", []).append(f"{name}: {error}")
                    continue
                for remark in picture.remarks:
                    if remark.kind in LISTED:
                        lines.setdefault(remark.kind, []).append(f"{name}: {remark.text}")
                    else:
                        counts[remark.kind] = counts.get(remark.kind, 0) + 1
                label = int(self.folder.labels[sample])
                at = tar.member(f"{key}.jpg", picture.data)
                label_text = str(label).encode()
                label_at = tar.member(f"{key}.cls", label_text)
                size = len(picture.data)
                records[len(idx)] = (at, size, label, picture.width, picture.height, picture.header, picture.crc)
                idx.append(idx_line(key, at, size, label_at, len(label_text)))
            if damaged:
                raise _DamagedError(damaged)
            tar.write(bytes(2 * BLOCK))  # the end of a tar
        self._write_idx(plan, idx)
        return Outcome(
            run=self.run,
            plan=plan.digest,
            policy=str(self.policy),
            info=ShardInfo(name=plan.name, samples=len(idx), bytes=tar.bytes, sha256=tar.sha256()),
            records=records[: len(idx)],
            lines=lines,
            counts=counts,
        )

    def _prepare(self, sample: int) -> Prepared:
        """Raises DataError for a picture that ends the run, _SkippedError for one that is left out."""
        try:
            picture = prepare(self.jpeg, self.folder.read(sample), self.recode)
        except DataError as error:
            if self.policy.on_error == "skip":
                raise _SkippedError(error) from error
            raise
        warned = next(
            (f"it decodes with a warning: {text}" for kind, text in picture.remarks if kind == "warnings"), ""
        )
        if warned and self.policy.on_warning == "skip":
            raise _SkippedError(warned)
        if warned and self.policy.on_warning == "fail":
            raise DataError(warned)
        return picture

    def _write_idx(self, plan: ShardPlan, lines: list[str]) -> None:
        with atomic_write(self.destination / idx_name(plan.name)) as file:
            file.write(idx_text(lines).encode())

    def _already_written(self, plan: ShardPlan) -> Outcome | None:
        """The shard as an earlier run left it, where it holds just what the plan and the policy say."""
        if self.before is None:
            return None
        outcome = read_outcome(self.destination, plan.name)
        if outcome is None or outcome.info is None:
            outcome = self.before.get(plan.name)
        if outcome is None or outcome.plan != plan.digest:
            return None
        if outcome.policy != str(self.policy) and ("skipped" in outcome.lines or "warnings" in outcome.lines):
            return None
        try:
            scanned = scan_shard(self.destination / plan.name)
        except DataError:
            return None
        if scanned.info != outcome.info:
            return None  # it has changed since
        self._write_idx(plan, scanned.idx)
        return dataclasses.replace(outcome, run=self.run, policy=str(self.policy), records=scanned.records)


class _DamagedError(Exception):
    """The pictures of a shard that cannot be used, a line each."""


class _SkippedError(Exception):
    """Why a picture is left out."""
