"""The measurements of a profile: what the host gives as it is, with a part of it taken away, and done otherwise."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import BACKENDS, is_installed
from ..config import PipelineConfig
from ..folder import Folder, picture_size
from ..host import available_cores
from ..jpeg import read_header
from ..loader import Loader
from ..manifest import read_manifest
from ..recording import ALL, lap_us
from ..shards import Shards
from ..source import Source, holds_shards
from .disk import cached_fraction
from .ledger import Ledger, write_ledger
from .measure import Taking, take
from .nearby import PICTURES, Nearby
from .report import SlowSample
from .trace import Picture
from .unread import Unread

# Of the seconds, how much goes into each run.
_SUPPLY, _AT_DEMAND, _REPLAY, _OTHER = 0.25, 0.2, 0.05, 0.1
_LEAST_LOAD = 0.1
_TURNS = 3  # that two ways to have the same pictures take, so that both meet the same machine
_SLOWEST = 10  # pictures that are named
_FILES = 2000  # of single ones, that are looked at
_DOTS = 400  # pictures whose size and cost are shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One way to have pictures: how fast, and what a picture costs."""

    taking: Taking
    workers_us: float  # CPU time of a picture: of the decode processes,
    loader_us: float  # and of the process that takes the batches
    bytes: float  # of a picture on the disk, mean

    @property
    def images_per_s(self) -> float:
        return self.taking.images_per_s

    @property
    def cpu_us(self) -> float:
        return self.workers_us + self.loader_us


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    """Another way to have the same pictures, in turns with the way as it is: so both have met the same machine."""

    ratios: tuple[float, ...]  # of each turn, how many times as fast
    cheaper: float  # how many times fewer CPU us a picture, median
    bytes: float  # of a picture on the disk, mean

    @property
    def faster(self) -> float:
        """How many times as fast: the median turn's."""
        return statistics.median(self.ratios)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usual:
    """The loader as it is, on the pictures as they are."""

    backend: str
    workers: int
    crop_addressed: bool
    samples: int
    files: tuple[Path, ...]  # that the pictures are in; of single files some
    cached: float | None  # of their bytes, what was in the page cache before
    run: Run  # S4, as fast as it goes
    at_demand: Taking  # and what the devices would see of it,
    asked: float  # when they ask for so many images/s
    recorded: dict[int, npt.NDArray[np.void]]  # by process number, each worker's events of the run at the demand
    recording: float  # what noting them cost, of the CPU time of a picture
    ledger: Ledger  # of these events
    pictures: dict[int, Picture]  # the samples in them, by number
    slowest: tuple[SlowSample, ...]
    costs: tuple[tuple[int, float], ...]  # (bytes, CPU us) of some pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """What the host side gives."""

    usual: Usual
    in_memory: Other  # S3
    replayed: Run  # S2
    other: dict[str, Other]  # at S3: "crop", "recode", "pillow", "dali"
    by_workers: dict[int, Other]  # at S3, with other numbers of workers


class Bench:
    """A loader's configuration under measurement: ``seconds`` in all, and one or two for the start of each run."""

    def __init__(
        self,
        config: PipelineConfig,
        *,
        demand: float,
        seconds: float,
        say: Callable[[str], None] = lambda _: None,
        source: Source | None = None,
        alternatives: bool = True,
        pictures: int = PICTURES,
    ):
        """``demand``: images/s that all devices take. ``say`` is told what is measured next.

        ``source``: another than the config names. Without ``alternatives`` there will be a verdict, and no remedies.
        ``pictures``: how many are copied, to try other ways on.
        """
        self.config, self.demand, self.source, self.alternatives = config, demand, source, alternatives
        self._pictures = pictures
        self._seconds, self._say = seconds, say
        self._workers = available_cores() if config.workers == "auto" else int(config.workers)

    def measure(self) -> Host:
        """All of it. Raises ConfigError and DataError."""
        with contextlib.ExitStack() as stack:
            config = dataclasses.replace(self.config, workers=self._workers)
            loader = stack.enter_context(Loader(config, source=self.source, record=True))
            self._say("the loader as it is")
            nearby, usual = self._usual(loader, stack)
            replay = stack.enter_context(self._open("batches that nobody decodes", Unread(len(nearby)), replay=True))
            replayed = _run(take(replay, self._seconds * _REPLAY), 0.0)
            near = stack.enter_context(self._open("pictures in memory", nearby.as_they_are()))
            in_memory = self._in_turns(near, loader, usual.run.bytes)
            other = dict(self._other(near, nearby, usual)) if self.alternatives else {}
            by_workers = dict(self._by_workers(near, nearby, usual)) if self.alternatives else {}
            return Host(usual=usual, in_memory=in_memory, replayed=replayed, other=other, by_workers=by_workers)

    def _usual(self, loader: Loader, stack: contextlib.ExitStack) -> tuple[Nearby, Usual]:
        source = loader.source
        files = files_of(source)
        cached = cached_fraction(files)
        as_is = take(loader, self._seconds * _SUPPLY)
        self._say("the loader at the devices' demand")
        loader.recordings.record(True)
        # A host that could feed ten such devices is asked for a tenth of what it gives: else it would take for ever.
        demand = max(self.demand, _LEAST_LOAD * as_is.images_per_s)
        at_demand = take(loader, self._seconds * _AT_DEMAND, demand=demand)
        loader.recordings.record(False)
        recorded = {pid: loader.recordings.read(worker) for worker, pid in enumerate(loader.decode_pids)}
        ledger = write_ledger(list(recorded.values()))
        events = sum(map(len, recorded.values())) / len(ledger.samples)  # of a picture
        self._say(f"copying {min(self._pictures, len(source)):,} pictures")
        nearby = stack.enter_context(Nearby(source, self._pictures))
        return nearby, Usual(
            backend=loader.backend,
            workers=loader.workers,
            crop_addressed=source.crop_addressed,
            samples=len(source),
            files=files,
            cached=cached,
            run=_run(as_is, float(nearby.bytes.mean())),
            asked=demand,
            at_demand=at_demand,
            recorded=recorded,
            recording=lap_us() * events / float(ledger.cpu_us.mean()),
            ledger=ledger,
            pictures=_pictures(source, [*recorded.values()]),
            slowest=slowest_samples(source, ledger),
            costs=costs_by_size(source, ledger),
        )

    def _by_workers(self, near: Loader, nearby: Nearby, usual: Usual) -> Iterator[tuple[int, Other]]:
        for count in sorted({1, available_cores() // 2, available_cores()} - {0, self._workers}):
            what = f"{count} worker{'s'[: count > 1]}"
            yield count, self._against(near, what, nearby.as_they_are(), usual.run.bytes, workers=count)

    def _other(self, near: Loader, nearby: Nearby, usual: Usual) -> Iterator[tuple[str, Other]]:
        for name in BACKENDS:
            if name != usual.backend and is_installed(name):
                copies, size = nearby.as_they_are(), usual.run.bytes
                yield name, self._against(near, f"decoding with {name}", copies, size, backend=name)
        for jpeg, done in {"crop": usual.crop_addressed, "recode": self._is_recoded()}.items():
            if not done:
                self._say(f"making shards of them, --jpeg {jpeg}")
                shards = nearby.made_anew(jpeg, available_cores())
                size = float(shards.records["bytes"].mean())
                yield jpeg, self._against(near, f"shards of them, --jpeg {jpeg}", shards, size)

    def _is_recoded(self) -> bool:
        return holds_shards(self.config) and read_manifest(self.config.root).made.get("jpeg") == "recode"

    def _open(self, what: str, source: Source, *, replay: bool = False, **changes: Any) -> Loader:
        """A loader of copies, which are read from memory."""
        self._say(what)
        usual: dict[str, Any] = {"workers": self._workers, "shuffle": "global"}
        config = dataclasses.replace(self.config, **usual | changes)
        return Loader(config, source=source, replay=replay)

    def _against(self, near: Loader, what: str, source: Source, size: float, **changes: Any) -> Other:
        """Another way to have pictures that lie in memory."""
        with self._open(what, source, **changes) as loader:
            return self._in_turns(loader, near, size)

    def _in_turns(self, loader: Loader, usual: Loader, size: float) -> Other:
        seconds = self._seconds * _OTHER / _TURNS / 2
        turns = [[_run(take(each, seconds, windows=1), size) for each in (loader, usual)] for _ in range(_TURNS)]
        return Other(
            ratios=tuple(other.images_per_s / usual.images_per_s for other, usual in turns),
            cheaper=statistics.median(usual.cpu_us / other.cpu_us for other, usual in turns),
            bytes=size,
        )


def _run(taking: Taking, size: float) -> Run:
    mine = taking.use.by_process[os.getpid()]
    workers = sum(taking.use.by_process.values()) - mine
    return Run(
        taking=taking,
        workers_us=workers / taking.images * 1e6,
        loader_us=mine / taking.images * 1e6,
        bytes=size,
    )


def slowest_samples(source: Source, ledger: Ledger) -> tuple[SlowSample, ...]:
    """The pictures that cost most, each once, the worst first."""
    named: dict[int, SlowSample] = {}
    for place in np.argsort(-ledger.cpu_us).tolist():
        number = int(ledger.samples[place])
        if number not in named:
            data = source.read(number)
            width, height = picture_size(data)
            header = read_header(data)
            why = [f"{width:,} x {height:,} pixels"]
            if header and not header.baseline:
                why.append("progressive" if len(data) else "")
            named[number] = SlowSample(
                name=source.name(number),
                cpu_us=float(ledger.cpu_us[place]),
                bytes=len(data),
                megapixels=width * height / 1e6,
                why=", ".join(why),
            )
        if len(named) == _SLOWEST:
            break
    return tuple(named.values())


def costs_by_size(source: Source, ledger: Ledger) -> tuple[tuple[int, float], ...]:
    """(bytes, CPU us) of some pictures."""
    some = np.random.default_rng(0).permutation(len(ledger.samples))[:_DOTS]
    sizes = _sizes(source, ledger.samples[some])
    return tuple(zip(sizes.tolist(), ledger.cpu_us[some].tolist(), strict=True))


def files_of(source: Source) -> tuple[Path, ...]:
    """Those that the pictures are in: all tars, or some of many single files."""
    if isinstance(source, Shards):
        return tuple(Path(source.root, name) for name in source.shard_names)
    assert isinstance(source, Folder)
    some = np.random.default_rng(0).permutation(len(source))[:_FILES]
    return tuple(Path(source.root, source.name(number)) for number in some.tolist())


def _pictures(source: Source, recorded: Sequence[npt.NDArray[np.void]]) -> dict[int, Picture]:
    """Names and bytes of all samples that were recorded."""
    numbers = np.unique(np.concatenate([events["sample"] for events in recorded]))
    numbers = numbers[numbers != ALL]
    sizes = _sizes(source, numbers).tolist()
    return {n: Picture(source.name(n), size) for n, size in zip(numbers.tolist(), sizes, strict=True)}


def _sizes(source: Source, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if isinstance(source, Shards):
        return source.records["bytes"][numbers].astype(np.int64)
    assert isinstance(source, Folder)
    return np.array([os.path.getsize(os.path.join(source.root, source.name(number))) for number in numbers.tolist()])
