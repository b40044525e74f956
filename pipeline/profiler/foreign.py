"""Any loader and any step: how long the device waits, for whom, and what it could take.

    from pipeline.profiler import profile          # headrace.pipeline.profiler when installed
    print(profile(DataLoader(...), step))

Four loops are timed: the step with batches that were kept (what the device takes), the loader alone (what the host
gives), both together (what training gets), and, where the pictures can be found, this package's own loader on some of
them (what a switch would give).
"""

from __future__ import annotations

import importlib
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .. import __version__
from ..errors import ConfigError, DataError
from ..host import available_cores
from .any_batch import copied, image_side, images_of
from .any_loader import END, Epochs, Loop, Step, Timer
from .cpu_clock import Use
from .foreign_report import ForeignReport, Switch
from .report import Rate
from .switch import Found, find_pictures, measure_switches
from .why import Why, why_slow

_KEPT = 4  # batches that are replayed: more than a processor's cache holds
# Of the seconds, how much goes into each loop.
_REPLAY, _ALONE, _TOGETHER, _SWITCH = 0.15, 0.2, 0.25, 0.4
_SEEN = 0.01  # cores: what uses less is not listed
_CROWDED = 0.2  # of the cores, in other hands while we wanted them: rates are not what they would be


def profile(
    loader: Iterable[Any],
    step: Step | None = None,
    *,
    seconds: float = 20.0,
    demand: float | None = None,
    count: Callable[[Any], int] | None = None,
    synchronize: Callable[[], None] | None = None,
    data: str | os.PathLike[str] | None = None,
) -> ForeignReport:
    """Profile an iterable of batches, of which each pass is an epoch, under a step that trains one.

    ``step(batch)`` copies the batch to the device and trains it, for real: the model goes on. On cuda and npu the
    device's own clock tells how long it waits; for any other that works on its own, ``synchronize()`` waits for it
    after each step (default: torch.accelerator's). Without a step, ``demand`` images/s are taken. ``count(batch)``
    says how many pictures a batch has (default: the length of its first tensor). ``data`` is an ImageNet folder, or
    shards, with the loader's pictures, to measure what a switch would give (default: the root of ``loader.dataset``
    where there is one).

    It measures for ``seconds``, or four steps where those take longer. On top come the start of the loader's workers,
    six times or with each of its epochs (at most the same time again), and, where the pictures are found, some ten
    seconds to make shards of 512 of them.

    Raises ConfigError for a loader without batches and a call that makes no sense, and DataError where ``data`` holds
    no pictures; what ``step`` raises passes.
    """
    if (step is None) == (demand is None):
        raise ConfigError("give a step, or a demand in images/s, one of the two")
    for name, value in (("seconds", seconds), ("demand", demand)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be above 0, was {value}")
    pictures = find_pictures(loader, data)
    timer = Timer(_counted(count or images_of), synchronize)
    epochs = Epochs(loader)
    kept = _keep(epochs)
    replay = timer.time(Epochs(itertools.cycle(kept)), step, seconds * _REPLAY) if step else None
    wanted = replay.images_per_s if replay else float(demand or 0)
    alone = timer.time(epochs, lambda _: None, seconds * _ALONE)
    together = timer.time(epochs, step or _Cards(wanted, timer.count), seconds * _TOGETHER)
    switches, note = _switches(
        pictures, kept[0], epochs, timer, supply=alone.images_per_s, demand=wanted, seconds=seconds * _SWITCH
    )
    cores, use = available_cores(), alone.use
    why = why_slow(together.wait, alone, epochs.workers, cores)
    loops = [loop for loop in (replay, alone, together) if loop]
    return ForeignReport(
        sentence=_sentence(why, wanted, alone, together, switches),
        verdict=why.verdict,
        cause=why.cause,
        confidence=_confidence(loops, cores),
        demand=wanted,
        supply=alone.images_per_s,
        together=together.images_per_s,
        rates=(
            _rate("demand", "the step alone, batches replayed", replay) if replay else _given(wanted),
            _rate("supply", "the loader alone", alone),
            _rate("together", "both, as in training", together),
        ),
        stall_fraction=together.wait,
        head_room=wanted / together.images_per_s,
        step_slower=together.busy_us / replay.busy_us - 1 if replay else 0.0,
        first_batch_s=epochs.starts_s[0],
        epoch_start_s=statistics.median(epochs.starts_s[1:]),
        cpu_us_per_image=1e6 * use.ours_s / alone.images,
        cores_by_process=_cores_by_process(use),
        others_cores=use.others_cores,
        cores=cores,
        workers=epochs.workers,
        switches=switches,
        conditions=(
            ("cores", f"{cores}, of which other programs used {use.others_cores:.1f} beside the loader alone"),
            ("pictures", _counting(loops)),
            ("batches", f"{timer.count(kept[0]):,} pictures; {_KEPT} were kept and replayed"),
            ("switch", note),
            ("versions", f"Python {platform.python_version()}, torch {torch.__version__}, headrace {__version__}"),
        ),
    )


def profile_named(
    loader: str,
    step: str | None,
    *,
    seconds: float = 20.0,
    demand: float | None = None,
    data: str | None = None,
) -> ForeignReport:
    """As :func:`profile`, of what functions hand out: ``module:function`` without arguments, of the current folder.

    Raises ConfigError where they are not there.
    """
    found = _called(loader)
    if not isinstance(found, Iterable):
        raise ConfigError(f"{loader} must return an iterable of batches, returned a {type(found).__name__}")
    train = _called(step) if step else None
    if step and not callable(train):
        raise ConfigError(f"{step} must return the step, a function of a batch, returned a {type(train).__name__}")
    return profile(
        found,
        train,
        seconds=seconds,
        demand=None if step else demand,
        data=data,
    )


def _called(spec: str) -> Any:
    """What a function of the user's returns."""
    module, _, name = spec.partition(":")
    if not module or not name:
        raise ConfigError(f"want MODULE:FUNCTION, such as mytrain:make_loader, got {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{spec}: {error} (looked in {os.getcwd()} and where Python does)") from error
    except AttributeError as error:
        raise ConfigError(f"{spec}: module {module} has no {name}") from error
    if not callable(found):
        raise ConfigError(f"{spec} is no function")
    return found()


class _Cards:
    """A step that takes as long as a device of so many images/s would."""

    def __init__(self, images_per_s: float, count: Callable[[Any], int]):
        self._images_per_s, self._count = images_per_s, count

    def __call__(self, batch: Any) -> None:
        time.sleep(self._count(batch) / self._images_per_s)


def _counted(count: Callable[[Any], int]) -> Callable[[Any], int]:
    def counted(batch: Any) -> int:
        number = count(batch)
        if number < 1:
            raise ConfigError(f"a batch of type {type(batch).__name__} must hold a picture, counted {number}")
        return number

    return counted


def _keep(epochs: Epochs) -> list[Any]:
    """The first few batches, as copies: loaders may use their memory again."""
    kept: list[Any] = []
    while len(kept) < _KEPT and (batch := epochs.next()) is not END:
        kept.append(copied(batch))
    epochs.leave()
    return kept


def _switches(
    pictures: Found | str,
    batch: Any,
    epochs: Epochs,
    timer: Timer,
    *,
    supply: float,
    demand: float,
    seconds: float,
) -> tuple[tuple[Switch, ...], str]:
    """What a switch would give, and how that was measured, or why not."""
    side = image_side(batch)
    if isinstance(pictures, str):
        return (), f"not measured: {pictures}"
    if side is None:
        return (), "not measured: the batches hold no images, NCHW or NHWC"
    try:
        switches = measure_switches(
            pictures,
            lambda turn_s: timer.time(epochs, lambda _: None, turn_s).images_per_s,
            image_size=side,
            batch_size=timer.count(batch),
            workers=min(max(1, epochs.workers), available_cores()),
            supply=supply,
            demand=demand,
            seconds=seconds,
        )
    except DataError as error:  # what was measured until now is worth something too
        return (), f"not measured: {error}"
    return switches, f"in turns, on some pictures of {pictures.root} from memory, as training crops of {side} px, uint8"


def _rate(name: str, label: str, loop: Loop) -> Rate:
    low, high, note = min(loop.rates), max(loop.rates), ""
    if name == "supply":
        note = f"{1e6 * loop.use.ours_s / loop.images:,.0f} CPU us a picture"
    if name == "together":
        note = f"the step waits {100 * loop.wait:.0f} % of the time"
    return Rate(
        name=name, label=label, images_per_s=loop.images_per_s, low=low, high=high, repeats=len(loop.rates), note=note
    )


def _given(demand: float) -> Rate:
    return Rate(
        name="demand", label="the step", images_per_s=demand, low=demand, high=demand, repeats=1, note="as was said"
    )


def _counting(loops: Sequence[Loop]) -> str:
    images, seconds = sum(loop.images for loop in loops), sum(loop.seconds for loop in loops)
    windows = " + ".join(str(len(loop.rates)) for loop in loops)
    return f"{images:,} counted in {seconds:.1f} s ({windows} windows), without the start of the loader and its epochs"


def _cores_by_process(use: Use) -> dict[str, float]:
    """Of the main process, of each other, and of those that have ended."""
    cores = {pid: cpu_s / use.seconds for pid, cpu_s in use.by_process.items()}
    named = {"the main process": cores.pop(os.getpid())}
    named |= {f"worker {pid}": used for pid, used in cores.items() if used > _SEEN}
    ended = use.ours_cores - sum(named.values())
    return named | ({"workers that have ended": ended} if ended > _SEEN else {})


def _confidence(loops: Sequence[Loop], cores: int) -> str:
    if min(len(loop.rates) for loop in loops) < 3:
        return "low: too few steps were measured, give more seconds"
    if any(max(loop.rates) > 1.5 * min(loop.rates) for loop in loops):
        return "low: a rate varied by half while it was measured"
    taken = max(loop.use.taken_cores for loop in loops)
    if taken > _CROWDED * cores:
        return f"low: other programs took {taken:.1f} of {cores} cores"
    return "high"


def _sentence(why: Why, demand: float, alone: Loop, together: Loop, switches: Sequence[Switch]) -> str:
    supply, waits = alone.images_per_s, f"the step waits {100 * together.wait:.0f} % of the time"
    gives = f"{supply:,.0f} ({min(alone.rates):,.0f} to {max(alone.rates):,.0f})"
    asked = f"the step takes {demand:,.0f} images/s, the loader gives {gives}"
    if why.verdict == "compute":
        return f"NOT INPUT-BOUND: {asked}, {supply / demand:.1f} times as many: {waits}."
    beside = "" if supply < demand else f", but {together.images_per_s:,.0f} beside the step"
    sentence = f"INPUT-BOUND ({why.words}): {asked}{beside}: {waits}."
    best = max(switches, key=lambda switch: switch.images_per_s, default=None)
    if best and best.training_images_per_s > together.images_per_s:
        gain = best.training_images_per_s / together.images_per_s
        sentence += f" {best.name}, it trains {best.training_images_per_s:,.0f} images/s, {gain:.1f} times as many."
    return sentence
