"""Folder -> shards: who writes which, and the indexes and the manifest at the end.

What is written depends on the pictures, the seed and the shard size alone: any number of workers, and a run that was
interrupted and resumed, give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import __version__
from .console import Progress
from .errors import ConfigError, DataError
from .files import atomic_write, partial_name
from .folder import Folder, folder_classes, folder_splits, open_folder
from .idx import idx_name
from .manifest import MANIFEST, Manifest, index_name, read_manifest, write_manifest
from .outcome import Outcome, outcome_path, outcomes_of, read_outcome, summary
from .plan import ShardPlan, plan_shards
from .prepare import JPEG_MODES, Recode
from .processes import map_in_processes
from .rendezvous import Rendezvous
from .shard_writer import HashedFile, Policy, ShardWriter
from .shards import MAX_SIDE
from .transcoder import compile_kernels

MIN_MAX_SIDE = 16
_MAKING = ".making.json"  # how an unfinished folder is being made: a run that resumes it must agree


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """How shards are made. The fields are the flags of tools/make_shards.py."""

    source: Path
    destination: Path
    splits: tuple[str, ...] | None = None  # None: those that the folder has
    jpeg: str = "crop"
    max_side: int = 400  # recode: pixels
    quality: int = 90  # recode
    shard_mb: float = 128.0
    workers: int = 1
    on_error: str = "fail"
    on_warning: str = "keep"
    seed: int = 0
    resume: bool = False
    rank: int = 0  # several machines: this one writes the shards whose number leaves its rank, divided by world_size
    world_size: int = 1

    @property
    def policy(self) -> Policy:
        return Policy(on_error=self.on_error, on_warning=self.on_warning)

    def __post_init__(self) -> None:
        if self.jpeg not in JPEG_MODES:
            raise ConfigError(f"--jpeg must be {' or '.join(JPEG_MODES)}, was {self.jpeg!r}")
        if not MIN_MAX_SIDE <= self.max_side <= MAX_SIDE:
            raise ConfigError(f"--max-side must be in [{MIN_MAX_SIDE}, {MAX_SIDE}], was {self.max_side}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"--quality must be in [1, 100], was {self.quality}")
        if not self.shard_mb > 0:
            raise ConfigError(f"--shard-mb must be above 0, was {self.shard_mb}")
        if self.workers < 1:
            raise ConfigError(f"--workers must be at least 1, was {self.workers}")
        if self.on_error not in ("fail", "skip"):
            raise ConfigError(f"--on-error must be fail or skip, was {self.on_error!r}")
        if self.on_warning not in ("keep", "skip", "fail"):
            raise ConfigError(f"--on-warning must be keep, skip or fail, was {self.on_warning!r}")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"RANK must be in [0, WORLD_SIZE - 1 = {self.world_size - 1}], was {self.rank}")
        if self.seed < 0:
            raise ConfigError(f"--seed must be at least 0, was {self.seed}")


def write_shards(config: WriterConfig) -> tuple[Manifest, list[str]]:
    """Make the folder of shards; returns its manifest and a line for each picture that was skipped.

    With a ``world_size``, each rank writes its shards; rank 0 waits for all and completes the folder, the others
    return when theirs are written, with a manifest of those. Raises ConfigError for a wrong call, DataError for damaged
    pictures with ``on_error="fail"``: all of them are named, and no manifest is written.
    """
    paths = folder_splits(config.source, config.splits)
    made: dict[str, object] = {
        "by": f"headrace {__version__}",
        "splits": list(paths),
        "jpeg": config.jpeg,
        "seed": config.seed,
        "shard_mb": config.shard_mb,
    }
    if config.jpeg == "recode":
        made |= {"max_side": config.max_side, "quality": config.quality}
    before = _look_at(config, made)
    ranks = Rendezvous(folder=config.destination, rank=config.rank, world_size=config.world_size)
    run = ranks.meet()
    try:
        classes = folder_classes(paths)
        folders = {split: open_folder(path, classes) for split, path in paths.items()}
        if config.rank == 0:
            with atomic_write(config.destination / _MAKING) as file:
                file.write(json.dumps(made).encode())
        if config.jpeg != "verbatim":
            compile_kernels()  # once, before every worker would
        split_plans = {
            split: plan_shards(folder, split, seed=config.seed, shard_bytes=config.shard_mb * 1e6)
            for split, folder in folders.items()
        }
        outcomes: dict[str, list[Outcome]] = {}
        for split, plans in split_plans.items():
            mine = plans[config.rank :: config.world_size]
            outcomes[split] = _write_split(config, split, folders[split], mine, before, ranks, run)
        ranks.finish(run)
        if config.rank == 0 and config.world_size > 1:
            outcomes = {split: list(_collect(config, plans, ranks, run)) for split, plans in split_plans.items()}
    except BaseException as error:
        ranks.fail(run, error)
        raise
    _refuse_damaged([line for some in outcomes.values() for outcome in some for line in outcome.damaged])
    made |= {"policy": str(config.policy)} | summary(outcome for some in outcomes.values() for outcome in some)
    if config.jpeg != "verbatim":
        made["not_crop_addressed"] = sum(
            int((outcome.records["header"] == 0).sum()) for some in outcomes.values() for outcome in some
        )
    manifest = Manifest(
        root=config.destination,
        classes=classes,
        splits={split: tuple(o.info for o in some if o.info) for split, some in outcomes.items()},
        index_sha256={},
        made=made,
    )
    if config.rank == 0:
        _complete(manifest, outcomes)
        ranks.leave()
    return manifest, list(manifest.made.get("skipped", []))


def _refuse_damaged(damaged: list[str]) -> None:
    if damaged:
        listed = "\n  ".join(damaged)
        raise DataError(
            f"{len(damaged)} damaged picture{'s' if len(damaged) > 1 else ''}; mend or remove them and go on with "
            f"--resume, or leave them out with --resume --on-error skip:\n  {listed}"
        )


def _write_split(
    config: WriterConfig,
    split: str,
    folder: Folder,
    plans: list[ShardPlan],
    before: dict[str, Outcome] | None,
    ranks: Rendezvous,
    run: str,
) -> list[Outcome]:
    """Write a split's shards, of which some pictures may be damaged. Raises what else goes wrong, and cleans up."""
    writer = ShardWriter(
        folder=folder,
        source=str(config.source),
        destination=config.destination,
        jpeg=config.jpeg,
        recode=Recode(max_side=config.max_side, quality=config.quality),
        policy=config.policy,
        run=run,
        before=before,
    )
    outcomes: list[Outcome] = []
    label = split if config.world_size == 1 else f"{split}, rank {config.rank}"
    with Progress(label, sum(len(plan.keys) for plan in plans), "pictures") as progress:

        def update(done: int) -> None:
            progress.update(done)
            ranks.check(run)

        try:
            for result in map_in_processes(writer, plans, workers=config.workers, progress=update):
                if isinstance(result, Exception):
                    raise result
                outcomes.append(result)
        except BaseException:
            for plan in plans:  # what a worker was at when it was ended
                for name in (plan.name, idx_name(plan.name), outcome_path(config.destination, plan.name).name):
                    partial_name(config.destination / name).unlink(missing_ok=True)
            raise
    return outcomes


def _collect(config: WriterConfig, plans: list[ShardPlan], ranks: Rendezvous, run: str) -> Iterator[Outcome]:
    """The outcomes of all ranks, in order; waits for those that are still at it."""
    for number, plan in enumerate(plans):
        rank = number % config.world_size
        found: list[Outcome] = []

        def is_there(name: str = plan.name, found: list[Outcome] = found) -> bool:
            outcome = read_outcome(config.destination, name)
            if outcome is None or outcome.run != run:
                return False
            found.append(outcome)
            return True

        ranks.wait_for(run, rank, is_there, f"{plan.name} ({number} of {len(plans)} are there)")
        if found[0].plan != plan.digest:
            raise DataError(f"rank {rank} has other pictures in {plan.name} than rank 0: does it see the same SRC?")
        yield found[0]


def _complete(manifest: Manifest, outcomes: dict[str, list[Outcome]]) -> None:
    """The indexes, then the manifest; then what was needed until then goes."""
    destination = manifest.root
    for split, some in outcomes.items():
        with atomic_write(destination / index_name(split)) as file:
            index = HashedFile(file)
            np.lib.format.write_array(index, np.concatenate([o.records for o in some]), allow_pickle=False)
        manifest.index_sha256[split] = index.sha256()
        _remove_others(destination, split, {info.name for info in manifest.splits[split]})
    write_manifest(manifest)
    (destination / _MAKING).unlink()
    for split in outcomes:
        for path in destination.glob(f".{split}-[0-9][0-9][0-9][0-9][0-9][0-9].json"):
            path.unlink()


def _remove_others(destination: Path, split: str, names: set[str]) -> None:
    """Remove a split's shards of an earlier run that had more: whoever reads ``<split>-*.tar`` would take them."""
    for tar in destination.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9][0-9].tar"):
        if tar.name not in names:
            tar.unlink()
            (destination / idx_name(tar.name)).unlink(missing_ok=True)


def _look_at(config: WriterConfig, made: dict[str, object]) -> dict[str, Outcome] | None:
    """Refuse a destination but a new or empty folder, or with ``resume`` one that was being made in the same way.

    Returns what the manifest of a finished one says, by shard, or None without ``resume``.
    """
    before: dict[str, Outcome] = {}
    destination = config.destination
    try:
        destination.mkdir(parents=True, exist_ok=True)
        holds = [name for name in os.listdir(destination) if name == _MAKING or not name.startswith(".")]
        if config.rank and MANIFEST not in holds and _MAKING in holds:
            holds = []  # rank 0 has been here just now, or before: it is its affair
    except OSError as error:
        raise ConfigError(f"cannot write to {destination}: {error.strerror}") from error
    if holds and not config.resume:
        what = "a finished folder of shards" if MANIFEST in holds else "not empty"
        raise ConfigError(f"{destination} is {what}: choose another folder, or go on with it with --resume")
    if holds:
        if MANIFEST in holds:
            manifest = read_manifest(destination)
            was = manifest.made
            before = outcomes_of(manifest)
        else:
            was = _read_making(destination)
        for name, value in made.items():
            if was.get(name) != value:
                raise ConfigError(
                    f"{destination} was begun with {name} {was.get(name)!r}, now it is {value!r}: "
                    "resume with the same, or choose another folder"
                )
    return before if config.resume else None


def _read_making(destination: Path) -> dict[str, object]:
    try:
        return dict(json.loads((destination / _MAKING).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{destination} is not empty and holds no shards that were begun: {error}") from error
