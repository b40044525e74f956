"""The decode process: takes tasks (rows of a slot) from a shared queue until it closes, and fills them.

All workers read one queue, so whoever is free takes the next rows and a slow picture delays nobody else. The queue is
a socket that keeps messages whole; when the trainer ends, in whatever way, it closes, and the worker ends.
This process never imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import struct
import traceback

from .augment import Crops, center_crops, random_resized_crops
from .backends import BACKENDS, Backend
from .config import PipelineConfig
from .errors import DataError, PictureError
from .pictures import I64, Pictures
from .ring import Ring, Slot, receive
from .source import Source

TASK = struct.Struct("<qiii")  # epoch, slot, first row, end row
DONE = struct.Struct("<iiiii?")  # slot, first row, end row; pictures read whole, damaged; failed. Text may follow
MESSAGE_BYTES = 16384


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to know, sent once."""

    config: PipelineConfig
    backend: str
    rows: int  # at most so many in one task
    source: Source  # its numpy arrays lie in shared memory or in a mapped file, once for all workers
    cores: frozenset[int]  # to run on; what starts a worker may be bound to fewer


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


def fill(job: Job, backend: Backend, slot: Slot, epoch: int, first: int, end: int) -> Pictures:
    """Rows ``first`` to ``end`` of a slot: from the numbers in ``slot.indices`` to pixels and labels.

    Hands back the pictures, which know how they were read.

    Raises DataError, naming the sample, for what cannot be read or decoded.
    """
    indices = slot.indices[first:end].copy()
    try:
        pictures = job.source.open(indices)
        crops = make_crops(job.config, epoch, indices, pictures.widths, pictures.heights)
        backend.fill(pictures, crops, slot.images[first:end])
    except PictureError as error:
        raise DataError(f"{job.source.name(int(indices[error.row]))}: {error.reason}") from error
    slot.labels[first:end] = pictures.labels
    return pictures


def serve(job: Job, ring: Ring, tasks: socket.socket, results: socket.socket) -> None:
    """Fill rows until the queue closes."""
    backend = BACKENDS[job.backend]()(image_size=job.config.image_size, max_pictures=job.rows)
    try:
        while message := tasks.recv(TASK.size):
            epoch, slot, first, end = TASK.unpack(message)
            read_whole = damaged = 0
            failed, text = True, ""
            try:
                pictures = fill(job, backend, ring.slots[slot], epoch, first, end)
                failed, read_whole, damaged = False, len(pictures.read_whole), len(pictures.damaged)
                for row, reason in pictures.damaged.items():
                    text = f"{job.source.name(int(ring.slots[slot].indices[first + row]))}: {reason}"
            except DataError as error:
                text = str(error)
            except Exception:  # noqa: BLE001 - reported where the trainer sees it; the loader ends the run
                text = f"a decode process failed:\n{traceback.format_exc()}"
            done = DONE.pack(slot, first, end, read_whole, damaged, failed)
            results.send(done + text.encode()[: MESSAGE_BYTES - DONE.size])
    finally:
        backend.close()


def main(ring_fd: int, job_fd: int, tasks_fd: int, results_fd: int) -> None:
    """What a decode process runs; the descriptors are inherited from the loader."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's: its end closes the queue
    job: Job = receive(job_fd)
    with contextlib.suppress(OSError):  # where the system has taken cores away meanwhile, what is left will do
        os.sched_setaffinity(0, job.cores)
    config = job.config
    ring = Ring(slots=config.slots, batch_size=config.batch_size, image_size=config.image_size, fd=ring_fd)
    with (
        contextlib.suppress(ConnectionError),  # the trainer is gone
        socket.socket(fileno=tasks_fd) as tasks,
        socket.socket(fileno=results_fd) as results,
    ):
        serve(job, ring, tasks, results)
