"""The ring: host memory for a few batches, allocated once, shared with the decode processes, used again and again.

The memory has no name (memfd), so nothing can be left behind in /dev/shm: it is gone with the last process that maps
it, however that process ends; and the 64 MB that a container grants /dev/shm do not limit it.
"""

from __future__ import annotations

import mmap
import os
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

_ALIGN = 4096  # slots begin on a page, so that each can be pinned


def anonymous_file(size: int) -> int:
    """A file descriptor of ``size`` bytes of shared memory without a name. The caller closes it."""
    fd = os.memfd_create("headrace", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


class Slot:
    """One batch's worth of host memory, as numpy views of the shared pages.

    labels, indices: int64 [B], what is there; wanted: int64 [B], the samples asked for.
    """

    def __init__(self, memory: npt.NDArray[np.uint8], batch_size: int, image_size: int):
        images, labels = batch_size * image_size * image_size * 3, batch_size * 8
        self._pixels, self._batch_size = memory[:images], batch_size
        rest = memory[_up(images, 8) :]
        self.labels = rest[:labels].view(np.int64)
        self.indices = rest[labels : 2 * labels].view(np.int64)
        self.wanted = rest[2 * labels : 3 * labels].view(np.int64)

    def images(self, size: int) -> npt.NDArray[np.uint8]:
        """uint8 [B, size, size, 3], in one piece; ``size`` is at most the ring's."""
        return self._pixels[: self._batch_size * size * size * 3].reshape(self._batch_size, size, size, 3)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class Ring:
    """``slots`` slots in one piece of shared memory. Whoever made it, or mapped it, closes it.

    ``image_size``: of the largest pictures that they are to hold.
    """

    def __init__(self, *, slots: int, batch_size: int, image_size: int, fd: int | None = None):
        """Allocate the memory, or map what another process allocated as ``fd``, with the same numbers."""
        slot_bytes = _up(_up(batch_size * image_size * image_size * 3, 8) + 3 * 8 * batch_size, _ALIGN)
        self.fd = anonymous_file(slots * slot_bytes) if fd is None else fd
        self.memory = np.frombuffer(mmap.mmap(self.fd, slots * slot_bytes), np.uint8)
        self.slots = [
            Slot(self.memory[i * slot_bytes : (i + 1) * slot_bytes], batch_size, image_size) for i in range(slots)
        ]

    def close(self) -> None:
        """Let go. The pages live on while somebody holds a batch, and no longer."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.slots = []
        self.memory = np.empty(0, np.uint8)


def share(value: Any) -> int:
    """Pickle ``value`` into anonymous shared memory; its numpy arrays lie there once for all who map them."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    sizes = np.array([len(head), *(r.nbytes for r in raw)], np.int64)
    starts = np.cumsum([0, *(_up(int(size), 64) for size in sizes)], dtype=np.int64) + _up(8 * (len(sizes) + 1), 64)
    fd = anonymous_file(int(starts[-1]) or 1)
    with mmap.mmap(fd, int(starts[-1])) as memory:
        memory[:8] = len(sizes).to_bytes(8, "little")
        memory[8 : 8 + sizes.nbytes] = sizes.tobytes()
        for start, piece in zip(starts.tolist(), (memoryview(head), *raw), strict=False):
            memory[start : start + piece.nbytes] = piece
    return fd


def receive(fd: int) -> Any:
    """What another process shared. Arrays are read-only views of the shared pages."""
    memory = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    count = int.from_bytes(memory[:8], "little")
    sizes = np.frombuffer(memory[8 : 8 + 8 * count], np.int64).tolist()
    start, pieces = _up(8 * (count + 1), 64), []
    for size in sizes:
        pieces.append(memory[start : start + size])
        start += _up(size, 64)
    return pickle.loads(pieces[0], buffers=pieces[1:])  # noqa: S301 - our own parent wrote it
