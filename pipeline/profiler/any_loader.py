"""A loader of whatever kind: its batches, epoch after epoch, and a loop over them, timed."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ..device import DEVICES, Device
from ..errors import ConfigError
from ..idle import IdleTime
from .cpu_clock import CpuClock, Use

WINDOWS = 5  # a rate is the median of so many
_LONGEST = 2  # times the seconds that are counted: the rest is for the starts of short epochs
END = object()  # of an epoch
Step = Callable[[Any], object]


class Epochs:
    """The batches of an iterable, each pass of which is an epoch. Its workers' start is kept apart from the rest."""

    def __init__(self, loader: Iterable[Any]):
        self._loader = loader
        self._iterator: Iterator[Any] | None = None
        self._length = _length(loader)  # batches of an epoch; None where it is not known yet
        self._place = 0  # batches of this epoch that were taken
        self.workers = workers_of(loader)
        self.starts_s: list[float] = []  # how long each epoch's first batch was waited for

    @property
    def running(self) -> bool:
        """Whether the loader is past its start, and has another batch.

        Past its start, each worker has had its first batch, or half the epoch is over. Behind the last batch workers
        are ended.
        """
        start = max(1, self.workers)
        if self._length is None:
            return self._place >= start
        return min(start, self._length // 2) <= self._place < self._length

    def next(self) -> Any:
        """A batch, or END behind the last of each epoch.

        Raises ConfigError where an epoch has none.
        """
        asked = time.perf_counter()
        if self._iterator is None:
            try:
                self._iterator = iter(self._loader)
            except TypeError as error:
                raise ConfigError(f"want an iterable of batches, got a {type(self._loader).__name__}") from error
        batch = next(self._iterator, END)
        if batch is not END:
            if not self._place:
                self.starts_s.append(time.perf_counter() - asked)
            self._place += 1
            return batch
        if not self._place:
            raise ConfigError(
                "the loader can be iterated only once: wrap it so that each iter() is a new epoch"
                if self.starts_s
                else "the loader has no batch"
            )
        self._length = self._place
        self.leave()
        return END

    def leave(self) -> None:
        """Begin a new epoch with the next batch."""
        self._iterator, self._place = None, 0


def workers_of(loader: Any) -> int:
    """How many processes load, as a torch DataLoader says it, or what it is wrapped in; 0 where nothing does."""
    while loader is not None:
        number = getattr(loader, "num_workers", None)
        if isinstance(number, int):
            return number
        loader = getattr(loader, "loader", None)  # timm's PrefetchLoader, and its like
    return 0


def _length(loader: Any) -> int | None:
    try:
        return len(loader) or None
    except TypeError:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """One loop, timed, without its start and those of its epochs."""

    rates: tuple[float, ...]  # images/s of each window
    images: int
    seconds: float
    wait: float  # of the time, whoever takes the batches had none
    asking: float  # of the time, this thread was at work while it asked for a batch: it loads, copies, unpickles
    use: Use  # of the cores

    @property
    def images_per_s(self) -> float:
        """The median window's."""
        return statistics.median(self.rates)

    @property
    def busy_us(self) -> float:
        """Of an image: time that was not spent waiting."""
        return (1 - self.wait) * self.seconds / self.images * 1e6


class Timer:
    """Times loops over batches.

    A device that works on its own is not waited for: its clock tells how long it had nothing to do. Where there is
    no such clock, each step is followed by ``synchronize``, and what counts is how long this process waits.
    """

    def __init__(self, count: Callable[[Any], int], synchronize: Callable[[], None] | None):
        self.count = count
        self._synchronize = synchronize

    def time(self, epochs: Epochs, step: Step, seconds: float) -> Loop:
        """A loop of about ``seconds``, not counting the starts of the loader and of epochs; at most twice as long.

        One step at least is counted, however long it takes.
        """
        tally = _Tally(window_s=seconds / WINDOWS, together=max(1, epochs.workers))
        step(epochs.next())
        device = None if self._synchronize else device_in_use()
        deadline = time.perf_counter() + _LONGEST * seconds
        while not tally.images or (tally.total_s < seconds and time.perf_counter() < deadline):
            if epochs.running:
                self._stretch(epochs, step, tally, device, min(deadline, time.perf_counter() + seconds - tally.total_s))
            elif (batch := epochs.next()) is not END:
                step(batch)
        epochs.leave()
        return tally.loop()

    def _stretch(self, epochs: Epochs, step: Step, tally: _Tally, device: Device | None, deadline: float) -> None:
        """As much of an epoch as there is before the deadline, and the first step of all."""
        wait_for_device = device.synchronize if device else self._synchronize or _wait_for_others
        idle = IdleTime(device) if device else _HostWait()
        wait_for_device()
        clock = CpuClock()
        before, now = clock.read(), time.perf_counter()
        mark = now
        while epochs.running and (now < deadline or not tally.images):
            before_s = time.thread_time()
            idle.begin()
            batch = epochs.next()
            if batch is END:  # of the first epoch, where nobody knew its length
                break
            idle.end()
            tally.add(self.count(batch), time.thread_time() - before_s)
            step(batch)
            if not device:
                wait_for_device()
            now = time.perf_counter()
            if tally.is_due(now - mark):
                wait_for_device()
                now = time.perf_counter()
                tally.close_window(now - mark)
                mark = now
        if device:
            device.synchronize()
            now = time.perf_counter()
        tally.pause(now - mark, idle.total_s(), clock.read() - before)


class _Tally:
    """What a loop's stretches add up to."""

    def __init__(self, *, window_s: float, together: int):
        self._window_s, self._together = window_s, together
        self._rates: list[float] = []
        self._window_images = self._window_steps = 0
        self._begun_s = 0.0  # of this window, in stretches before
        self.total_s = self._idle_s = self._asking_s = 0.0
        self._uses: list[Use] = []
        self.images = 0

    def add(self, images: int, asking_s: float) -> None:
        """A batch."""
        self._window_images += images
        self._window_steps += 1
        self.images += images
        self._asking_s += asking_s

    def is_due(self, seconds: float) -> bool:
        """Whether the window is long enough. Workers that began together deliver together: it has whole rounds."""
        return self._window_steps % self._together == 0 and self._begun_s + seconds >= self._window_s

    def close_window(self, seconds: float) -> None:
        self._rates.append(self._window_images / (self._begun_s + seconds))
        self.total_s += seconds
        self._window_images, self._window_steps, self._begun_s = 0, 0, 0.0

    def pause(self, seconds: float, idle_s: float, use: Use) -> None:
        """The stretch is over; the window goes on with the next."""
        self.total_s += seconds
        self._begun_s += seconds
        self._idle_s += idle_s
        self._uses.append(use)

    def loop(self) -> Loop:
        return Loop(
            rates=tuple(self._rates) or (self.images / self.total_s,),
            images=self.images,
            seconds=self.total_s,
            wait=min(1.0, self._idle_s / self.total_s),
            asking=self._asking_s / self.total_s,
            use=sum(self._uses[1:], self._uses[0]),
        )


class _HostWait:
    """As IdleTime, of a device that does nothing behind this process's back."""

    def __init__(self) -> None:
        self._begin_s = self._total_s = 0.0

    def begin(self) -> None:
        """A step is done, and there is no batch for another."""
        self._begin_s = time.perf_counter()

    def end(self) -> None:
        """There is one."""
        self._total_s += time.perf_counter() - self._begin_s

    def total_s(self) -> float:
        return self._total_s


def device_in_use() -> Device | None:
    """The device of the table that this process has opened."""
    for device in DEVICES.values():
        module = getattr(torch, device.module, None) if device.module else None
        if module is not None and module.is_initialized():
            return dataclasses.replace(device, index=module.current_device())
    return None


def _wait_for_others() -> None:
    """Accelerators that are not in the table."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
