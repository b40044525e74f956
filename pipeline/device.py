"""The devices, in one table. Nothing else in the project asks which device it is."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError
from .host import has_bf16_instructions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What the pipeline and the trainer need to know of a kind of device."""

    kind: str
    module: str | None  # the attribute of torch with streams, events and synchronize; None: the host itself
    memory_format: torch.memory_format  # the layout in which its convolutions are fastest
    bf16_advice: Callable[[], str | None]  # one line where bfloat16 is slow on this machine
    pin: Callable[[Tensor], bool] | None  # page-lock shared host memory so that copies can be asynchronous
    unpin: Callable[[Tensor], None] | None = None
    index: int = 0

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.kind, self.index) if self.module else torch.device(self.kind)

    @property
    def _api(self) -> Any:
        return getattr(torch, self.module) if self.module else None

    @property
    def asynchronous(self) -> bool:
        """Whether work is queued on streams."""
        return self.module is not None

    def is_available(self) -> bool:
        return self._api is None or bool(self._api.is_available())

    def count(self) -> int:
        return 1 if self._api is None else int(self._api.device_count())

    def synchronize(self) -> None:
        """Wait for all queued work."""
        if self._api is not None:
            self._api.synchronize(self.torch_device)

    def new_stream(self) -> Any:
        return self._api.Stream(device=self.torch_device)

    def current_stream(self) -> Any:
        return self._api.current_stream(self.torch_device)

    def use_stream(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        context: contextlib.AbstractContextManager[Any] = self._api.stream(stream)
        return context

    def new_event(self) -> Any:
        return self._api.Event()

    def name(self) -> str:
        """The model's name where the device tells it."""
        if self._api is None:
            return self.kind
        return f"{self.kind}:{self.index} {self._api.get_device_name(self.index)}"


def _pin_cuda(memory: Tensor) -> bool:
    """Register the ring's shared pages with the driver; they cannot be allocated pinned, for they are shared."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return int(runtime.cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0


def _unpin_cuda(memory: Tensor) -> None:
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    runtime.cudaHostUnregister(memory.data_ptr())


def _no_advice() -> None:
    return None


def _cpu_bf16_advice() -> str | None:
    if has_bf16_instructions():
        return None
    return (
        "this processor has no bfloat16 instructions (AVX512-BF16, AMX): --amp is several times slower than fp32 on it "
        "(10 times was measured); leave it out"
    )


DEVICES = {
    "cuda": Device(
        kind="cuda",
        module="cuda",
        memory_format=torch.channels_last,
        bf16_advice=_no_advice,
        pin=_pin_cuda,
        unpin=_unpin_cuda,
    ),
    "cpu": Device(
        kind="cpu",
        module=None,
        memory_format=torch.channels_last,
        bf16_advice=_cpu_bf16_advice,
        pin=None,
    ),
}


def find_device(name: str) -> Device:
    """``auto``, a kind, or a kind with a number such as ``cuda:1``. Raises ConfigError where it is not there."""
    if name == "auto":
        return next(device for device in DEVICES.values() if device.is_available())
    kind, _, number = name.partition(":")
    if kind not in DEVICES or not (number.isdigit() or not number):
        raise ConfigError(f"device must be auto, {' or '.join(DEVICES)}, or such a name with :N, was {name!r}")
    device = DEVICES[kind]
    if not device.is_available():
        raise ConfigError(f"device {kind} is not available here: this torch ({torch.__version__}) does not see one")
    index = int(number or 0)
    if index >= device.count():
        raise ConfigError(f"device {name} is not available: there is {kind}:0 to {kind}:{device.count() - 1}")
    return dataclasses.replace(device, index=index)


def pin_ring(device: Device, memory: Tensor) -> Callable[[], None]:
    """Page-lock the ring for a device; returns what undoes it. One line says what a refusal costs."""
    if device.pin is None:
        return lambda: None
    if not device.pin(memory):
        warnings.warn(
            f"{device.kind} would not pin {memory.numel() / 1e6:.0f} MB of host memory: copies to the device will "
            "not overlap with the step (check `ulimit -l`, or use fewer slots)",
            RuntimeWarning,
            stacklevel=2,
        )
        return lambda: None
    unpin = device.unpin
    return lambda: unpin(memory) if unpin else None
