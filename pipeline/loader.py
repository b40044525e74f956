"""The loader: hands out whole batches in order, and keeps the ring full behind the trainer's back.

There is no thread in the trainer's process and nothing is pickled, collated or copied on the way: the loader writes
sample numbers into a free slot and puts its rows on the workers' queue; workers decode into the slot; when all its
rows are done it is a batch.
"""

from __future__ import annotations

import dataclasses
import os
import time
import weakref
from collections import deque
from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .advice import advise
from .backends import choose_backend
from .config import PipelineConfig
from .delivery import Delivery
from .errors import ConfigError, DataError
from .host import available_cores, cores
from .order import Indices, batch_indices, block_order, epoch_order
from .pool import WorkerPool
from .recording import Recordings
from .ring import Ring
from .shards import Shards
from .source import Source, open_source, slow_source_advice
from .tasks import DISPATCH_BELOW, rows_per_task
from .worker import DONE, TASK, Job

# What has changed, where a state does not fit.
_OTHER = {"data": "the pictures are others: their fingerprint was", "samples": "the number of pictures was"}
_NAMED = 10  # damaged pictures that are named, and replaced ones; all are counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """N samples on the host, N = batch_size but in an epoch's last batch (there a rank may even get none).

    The tensors are views of a slot: valid until the next batch is asked for.
    """

    images: Tensor  # uint8 [N, S, S, 3]
    labels: Tensor  # int64 [N]
    indices: Tensor  # int64 [N], numbers of the samples in the data set
    global_size: int  # samples that all ranks together have in this step
    epoch: int
    end: int  # samples of the epoch that all ranks together have behind them with this step
    wait_s: float  # how long the trainer waited for it: 0 where the host keeps up
    ready: int  # batches behind it that were decoded, and waited in the ring, when it was handed out


@dataclasses.dataclass
class _Flight:
    """A batch on its way: dispatched to a slot, not yet released."""

    slot: int
    size: int
    epoch: int
    global_size: int
    end: int  # how many samples of the epoch are behind it
    missing: int  # rows still to be decoded
    read_whole: int = 0
    damaged: int = 0
    replaced: int = 0


class Loader:
    """One epoch of batches per iteration. Build it with :func:`build_loader`; close it, or use it in a ``with``.

    An epoch holds each sample exactly once over all ranks. Breaking off an iteration gives up the rest of that epoch,
    unless a ``state_dict`` taken meanwhile brings it back.
    """

    def __init__(
        self, config: PipelineConfig, *, source: Source | None = None, record: bool = False, replay: bool = False
    ):
        """For a profiler: another ``source`` than the config names, stages to ``record``, slots to ``replay``."""
        self.config = config
        self.backend = choose_backend(config.backend)
        self.workers = _auto_workers(config) if config.workers == "auto" else int(config.workers)
        self._delivery: Delivery | None = None
        if config.place.remote and source is None:
            self._delivery = Delivery(config)
        self.source: Source = source or (self._delivery.shards if self._delivery else open_source(config))
        if len(self.source) == 0:
            raise DataError(f"{config.place.root} holds no sample in split {config.split!r}")
        self.ring = Ring(slots=config.slots, batch_size=config.batch_size, image_size=config.largest_size)
        self._shuffle = _shuffle(config, self.source)
        self._rows = rows_per_task(batch_size=config.batch_size, slots=config.slots, workers=self.workers)
        # Of the pictures that were handed out:
        self.read_whole = 0  # read and decoded whole: damaged, or not crop-addressed
        self.damaged = 0  # delivered though something was wrong with them
        self.replaced = 0  # could not be decoded: another sample was in their place
        self._named: dict[str, set[str]] = {}  # of each kind, the lines that were said
        self._epoch = 0  # of the next batch to be handed out
        self._position = 0  # samples of that epoch that all ranks together have been handed
        self._abandoned = False
        self._orders: dict[int, Indices] = {}
        self._flights: deque[_Flight] = deque()
        self._queued = 0  # tasks sent and not yet answered
        self._handed_out = 0  # flights at the head of the queue that are with the trainer
        self._free = deque(range(config.slots))
        self._pool = WorkerPool(self._job(record, replay), self.ring, self.workers)
        self._finalizer = weakref.finalize(self, _shut_down, self._pool, self.ring, self.source, self._delivery)
        if self._delivery:
            try:
                self._delivery.check(0, self._order)
            except ConfigError:
                self.close()
                raise

    def _job(self, record: bool, replay: bool) -> Job:
        return Job(
            config=self.config,
            backend=self.backend,
            rows=self._rows,
            source=self.source,
            cores=cores(),
            record=record,
            replay=replay,
        )

    @property
    def recordings(self) -> Recordings:
        """What the decode processes noted, where they were asked to."""
        return self._pool.recordings

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a label is a place in it."""
        return self.source.classes

    @property
    def samples(self) -> int:
        """How many samples an epoch has, over all ranks."""
        return len(self.source)

    def __len__(self) -> int:
        """Batches in a whole epoch, the same for every rank."""
        return -(-self.samples // self._global_batch)

    @property
    def decode_pids(self) -> list[int]:
        """The decode processes' numbers, for profilers."""
        return self._pool.pids

    @property
    def fetch_pid(self) -> int | None:
        """The number of the process that fetches shards; None where they are here."""
        return self._delivery.pid if self._delivery else None

    @property
    def _global_batch(self) -> int:
        return self.config.batch_size * self.config.world_size

    # Position

    def state_dict(self) -> dict[str, int | str]:
        """Where the loader stands, behind the last batch it handed out: plain ints and strings.

        Taken on any rank, it may be loaded by a loader with any world size, batch size and number of workers.
        """
        return {
            "version": 2,
            "epoch": self._epoch,
            "position": self._position,
            "samples": self.samples,
            "split": self.config.split,
            "seed": self.config.seed,
            "shuffle": self._shuffle,
            "data": self.source.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader stood.

        Raises ConfigError where the state is not of these very samples in this very order.
        """
        mine = self.state_dict()
        for name in ("version", "samples", "split", "seed", "shuffle", "data"):
            if state.get(name) != mine[name]:
                raise ConfigError(f"{_OTHER.get(name, f'the {name}')} {state.get(name)!r} then and {mine[name]!r} now")
        epoch, position = state.get("epoch"), state.get("position")
        if not isinstance(epoch, int) or not isinstance(position, int) or epoch < 0:
            raise ConfigError(f"the loader's state has epoch {epoch!r} and position {position!r}")
        if not 0 <= position < self.samples:
            raise ConfigError(f"the loader's state has position {position}, want one in [0, {self.samples - 1}]")
        self._seek(epoch, position)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        if (self._epoch, self._position) != (epoch, 0):
            self._seek(epoch, 0)

    def _seek(self, epoch: int, position: int) -> None:
        while any(flight.missing for flight in self._flights):
            self._collect()
        self._free.extend(flight.slot for flight in self._flights)
        self._flights.clear()
        self._handed_out = 0
        self._epoch, self._position, self._abandoned = epoch, position, False

    # Batches

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch: all of it, unless a state was loaded.

        Raises DataError, naming the sample, where one cannot be decoded, and where decode processes die or hang again
        and again; where that happens once, one line says it.
        """
        for batch in self.held_batches():
            yield batch
            self.release()

    def held_batches(self) -> Iterator[Batch]:
        """As iteration, but each batch stays valid until it is given back with :meth:`release`, oldest first.

        For whoever copies batches to a device while others follow; at most ``slots`` can be held at once.
        """
        if self._pool.closed:
            raise RuntimeError("the loader is closed")
        if self._abandoned:
            self._seek(self._epoch + 1, 0)
        epoch = self._epoch
        self._abandoned = True
        while self._epoch == epoch:
            batch = self._next()
            self._abandoned = self._epoch == epoch
            yield batch

    def _next(self) -> Batch:
        start = time.perf_counter()
        self._dispatch()
        waited = False
        while self._handed_out == len(self._flights):
            if not self._delivery or not self._free:
                raise RuntimeError(f"all {self.config.slots} slots are held: release a batch before taking the next")
            waited = True
            self._fetch(self._delivery)
        flight = self._flights[self._handed_out]
        waited = waited or flight.missing > 0
        self._collect(wait=False)
        while flight.missing:
            self._collect()
        wait_s = time.perf_counter() - start if waited else 0.0
        self._pool.restarts = 0
        self._handed_out += 1
        self.read_whole += flight.read_whole
        self.damaged += flight.damaged
        self.replaced += flight.replaced
        self._epoch, self._position = _behind(flight, self.samples)
        slot = self.ring.slots[flight.slot]
        return Batch(
            images=torch.from_numpy(slot.images(self.config.size_at(flight.epoch))[: flight.size]),
            labels=torch.from_numpy(slot.labels[: flight.size]),
            indices=torch.from_numpy(slot.indices[: flight.size]),
            global_size=flight.global_size,
            epoch=flight.epoch,
            end=flight.end,
            wait_s=wait_s,
            ready=sum(not later.missing for later in islice(self._flights, self._handed_out, None)),
        )

    def release(self) -> None:
        """Give back the batch that was taken first: its memory is filled again at once."""
        if self._handed_out:  # nothing is held after a seek
            self._handed_out -= 1
            self._free.append(self._flights.popleft().slot)
            self._dispatch()

    def _dispatch(self) -> None:
        """Put the next batches' rows on the queue, as long as there are free slots."""
        while self._free and self._queued < DISPATCH_BELOW:
            last = self._flights[-1] if self._flights else None
            epoch, position = _behind(last, self.samples) if last else (self._epoch, self._position)
            indices = batch_indices(
                self._order(epoch),
                position,
                batch_size=self.config.batch_size,
                rank=self.config.rank,
                world_size=self.config.world_size,
            )
            end = min(position + self._global_batch, self.samples)
            if self._delivery and not self._is_here(self._delivery, epoch, position, end):
                break
            number, size = self._free.popleft(), len(indices)
            self.ring.slots[number].wanted[:size] = indices
            self._flights.append(
                _Flight(slot=number, size=size, global_size=end - position, epoch=epoch, end=end, missing=size)
            )
            for first in range(0, size, self._rows):
                self._queued += 1
                self._pool.send(TASK.pack(epoch, number, first, min(first + self._rows, size)))

    def _fetch(self, delivery: Delivery) -> None:
        """Wait for shards of the next batch. Raises DataError where they cannot be had."""
        try:
            delivery.wait()
            self._dispatch()
        except DataError:
            self.close()
            raise

    def _is_here(self, delivery: Delivery, epoch: int, position: int, end: int) -> bool:
        """Whether the shards of a batch are there; those of the batches that are being decoded stay there too."""
        oldest = next((flight for flight in self._flights if flight.missing), None)
        begin = (oldest.epoch, oldest.end - oldest.global_size) if oldest else (epoch, position)
        return delivery.ready(begin, (epoch, position), end, self._order)

    def _order(self, epoch: int) -> Indices:
        if epoch not in self._orders:
            order = self._new_order(epoch)
            # Two epochs are under way at most: the one that ends and the one that is prefetched.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return self._orders[epoch]

    def _new_order(self, epoch: int) -> Indices:
        config = self.config
        if self._shuffle.startswith("block"):
            window = config.shuffle_window
            return block_order(self.samples, self.source.first, seed=config.seed, epoch=epoch, window=window)
        return epoch_order(self.samples, seed=config.seed, epoch=epoch, shuffle=config.training)

    def _collect(self, *, wait: bool = True) -> None:
        """Take note of what the workers have done; with ``wait``, of one thing at least."""
        while message := self._pool.receive(wait=wait):
            self._queued -= 1
            _, slot, first, end = TASK.unpack_from(message)
            read_whole, damaged, replaced, failed = DONE.unpack_from(message, TASK.size)
            text = message[TASK.size + DONE.size :].decode(errors="replace")
            if failed:
                self.close()
                raise DataError(text)
            for line in filter(None, text.split("\0")):
                said = self._named.setdefault(line.partition(" ")[0], set())
                if len(said) < _NAMED:
                    said.add(line)
                    advise(line)
            flight = next(flight for flight in self._flights if flight.slot == slot)
            flight.missing -= end - first
            flight.read_whole += read_whole
            flight.damaged += damaged
            flight.replaced += replaced
            wait = False

    # Ends

    def close(self) -> None:
        """End the decode processes and let go of the memory. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _behind(flight: _Flight, samples: int) -> tuple[int, int]:
    """Epoch and position behind a batch."""
    return (flight.epoch, flight.end) if flight.end < samples else (flight.epoch + 1, 0)


def _shuffle(config: PipelineConfig, source: Source) -> str:
    """The order in one word: with the seed, all that it depends on."""
    if not config.training:
        return "none"
    if config.shuffle == "global" or (config.shuffle == "auto" and not config.place.remote):
        return "global"
    if not isinstance(source, Shards):
        raise ConfigError(
            f"shuffle='block' keeps shards together, {config.root} holds single files: "
            "make_shards.py makes shards of them"
        )
    return f"block of {config.shuffle_window}"


def _shut_down(pool: WorkerPool, ring: Ring, source: Source, delivery: Delivery | None) -> None:
    pool.close()
    if delivery:
        delivery.close()
    ring.close()
    source.close()


def _auto_workers(config: PipelineConfig) -> int:
    """All cores but one for the trainer, shared among the ranks of this machine."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", config.world_size))
    return max(1, available_cores() // ranks_here - 1)


def build_loader(config: PipelineConfig) -> Loader:
    """Open the data, start the decode processes, and hand out the loader.

    Raises ConfigError for a wrong call and DataError for data that is missing or damaged, each in one clear line.
    """
    loader = Loader(config)
    if line := slow_source_advice(loader.source):
        advise(line)
    return loader
