"""The decode process: takes tasks (rows of a slot) from a shared queue until it closes, and fills them.

All workers read one queue, so whoever is free takes the next rows and a slow picture delays nobody else. The queue is
a socket that keeps messages whole; when the trainer ends, in whatever way, it closes, and the worker ends.
This process never imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import signal
import socket
import struct
import traceback

import numpy as np
import numpy.typing as npt

from .augment import Crops, center_crops, random_resized_crops
from .backends import BACKENDS, Backend
from .config import PipelineConfig
from .errors import DataError, PictureError
from .heartbeat import Heartbeat
from .pictures import I64, Pictures
from .recording import Recorder
from .ring import Ring, Slot, receive
from .source import Source
from .watch import HAND_OVER, UNWATCHED, WAIT, Watch

TASK = struct.Struct("<qiii")  # epoch, slot, first row, end row
DONE = struct.Struct("<iii?")  # behind the task: pictures read whole, damaged, replaced; failed. Lines may follow
MESSAGE_BYTES = 16384
_TRIES = 16  # samples that may take the place of one that cannot be decoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to know, sent once."""

    config: PipelineConfig
    backend: str
    rows: int  # at most so many in one task
    source: Source  # its numpy arrays lie in shared memory or in a mapped file, once for all workers
    cores: frozenset[int]  # to run on; what starts a worker may be bound to fewer
    record: bool = False  # note each stage of each picture, when the recordings say so
    replay: bool = False  # leave the pixels of a slot as they are, for whoever measures all the rest


def make_crops(config: PipelineConfig, epoch: int, indices: I64, widths: I64, heights: I64) -> Crops:
    """The split's transform for some samples."""
    if config.training:
        return random_resized_crops(
            indices,
            widths,
            heights,
            seed=config.seed,
            epoch=epoch,
            scale=config.crop_scale,
            flip=config.flip,
        )
    return center_crops(widths, heights, resize_size=config.eval_resize, image_size=config.image_size)


def fill(
    job: Job, backend: Backend, slot: Slot, epoch: int, first: int, end: int, watch: Watch = UNWATCHED
) -> Pictures:
    """Rows ``first`` to ``end`` of a slot: from the numbers in ``slot.wanted`` to pixels, labels and ``slot.indices``.

    Hands back the pictures, which know how they were read. ``watch`` is told what is begun and done.

    Raises DataError, naming the sample, for what cannot be read or decoded and is not to be replaced.
    """
    wanted = slot.wanted[first:end]  # left as it is: whoever does this task again must find the same
    indices, replaced = wanted.copy(), dict[int, str]()
    while True:
        try:
            pictures = job.source.open(indices, watch)
            crops = make_crops(job.config, epoch, indices, pictures.widths, pictures.heights)
            watch.lap(HAND_OVER)
            backend.fill(pictures, crops, slot.images(job.config.size_at(epoch))[first:end])
            break
        except PictureError as error:
            replaced.setdefault(error.row, error.reason)
            indices[error.row] = _next_sample(job, int(wanted[error.row]), int(indices[error.row]), error)
    slot.labels[first:end], slot.indices[first:end] = pictures.labels, indices
    pictures.replaced = replaced
    return pictures


def _next_sample(job: Job, wanted: int, tried: int, error: PictureError) -> int:
    """The sample to try where ``tried`` failed in the place of ``wanted``. Raises DataError where that is the end."""
    if job.config.on_error == "fail":
        raise DataError(
            f"{job.source.name(tried)}: {error.reason} (--on-error replace takes the next instead)"
        ) from error
    # Within its shard: others may not be on this machine.
    first = job.source.first
    shard = int(np.searchsorted(first, wanted, side="right"))
    begin, end = int(first[shard - 1]), int(first[shard]) if shard < len(first) else len(job.source)
    step = (tried - wanted) % (end - begin) + 1
    if step > min(_TRIES, end - begin - 1):
        raise DataError(
            f"{job.source.name(wanted)} cannot be decoded, nor can the {step - 1} samples that follow it, "
            f"{job.source.name(tried)} the last: {error.reason}"
        ) from error
    return begin + (wanted - begin + step) % (end - begin)


def _remarks(job: Job, slot: Slot, first: int, pictures: Pictures) -> str:
    """A line for each picture that was not as it should be."""
    lines = []
    for row, reason in pictures.damaged.items():
        name = job.source.name(int(slot.indices[first + row]))
        lines.append(f"damaged picture, decoded whole as well as it goes: {name}: {reason}")
    for row, reason in pictures.replaced.items():
        gone, there = (job.source.name(int(numbers[first + row])) for numbers in (slot.wanted, slot.indices))
        cost = "" if job.config.training else ", and counts twice in the score"
        lines.append(f"replaced picture: {gone}: {reason}; {there} takes its place{cost}")
    return "\0".join(lines)


def serve(job: Job, ring: Ring, watch: Watch, tasks: socket.socket, results: socket.socket) -> None:
    """Fill rows until the queue closes."""
    kind = Replay if job.replay else BACKENDS[job.backend]()
    backends: dict[int, Backend] = {}  # by the size of the pictures; where an epoch changes it, both are in use
    try:
        while message := tasks.recv(TASK.size):
            watch.lap(WAIT)
            epoch, number, first, end = TASK.unpack(message)
            slot, size = ring.slots[number], job.config.size_at(epoch)
            done = DONE.pack(0, 0, 0, True)
            try:
                backend = backends.get(size) or backends.setdefault(size, kind(image_size=size, max_pictures=job.rows))
                pictures = fill(job, backend, slot, epoch, first, end, watch)
                text = _remarks(job, slot, first, pictures)
                done = DONE.pack(len(pictures.read_whole), len(pictures.damaged), len(pictures.replaced), False)
            except DataError as error:
                text = str(error)
            except Exception:  # noqa: BLE001 - reported where the trainer sees it; the loader ends the run
                text = f"a decode process failed:\n{traceback.format_exc()}"
            answer = message + done + text.encode(errors="backslashreplace")  # a name on a disk may be any bytes
            results.send(answer[:MESSAGE_BYTES])
            watch.lap(HAND_OVER)
            watch.rest()
    finally:
        for backend in backends.values():
            backend.close()


class Replay:
    """The backend that does nothing: each slot is handed out with the pixels that it held before."""

    def __init__(self, *, image_size: int, max_pictures: int):
        pass

    def fill(self, pictures: Pictures, crops: Crops, out_NHWC: npt.NDArray[np.uint8]) -> None:
        """Leave all as it is."""

    def close(self) -> None:
        """Nothing is held."""


def main(
    ring_fd: int, job_fd: int, heartbeats_fd: int, recordings_fd: int, tasks_fd: int, results_fd: int, number: int
) -> None:
    """What decode process ``number`` of a pool runs; the descriptors are inherited from the loader."""
    with contextlib.suppress(RuntimeError):  # there is no stderr
        faulthandler.register(signal.SIGUSR1)  # shows where it hangs, be it in C
    job: Job = receive(job_fd)
    with contextlib.suppress(OSError):  # where the system has taken cores away meanwhile, what is left will do
        os.sched_setaffinity(0, job.cores)
    config = job.config
    ring = Ring(slots=config.slots, batch_size=config.batch_size, image_size=config.largest_size, fd=ring_fd)
    with (
        contextlib.suppress(ConnectionError),  # the trainer is gone
        socket.socket(fileno=tasks_fd) as tasks,
        socket.socket(fileno=results_fd) as results,
    ):
        watch: Watch = Heartbeat(heartbeats_fd, number)
        if job.record:
            watch = Recorder(watch, recordings_fd, number)
        serve(job, ring, watch, tasks, results)
