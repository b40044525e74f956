"""Slot -> device: one contiguous uint8 copy on a side stream, while the step before is still computing.

Permute, cast and normalise happen on the device: a quarter of the bytes cross the bus, and the host does no
arithmetic on pixels. A slot is reused only after its copy's event.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .device import Device, pin_ring
from .idle import IdleTime
from .loader import Batch, Loader


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """N samples on the device, ready for the model."""

    images: Tensor  # [N, 3, S, S], normalised to [-1, 1], in the device's memory format
    labels: Tensor  # int64 [N]
    global_size: int  # samples that all ranks together have in this step
    end: int  # samples of the epoch that all ranks together have behind them with this step
    wait_s: float  # how long the trainer waited for the host
    ready: int  # batches behind it that were decoded, and waited in the ring, when the loader handed it out


def normalise(images_NHWC: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """uint8 [N, S, S, 3] -> [N, 3, S, S] in [-1, 1]: (x / 255 - 0.5) / 0.5, computed in float32.

    The permuted view of NHWC already is channels_last, so on a device that takes it nothing is moved.
    """
    images = images_NHWC.permute(0, 3, 1, 2).to(torch.float32).sub_(127.5).div_(127.5)
    return images.to(dtype).contiguous(memory_format=memory_format)


class Feed:
    """Batches of one loader on one device. Iterating it is one epoch, as with the loader."""

    def __init__(self, loader: Loader, device: Device, dtype: torch.dtype = torch.float32):
        """``dtype``: what the model takes. The loader is closed by its owner, after the feed."""
        self.loader = loader
        self.device = device
        self.dtype = dtype
        self._ring = torch.from_numpy(loader.ring.memory)
        self._pinned = pin_ring(device, self._ring)
        self._stream = device.new_stream() if device.asynchronous else None
        self._idle = IdleTime(device)
        self._waited_s = 0.0

    def stall_s(self) -> float:
        """How long the device has waited for the host in all epochs, as far as is known by now. Nobody waits for it.

        A device that computes while the host waits for it has waited as long as the host.
        """
        return self._waited_s if self._stream is None else self._idle.total_s()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[DeviceBatch]:
        if self._stream is None:
            for batch in self.loader:
                self._waited_s += batch.wait_s
                yield self._normalised(_on_device(batch, batch.images, batch.labels.clone()))
        else:
            yield from self._overlapped()

    def _overlapped(self) -> Iterator[DeviceBatch]:
        """Stay one batch ahead: the next copy is queued before the step that uses this one. The host does not wait."""
        ahead: tuple[DeviceBatch, Any] | None = None
        copied: deque[Any] = deque()  # events of the copies whose slots are still held, oldest first
        try:
            for batch in self.loader.held_batches():
                following, event = self._copy(batch), self._event()
                copied.append(event)
                if ahead is not None:
                    yield self._handed_over(*ahead)
                    self._idle.begin()
                ahead = following, event
                self._release(copied, keep=self.loader.config.slots - 1)
            if ahead is not None:
                yield self._handed_over(*ahead)
            self._release(copied, keep=0)
        finally:  # an epoch that is broken off: its slots will be filled anew
            while copied:
                copied.popleft().synchronize()

    def _copy(self, batch: Batch) -> DeviceBatch:
        """Queue a slot's way to the device: one contiguous copy of the images, one of the labels."""
        images, labels = batch.images, batch.labels
        if not self._pinned:
            images, labels = images.pin_memory(), labels.pin_memory()
        with self.device.use_stream(self._stream):
            return _on_device(
                batch,
                images.to(self.device.torch_device, non_blocking=True),
                labels.to(self.device.torch_device, non_blocking=True),
            )

    def _event(self) -> Any:
        event = self.device.new_event()
        event.record(self._stream)
        return event

    def _handed_over(self, batch: DeviceBatch, copied: Any) -> DeviceBatch:
        """The batch for the model; the device is idle until it has arrived."""
        self._arrived(batch, copied)
        self._idle.end()
        return self._normalised(batch)

    def _arrived(self, batch: DeviceBatch, copied: Any) -> None:
        """Have the model's stream wait for the copy."""
        compute = self.device.current_stream()
        compute.wait_event(copied)
        for tensor in (batch.images, batch.labels):
            tensor.record_stream(compute)  # its memory must outlive its use there

    def _release(self, copied: deque[Any], *, keep: int) -> None:
        """Give slots back to the loader, once they have been copied; wait only where more than ``keep`` are held."""
        while copied:
            if not copied[0].query():
                if len(copied) <= keep:
                    return
                copied[0].synchronize()
            copied.popleft()
            self.loader.release()

    def _normalised(self, batch: DeviceBatch) -> DeviceBatch:
        images = normalise(batch.images, self.dtype, self.device.memory_format)
        return dataclasses.replace(batch, images=images)

    def close(self) -> None:
        """Unpin the ring."""
        self.device.synchronize()
        if self._pinned:
            self.device.unpin(self._ring)
            self._pinned = False


def _on_device(batch: Batch, images: Tensor, labels: Tensor) -> DeviceBatch:
    return DeviceBatch(
        images=images,
        labels=labels,
        global_size=batch.global_size,
        end=batch.end,
        wait_s=batch.wait_s,
        ready=batch.ready,
    )
