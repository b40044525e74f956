"""Runs inputs in child processes: each ends in a result or in one of our own errors, or is named.

An input is (target, seed, number) and nothing else: its bytes, and whatever its check draws besides, come from a random
generator with that name. A child does a batch; when it dies or hangs, the input is known and the next child goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from model.weights import WeightsError
from pipeline.crop_jpeg import LayoutError
from pipeline.errors import ConfigError, DataError
from pipeline.transcoder import NotTranscodableError

OURS = (ConfigError, DataError, LayoutError, NotTranscodableError, WeightsError)
CPU_LIMIT_S = 5.0  # of one input
WALL_LIMIT_S = 60.0  # of one that waits for something: a machine may be busy
MEMORY_LIMIT = 1 << 30  # bytes of address space that a batch may have besides what its process began with
BATCH = 1000
_WARM = 24  # seeds that are read first, in the parent: a target's first are good ones, of all kinds
_MOST_DEATHS = 5  # of one target's processes: then it is not run to its end
# What no input may bring about. The first part of an audit event's name (docs.python.org/3/library/audit_events.html).
_FORBIDDEN = ("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.", "socket.", "subprocess.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One reader of bytes.

    `check` has the input read, in a folder of its own that is empty, and says in a word how it went; it raises one of
    OURS, or whatever shows a bug. It takes the seeds too.
    """

    name: str
    share: int  # of all inputs, in parts
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[random.Random, list[bytes]], bytes]
    check: Callable[[bytes, random.Random, Path], str]


@dataclasses.dataclass
class Report:
    """What came out of one target."""

    target: str
    seed: int
    inputs: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # what went wrong: the inputs' numbers
    deaths: int = 0  # of processes
    cpu_s: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)  # CPU seconds, and the input's number
    largest: tuple[int, int] = (0, -1)  # KiB that the peak of memory grew by, and the input's number
    peak: int = 0  # KiB, of a process

    def lines(self) -> Iterator[str]:
        """The report for a reader."""
        outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in self.outcomes.most_common())
        yield (
            f"{self.target}: {self.inputs:,} inputs, {self.cpu_s:.1f} s CPU, slowest {1000 * self.slowest[0]:.0f} ms "
            f"(number {self.slowest[1]}), largest +{self.largest[0] >> 10} MiB (number {self.largest[1]}), "
            f"peak {self.peak >> 10} MiB; {outcomes}"
        )
        for failure, numbers in self.failures.items():
            yield f"  {len(numbers):,} times: {failure}"
            yield f"    python -m tests.fuzz --target {self.target} --seed {self.seed} --only {min(numbers)}"

    def fail(self, failure: str, number: int) -> None:
        """Note what went wrong with an input: once for each kind."""
        self.outcomes["FAILED"] += 1
        self.failures.setdefault(failure, []).append(number)


def make(target: Target, seeds: list[bytes], seed: int, number: int) -> tuple[bytes, random.Random]:
    """An input's bytes, and the generator for what its check draws."""
    rng = random.Random(f"{target.name} {seed} {number}")
    return target.mutate(rng, seeds), rng


def run(target: Target, *, seed: int, count: int) -> Report:
    """`count` inputs of one target."""
    report, seeds, first = Report(target.name, seed), target.seeds(), 0
    with tempfile.TemporaryDirectory() as folder:
        for data in seeds[:_WARM]:  # what is compiled is compiled before the processes part
            _empty(Path(folder))
            with contextlib.suppress(*OURS):
                target.check(data, random.Random(0), Path(folder))
        while first < count and report.deaths < _MOST_DEATHS:
            numbers = range(first, min(count, first + BATCH))
            first = _batch(target, seeds, seed, numbers, report, Path(folder))
    return report


def _batch(target: Target, seeds: list[bytes], seed: int, numbers: range, report: Report, folder: Path) -> int:
    """Run inputs in one child until all are done or one is not survived; returns the next number."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(reader)
        _child(target, seeds, seed, numbers, writer, folder)
    os.close(writer)
    current, ended, rest = numbers[0], "", b""
    while select.select([reader], [], [], WALL_LIMIT_S)[0]:
        received = os.read(reader, 1 << 16)
        if not received:
            break
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            current = _note(report, **json.loads(line)) + 1
    else:
        os.kill(child, signal.SIGKILL)
        ended = f"not done after {WALL_LIMIT_S:.0f} s"
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    if status or ended:
        names = {signal.SIGPROF: f"more than {CPU_LIMIT_S} s of CPU"}
        code = signal.Signals(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None
        ended = ended or (names.get(code, f"killed by {code.name}") if code else f"exit {os.WEXITSTATUS(status)}")
        report.inputs += 1
        report.deaths += 1
        report.fail(ended, current)
        return current + 1
    return numbers[-1] + 1


def _note(report: Report, *, number: int, outcome: str, failed: bool, cpu_s: float, grown: int, peak: int) -> int:
    report.inputs += 1
    report.cpu_s += cpu_s
    report.slowest = max(report.slowest, (cpu_s, number))
    report.largest = max(report.largest, (grown, number))
    report.peak = max(report.peak, peak)
    if failed:
        report.fail(outcome, number)
    else:
        report.outcomes[outcome] += 1
    return number


def _where(error: BaseException) -> str:
    """What was raised, and in which line of whose code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename][-1]
    return f"{Path(ours.filename).name}:{ours.lineno}: {type(error).__name__}: {str(error)[:200]!r}"


def _child(target: Target, seeds: list[bytes], seed: int, numbers: range, writer: int, folder: Path) -> None:
    """Never returns."""
    code = 1
    try:
        faulthandler.enable()
        faulthandler.register(signal.SIGPROF, chain=True)  # say where it hangs, then die of it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = _address_space() + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        forbidden = watch()
        for number in numbers:
            data, rng = make(target, seeds, seed, number)
            _empty(folder)
            before, began = _peak(), time.process_time()
            signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
            failed = False
            try:
                outcome = one(target, data, rng, folder, forbidden)
            except Exception as error:
                outcome, failed = _where(error), True
            signal.setitimer(signal.ITIMER_PROF, 0)
            cost = {"cpu_s": time.process_time() - began, "peak": _peak(), "grown": _peak() - before}
            line = json.dumps({"number": number, "outcome": outcome, "failed": failed, **cost})
            os.write(writer, line.encode() + b"\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def one(target: Target, data: bytes, rng: random.Random, folder: Path, forbidden: list[str]) -> str:
    """Check one input; returns its outcome. Raises where it is not a result and none of our errors."""
    try:
        outcome = target.check(data, rng, folder)
    except OURS as error:
        text = str(error)
        if not text or "\n" in text or len(text) > 2000:
            raise AssertionError(f"no error of one line: {text[:3000]!r}") from error
        outcome = type(error).__name__
    happened = [forbidden.pop() for _ in range(len(forbidden))]
    assert not happened, f"it brought about {happened}"
    return outcome


def watch() -> list[str]:
    """The list to which from now on everything is added that this process does and no input may bring about."""
    forbidden: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            forbidden.append(f"{event} {arguments}")

    sys.addaudithook(hook)
    return forbidden


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
