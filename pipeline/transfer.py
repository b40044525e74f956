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
from .loader import Batch, Loader


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """N samples on the device, ready for the model."""

    images: Tensor  # [N, 3, S, S], normalised to [-1, 1], in the device's memory format
    labels: Tensor  # int64 [N]
    wait_s: float  # how long the trainer waited for the host


def normalise(images_NHWC: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """uint8 [N, S, S, 3] -> [N, 3, S, S] in [-1, 1]: (x / 255 - 0.5) / 0.5, computed in float32.

    The permuted view of NHWC already is channels_last, so on a device that takes it nothing is moved.
    """
    images = images_NHWC.permute(0, 3, 1, 2).to(torch.float32).sub_(127.5).div_(127.5)
    return images.to(dtype).contiguous(memory_format=memory_format)


class Feed:
    """Batches of one loader on one device. Iterating it is one epoch, as with the loader."""

    def __init__(self, loader: Loader, device: Device, dtype: torch.dtype = torch.float32):
        self.loader = loader
        self.device = device
        self.dtype = dtype
        self._unpin = pin_ring(device, torch.from_numpy(loader.ring.memory))
        self._stream = device.new_stream() if device.asynchronous else None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[DeviceBatch]:
        if self._stream is None:
            for batch in self.loader:
                yield DeviceBatch(
                    images=normalise(batch.images, self.dtype, self.device.memory_format),
                    labels=batch.labels.clone(),
                    wait_s=batch.wait_s,
                )
        else:
            yield from self._overlapped()

    def _overlapped(self) -> Iterator[DeviceBatch]:
        """Stay one batch ahead: the next copy is queued before the step that uses this one."""
        copying: deque[tuple[Any, DeviceBatch]] = deque()
        for batch in self.loader.held_batches():
            copying.append(self._copy(batch))
            if len(copying) > 1:
                yield self._arrive(*copying.popleft())
        while copying:
            yield self._arrive(*copying.popleft())

    def _copy(self, batch: Batch) -> tuple[Any, DeviceBatch]:
        with self.device.use_stream(self._stream):
            images = batch.images.to(self.device.torch_device, non_blocking=True)
            labels = batch.labels.to(self.device.torch_device, non_blocking=True)
            event = self.device.new_event()
            event.record(self._stream)
        return event, DeviceBatch(images=images, labels=labels, wait_s=batch.wait_s)

    def _arrive(self, event: Any, batch: DeviceBatch) -> DeviceBatch:
        event.synchronize()  # the host waits for the copy, not for the step: the slot is free again
        self.loader.release()
        compute = self.device.current_stream()
        compute.wait_event(event)
        for tensor in (batch.images, batch.labels):
            tensor.record_stream(compute)  # its memory must outlive its use there
        images = normalise(batch.images, self.dtype, self.device.memory_format)
        return dataclasses.replace(batch, images=images)

    def close(self) -> None:
        """Unpin the ring. The loader is closed by its owner, after this."""
        if self._stream is not None:
            self.device.synchronize()
        self._unpin()
