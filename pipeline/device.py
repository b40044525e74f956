"""The devices, in one table. Nothing else in the project asks which device it is."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .advice import advise
from .errors import ConfigError
from .host import has_bf16_instructions, hold_cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What the pipeline and the trainer need to know of a kind of device."""

    kind: str
    module: str | None  # the attribute of torch with streams, events and synchronize; None: the host itself
    memory_format: torch.memory_format  # the layout in which its convolutions are fastest
    low_precision: torch.dtype  # what --amp computes in
    collectives: str  # the backend of torch.distributed
    compiles: bool = True  # whether torch.compile knows how to write kernels for it
    load: Callable[[], str | None] = lambda: None  # makes torch know the device; says in one line why it cannot
    begin: Callable[[], None] = lambda: None  # settings, once the device is chosen
    pin: Callable[[Tensor], bool] | None = None  # page-lock shared host memory, so that copies are asynchronous
    unpin: Callable[[Tensor], None] = lambda _: None
    bf16_advice: Callable[[], str | None] = lambda: None  # one line where bfloat16 is slow on this machine
    overflow_flag: Callable[[], Any] = lambda: None  # of chips where an overflow never becomes inf (LossScale)
    advice: str | None = None  # what its user should know, said once
    images_per_s: float | None = None  # sim: the rate at which it takes pictures, and does nothing with them
    index: int = 0

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.kind, self.index) if self.module else torch.device("cpu")

    @property
    def _api(self) -> Any:
        return getattr(torch, self.module) if self.module else None

    @property
    def asynchronous(self) -> bool:
        """Whether work is queued on streams."""
        return self.module is not None

    def count(self) -> int:
        """How many there are of the kind. The host is one."""
        return 1 if self._api is None else int(self._api.device_count())

    def use(self) -> None:
        """Make it the current device of this process, with the settings that suit it."""
        if self._api is not None:
            self._api.set_device(self.torch_device)  # first: settings may open the card that is current
        self.begin()

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

    def new_event(self, *, timed: bool = False) -> Any:
        return self._api.Event(enable_timing=timed)

    def name(self) -> str:
        """The model's name where the device tells it."""
        if self._api is None:
            return self.kind
        return f"{self.kind}:{self.index} {self._api.get_device_name(self.index)}"


# Ascend

_ACL_HOST_REG_PINNED = 0x10000000  # for npuHostRegister: page-locked, not mapped into the card's addresses
# As Ascend advises for training: operators are issued by a second thread; hot threads have cores of their own.
_ASCEND_SETTINGS = {"TASK_QUEUE_ENABLE": "2", "CPU_AFFINITY_CONF": "2"}


def _load_npu() -> str | None:
    try:
        installed = importlib.metadata.version("torch_npu")
    except importlib.metadata.PackageNotFoundError:
        return f"torch_npu is not installed: pip install torch-npu=={_release(torch.__version__)}"
    if _release(installed) != _release(torch.__version__):
        return (
            f"torch_npu {installed} does not pair with torch {torch.__version__}: both must be of one version: "
            f"pip install torch-npu=={_release(torch.__version__)}"
        )
    for name, value in _ASCEND_SETTINGS.items():
        os.environ.setdefault(name, value)
    hold_cores()  # before this thread is bound to one of them
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return (
            f"torch_npu {installed} cannot be loaded ({reason}): CANN is not set up in this shell: "
            "source /usr/local/Ascend/ascend-toolkit/set_env.sh, or where yours is installed"
        )
    import torch_npu

    if not torch_npu.npu.device_count():
        return (
            f"torch_npu {installed} sees no card: `npu-smi info` lists what the driver sees, "
            f"ASCEND_RT_VISIBLE_DEVICES is {os.environ.get('ASCEND_RT_VISIBLE_DEVICES', 'not set')}"
        )
    return None


def _release(version: str) -> str:
    """2.13.0+cpu -> 2.13.0; 2.7.1.post2 -> 2.7.1: what has to be the same in a pair."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found[0] if found else version


def _begin_npu() -> None:
    import torch_npu

    torch_npu.npu.set_compile_mode(jit_compile=False)  # operators come as binaries; a JIT would compile each shape


def _pin_npu(memory: Tensor) -> bool:
    """Register the ring's shared pages with the runtime, and see that torch_npu takes them for pinned.

    It asks the runtime, which knows from driver 25.5 and CANN 8.5 on. Before, it would wait for each copy from them.
    """
    import torch_npu

    if not hasattr(torch_npu.npu, "npurt"):  # older than 2.12
        return False
    runtime: Any = torch_npu.npu.npurt()
    if int(runtime.npuHostRegister(memory.data_ptr(), memory.numel(), _ACL_HOST_REG_PINNED)) != 0:
        return False
    if memory.is_pinned():
        return True
    _unpin_npu(memory)
    return False


def _unpin_npu(memory: Tensor) -> None:
    import torch_npu

    runtime: Any = torch_npu.npu.npurt()
    runtime.npuHostUnregister(memory.data_ptr())


class _FloatStatus:
    """The overflow flag of the Atlas training series (910A): half results saturate there instead of becoming inf."""

    def clear(self) -> None:
        import torch_npu

        torch_npu.npu_clear_float_status(torch.zeros(8, device="npu"))

    def raised(self) -> Tensor:
        """1.0 where something has overflowed since the last ``clear``, else 0.0: float32 []."""
        import torch_npu

        status: Tensor = torch_npu.npu_get_float_status(torch.zeros(8, device="npu"))
        return (status[0] != 0).float()


def _float_status() -> _FloatStatus | None:
    import torch_npu

    return None if torch_npu.npu.utils.is_support_inf_nan() else _FloatStatus()


# CUDA and the CPU


def _load_cuda() -> str | None:
    if torch.cuda.is_available():
        return None
    return f"this torch ({torch.__version__}) does not see one"


def _begin_cuda() -> None:
    torch.backends.cudnn.benchmark = True  # every batch has one shape: the fastest convolution is worth a search


def _pin_cuda(memory: Tensor) -> bool:
    """Register the ring's shared pages with the driver; they cannot be allocated pinned, for they are shared."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return int(runtime.cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0


def _unpin_cuda(memory: Tensor) -> None:
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    runtime.cudaHostUnregister(memory.data_ptr())


_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # mallopt(3)


def _begin_cpu() -> None:
    """Have freed memory kept for the next step: the kernel would hand it out anew page by page, each filled with zeros.

    A step on a CPU frees and asks for some hundred megabytes: 2 to 3 % of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _cpu_bf16_advice() -> str | None:
    if has_bf16_instructions():
        return None
    return (
        "this processor has no bfloat16 instructions (AVX512-BF16, AMX): --amp is several times slower than fp32 on it "
        "(10 times was measured); leave it out"
    )


DEVICES = {
    "npu": Device(
        kind="npu",
        module="npu",
        memory_format=torch.contiguous_format,
        low_precision=torch.float16,
        collectives="hccl",
        compiles=False,
        load=_load_npu,
        begin=_begin_npu,
        pin=_pin_npu,
        unpin=_unpin_npu,
        overflow_flag=_float_status,
        advice="tensors on npu are contiguous: torch_npu refuses channels_last, the card has layouts of its own",
    ),
    "cuda": Device(
        kind="cuda",
        module="cuda",
        memory_format=torch.channels_last,
        low_precision=torch.float16,
        collectives="nccl",
        load=_load_cuda,
        begin=_begin_cuda,
        pin=_pin_cuda,
        unpin=_unpin_cuda,
    ),
    "cpu": Device(
        kind="cpu",
        module=None,
        memory_format=torch.channels_last,
        low_precision=torch.bfloat16,
        collectives="gloo",
        begin=_begin_cpu,
        bf16_advice=_cpu_bf16_advice,
    ),
    "sim": Device(
        kind="sim",
        module=None,
        memory_format=torch.channels_last,
        low_precision=torch.float16,
        collectives="gloo",
    ),
}


def find_device(name: str) -> Device:
    """``auto``, a kind, a kind with a number such as ``npu:1``, or ``sim:RATExCARDS``.

    Raises ConfigError, in one line, where there is no such device here.
    """
    if name == "auto":
        return _first_there_is()
    kind, _, number = name.partition(":")
    if kind == "sim":
        return dataclasses.replace(DEVICES["sim"], images_per_s=_simulated_rate(number))
    if kind not in DEVICES or not (number.isdigit() or not number):
        raise ConfigError(f"device must be auto, {', '.join(DEVICES)}, or such a name with :N, was {name!r}")
    device = DEVICES[kind]
    if reason := device.load():
        raise ConfigError(f"device {kind} is not available here: {reason}")
    index = int(number or 0)
    if index >= device.count():
        raise ConfigError(f"device {name} is not available: there is {kind}:0 to {kind}:{device.count() - 1}")
    return dataclasses.replace(device, index=index)


def _first_there_is() -> Device:
    for kind, device in DEVICES.items():
        if kind == "npu" and importlib.util.find_spec("torch_npu") is None:
            continue  # the rule; whoever installed torch_npu wants to know why it is not used
        reason = device.load()
        if reason is None:
            return device
        if kind == "npu":
            advise(f"torch_npu is installed, but training is not on npu: {reason}")
    raise AssertionError("there is always a cpu")


def _simulated_rate(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:x(\d+))?", text)
    rate = float(found[1]) * int(found[2] or 1) if found else 0.0
    if not rate:
        raise ConfigError(f"sim takes a rate in images/s and a number of cards, such as sim:474.6x8, was 'sim:{text}'")
    return rate


def pin_ring(device: Device, memory: Tensor) -> bool:
    """Page-lock the ring for a device; ``device.unpin`` undoes it. Where it is refused, one line says what it costs."""
    if device.pin is None:
        return False
    if device.pin(memory):
        return True
    advise(
        f"{device.kind} would not pin {memory.numel() / 1e6:.0f} MB of shared host memory: each batch is copied once "
        "more, into memory that is pinned (about 0.1 ms a picture; check `ulimit -l`, or use fewer slots)"
    )
    return False
