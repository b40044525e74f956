"""The recorded run as a timeline: Chrome's trace event format, which ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..files import atomic_write
from ..recording import ALL, STAGES
from .figures import plain

_CHUNK = 1024  # events, and lines, that are Python objects at a time
_PROCESS = '"pid":1'  # one for all: Perfetto folds each process away, and a click should open the whole run
Row = tuple[int, int, int, int, int]  # an event as Python integers: sample, begin, end, CPU time, stage


class Span(NamedTuple):
    """Something that took a while, in time.perf_counter_ns."""

    name: str
    begin_ns: int
    end_ns: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerTrack:
    """What a decode process noted."""

    name: str  # "worker 0 (pid 1234)"
    events: npt.NDArray[np.void]  # recording.EVENT, in order


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanTrack:
    """What something else did: of the loader, "wait for batch", "copy", "step"."""

    name: str  # "loader"
    spans: Sequence[Span]  # in order of their begin; each is within another or apart from it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counter:
    """A number over time, drawn as steps."""

    name: str  # "batches ready"
    values: Sequence[tuple[int, float]]  # (time.perf_counter_ns, the number from then on)


class Picture(NamedTuple):
    """What the trace says of a sample."""

    name: str
    bytes: int  # compressed


def write_trace(
    path: Path,
    tracks: Sequence[WorkerTrack | SpanTrack],
    counters: Sequence[Counter],
    describe: Callable[[int], Picture],
) -> None:
    """Write all of it, tracks from top to bottom as given; gzipped where the name ends in .gz, which Perfetto opens.

    A picture is a slice with its stages in it: several slices where the worker turned to another in between. Times
    are relative to the first of all. Memory does not grow with the events. Raises WriteError (files.py).
    """
    lines = _lines(tracks, counters, describe)
    with atomic_write(path) as file:
        if path.suffix == ".gz":
            # No name and no time in it: the same run gives the same bytes.
            with gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0) as packed:
                while chunk := list(itertools.islice(lines, _CHUNK)):
                    packed.write("".join(chunk).encode())
        else:
            while chunk := list(itertools.islice(lines, _CHUNK)):
                file.write("".join(chunk).encode())


def _lines(
    tracks: Sequence[WorkerTrack | SpanTrack], counters: Sequence[Counter], describe: Callable[[int], Picture]
) -> Iterator[str]:
    origin_ns = min(_begins(tracks, counters), default=0)
    yield '{"displayTimeUnit":"ms","traceEvents":[\n'
    comma = ""
    for event in _events(tracks, counters, describe, origin_ns):
        yield comma + event
        comma = ",\n"
    yield "\n]}\n"


def _begins(tracks: Sequence[WorkerTrack | SpanTrack], counters: Sequence[Counter]) -> Iterator[int]:
    for track in tracks:
        if isinstance(track, WorkerTrack):
            yield from track.events["begin_ns"][:1].tolist()
        else:
            yield from (span.begin_ns for span in track.spans[:1])
    for counter in counters:
        yield from (at_ns for at_ns, _ in counter.values[:1])


def _events(
    tracks: Sequence[WorkerTrack | SpanTrack],
    counters: Sequence[Counter],
    describe: Callable[[int], Picture],
    origin_ns: int,
) -> Iterator[str]:
    yield f'{{"ph":"M","name":"process_name",{_PROCESS},"args":{{"name":"headrace"}}}}'
    for tid, track in enumerate(tracks, 1):
        where = f'{_PROCESS},"tid":{tid}'
        yield f'{{"ph":"M","name":"thread_name",{where},"args":{{"name":{_text(track.name)}}}}}'
        yield f'{{"ph":"M","name":"thread_sort_index",{where},"args":{{"sort_index":{tid}}}}}'
        if isinstance(track, WorkerTrack):
            yield from _pictures(track.events, where, describe, origin_ns)
        else:
            for span in track.spans:
                yield _slice(span, where, origin_ns)
    for counter in counters:
        name = _text(counter.name)
        for at_ns, value in counter.values:
            yield f'{{"ph":"C","name":{name},{_PROCESS},"ts":{_us(at_ns - origin_ns)},"args":{{"":{value}}}}}'


def _pictures(
    events: npt.NDArray[np.void], where: str, describe: Callable[[int], Picture], origin_ns: int
) -> Iterator[str]:
    starts = range(0, len(events), _CHUNK)
    rows = (row for start in starts for row in events[start : start + _CHUNK].tolist())
    for sample, together in itertools.groupby(rows, itemgetter(0)):
        if sample == ALL:
            yield from (_stage(row, where, origin_ns) for row in together)
            continue
        stages = list(together)
        (name, size), cpu_ns = describe(sample), sum(row[3] for row in stages)
        picture = Span(name, stages[0][1], stages[-1][2])
        yield _slice(picture, where, origin_ns, f'"sample":{sample},"bytes":{size},"cpu_us":{_us(cpu_ns)}')
        yield from (_stage(row, where, origin_ns) for row in stages)


def _stage(row: Row, where: str, origin_ns: int) -> str:
    _, begin_ns, end_ns, cpu_ns, stage = row
    return _slice(Span(STAGES[stage], begin_ns, end_ns), where, origin_ns, f'"cpu_us":{_us(cpu_ns)}')


def _slice(span: Span, where: str, origin_ns: int, args: str = "") -> str:
    times = f'"ts":{_us(span.begin_ns - origin_ns)},"dur":{_us(span.end_ns - span.begin_ns)}'
    return f'{{"ph":"X","name":{_text(span.name)},{where},{times},"args":{{{args}}}}}'


def _us(ns: int) -> str:
    """Microseconds, exact: readers that round would let slices overlap."""
    return f"{ns // 1000}.{ns % 1000:03d}"


@functools.lru_cache(1024)
def _text(name: str) -> str:
    return json.dumps(plain(name), ensure_ascii=False)  # Perfetto shows \u732b as it stands
