"""torch_npu's operators, computed by this machine's processor over the emulated card's memory.

Allocating, viewing, copying, casting, pinning and waiting stay torch_npu's own code, over cann.c. Every other operator
that torch_npu registers is replaced: its tensors are looked at as tensors of the host (the memory is the same), the
processor's operator runs on them, and what is new goes into memory of the card. It runs at the call, once the
current stream, and no other, has done its work: data that another stream still copies is really not there yet.

What has no kernel says so, with its name. ``counters()`` is what has been done so far; where EMULATED_NPU_REPORT names
a folder it is written there as <pid>.json when the process ends.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What torch_npu does itself, on the host or by copies: there is nothing to compute
# fmt: off
KEPT = {
    "_copy_from_and_resize", "_has_compatible_shallow_copy_type", "_local_scalar_dense", "_pin_memory",
    "_reshape_alias", "_resize_output_", "_to_copy", "as_strided", "clone", "contiguous", "copy_",
    "empty.memory_format", "empty_like", "empty_strided", "empty_with_swapped_memory", "is_pinned", "is_set_to",
    "new_empty_strided", "record_stream", "resize_", "set_", "set_.source_Storage",
    "set_.source_Storage_storage_offset", "set_.source_Tensor", "squeeze", "squeeze.dim", "unfold", "unsqueeze",
    "view", "view_as_complex", "view_as_real",
}
KEPT_OF_NPU = {
    "_npu_dtype_cast", "_npu_dtype_cast_backward", "copy_memory_", "empty_with_format", "empty_with_swapped_memory",
    "get_npu_format", "get_storage_size", "npu_change_data_ptr", "npu_dtype_cast", "npu_dtype_cast_",
    "npu_dtype_cast_backward", "unsafe_empty_with_format",
}

# The NPU's matrix unit multiplies halves and adds up in float32; so does this, and faster than the processor's halves
IN_FLOAT32 = {
    "addbmm", "addmm", "addmv", "baddbmm", "bmm", "convolution", "convolution_overrideable", "convolution_backward",
    "convolution_backward_overrideable", "dot", "linear", "mm", "mv",
}
# fmt: on
HALVES = (torch.float16, torch.bfloat16)
LARGEST_HALF = 65504.0
HOST = torch.device("cpu")

_cann = ctypes.PyDLL("libascendcl.so")  # its functions are short: the interpreter's lock stays held
_cann.emulated_memory.restype = ctypes.c_void_p
_cann.emulated_counters.restype = ctypes.c_void_p
_calls: Counter[str] = Counter()
_libraries: list[Any] = []  # alive as long as their kernels are wanted


# ---- one memory, two views of it --------------------------------------------------------------------------------


class _Memory:
    """All of one device's memory as tensors of the host, one for each type."""

    def __init__(self, device: int):
        size = ctypes.c_size_t()
        self.address = int(_cann.emulated_memory(device, ctypes.byref(size)))
        self._storage = torch._C._construct_storage_from_data_pointer(self.address, HOST, size.value)
        self._flat: dict[torch.dtype, Tensor] = {}

    def flat(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._flat:
            whole = torch.empty(0, dtype=dtype)
            self._flat[dtype] = whole.set_(self._storage, 0, (self._storage.nbytes() // dtype.itemsize,), (1,))
        return self._flat[dtype]


_memories: dict[int, _Memory] = {}


def on_host(tensor: Tensor) -> Tensor:
    """A tensor of the card as a tensor of the host, over the same memory."""
    if not tensor.numel():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    device = tensor.get_device()
    memory = _memories.get(device) or _memories.setdefault(device, _Memory(device))
    dtype = tensor.dtype
    offset = (tensor.data_ptr() - memory.address) // dtype.itemsize
    return memory.flat(dtype).as_strided(tensor.size(), tensor.stride(), offset)


def _to_card(result: Tensor, device: int) -> Tensor:
    """Into new memory of the card; contiguous, as torch_npu's results are."""
    tensor = torch.empty(result.size(), dtype=result.dtype, device=torch.device("npu", device))
    if result.numel():
        view = on_host(tensor)
        view.copy_(result)
        _saturate(view)
    return tensor


def _saturate(host: Tensor) -> None:
    """What a chip without infinities leaves, and the flag that it raises."""
    if host.dtype == torch.float16 and _cann.emulated_saturates() and not bool(host.isfinite().all()):
        _cann.emulated_raise_overflow()
        host.nan_to_num_(nan=0.0, posinf=LARGEST_HALF, neginf=-LARGEST_HALF)


def npu() -> Any:
    """torch.npu, which is there once torch_npu is loaded."""
    return torch.npu  # type: ignore[attr-defined]


_streams: dict[tuple[int, ...], Any] = {}


def _wait_for_current_stream(device: int) -> None:
    """Through torch_npu, which first empties the queue that it has before the card's."""
    key = sys.modules["torch_npu"]._C._npu_getCurrentStream(device)
    stream = _streams.get(key)
    if stream is None:
        stream = _streams[key] = npu().current_stream(device)
    _cann.emulated_look_away(1)
    try:
        stream.synchronize()
    finally:
        _cann.emulated_look_away(0)


# ---- kernels ----------------------------------------------------------------------------------------------------


class Kernel:
    """One operator. Callable as the dispatcher calls it."""

    def __init__(self, name: str, function: Callable[..., Any] | None = None):
        self.name = name
        self._base, _, self._overload = name.partition(".")
        self._function: Any = function  # None: the processor's operator of that name
        self._schema: Any = None

    def _find(self) -> None:
        """At the first call: a thousand operators are registered, and some thirty are used."""
        operator = getattr(getattr(torch.ops.aten, self._base), self._overload or "default")
        self._function = self._function or operator
        self._schema = operator._schema
        self._written = [
            (index, argument.name, argument.is_out)
            for index, argument in enumerate(self._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self._returns_written = any(r.alias_info is not None and r.alias_info.is_write for r in self._schema.returns)
        self._in_float32 = self._base.rstrip("_") in IN_FLOAT32
        drawn = any(argument.name == "generator" for argument in self._schema.arguments)
        self._is_random = drawn or self._base == "native_dropout"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._schema is None:
            self._find()
        _calls[self.name] += 1
        device = _device_of((*args, *kwargs.values()))
        _wait_for_current_stream(device)
        call = _Call(self._in_float32)
        host_args = [call.host(value) for value in args]
        host_kwargs = {name: call.host(value) for name, value in kwargs.items()}
        written = []
        for index, name, is_out in self._written:
            mine = args[index] if index < len(args) else kwargs.get(name)
            if is_out and mine is not None:  # may have to grow: a tensor of its own is filled, and copied afterwards
                host_kwargs[name] = torch.empty(0, dtype=torch.float32 if call.half else mine.dtype)
            if mine is not None:
                written.append((mine, host_args[index] if index < len(args) else host_kwargs[name]))
        if self._is_random:
            host_kwargs["generator"] = _generator(device, kwargs.get("generator"))
        results = self._function(*host_args, **host_kwargs)
        for mine, host in written:
            _give_back(mine, host)
        if self._returns_written:
            return written[0][0] if len(self._schema.returns) == 1 else tuple(mine for mine, _ in written)
        return _each(lambda result: _to_card(result.to(call.half) if call.half else result, device), results)


class _Call:
    """The arguments of one call, as the host sees them."""

    def __init__(self, in_float32: bool):
        self._in_float32 = in_float32
        self.half: torch.dtype | None = None  # what was widened to float32

    def host(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.device.type != "npu":
                return value
            view = on_host(value)
            if self._in_float32 and view.dtype in HALVES:
                self.half = view.dtype
                return view.float()
            return view
        if isinstance(value, list | tuple):
            return [self.host(item) for item in value]
        if isinstance(value, torch.device) and value.type == "npu":
            return HOST
        return value


def _device_of(values: tuple[Any, ...] | list[Any]) -> int:
    """The card that a call is for: its tensors', or the one asked for, or the current one."""
    for value in values:
        if isinstance(value, Tensor) and value.device.type == "npu":
            return value.get_device()
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            return _device_of(value)
        if isinstance(value, torch.device) and value.type == "npu" and value.index is not None:
            return value.index
    return int(npu().current_device())


def _generator(device: int, asked: torch.Generator | None) -> torch.Generator:
    """The host's, begun where the card's stands: its seed and its saved states do what they do on a card."""
    if asked is not None and asked.device.type == "cpu":
        return asked
    own = asked or npu().default_generators[device]
    seed, offset = own.get_state().view(torch.int64).tolist()
    own.set_state(torch.tensor([seed, offset + 4]).view(torch.uint8))
    return torch.Generator().manual_seed(hash((seed, offset)))


def _give_back(mine: Any, host: Any) -> None:
    """What was written, where it was not written over the card's memory itself; and saturated."""
    if not isinstance(mine, Tensor):
        for one, other in zip(mine, host, strict=True):
            _give_back(one, other)
        return
    if mine.size() != host.size():
        mine.resize_(host.size())
    view = on_host(mine)
    if view.data_ptr() != host.data_ptr():
        view.copy_(host)
    _saturate(view)


def _each(function: Callable[[Tensor], Any], results: Any) -> Any:
    if isinstance(results, Tensor):
        return function(results)
    if isinstance(results, list | tuple):
        return type(results)(_each(function, result) for result in results)
    return results


# ---- kernels that are not the processor's -----------------------------------------------------------------------


def _convolution_backward(
    grad_output: Tensor, images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, output_mask: list[bool],
) -> Any:  # fmt: skip
    outputs = weight.size(1) * groups if transposed else weight.size(0)
    return torch.ops.aten.convolution_backward.default(
        grad_output, images, weight, [outputs] if output_mask[2] else None, stride, padding, dilation, transposed,
        output_padding, groups, output_mask,
    )  # fmt: skip


def _native_dropout(
    x: Tensor, probability: float, train: bool | None = None, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The processor's takes no generator."""
    if train is False or probability == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - probability, generator=generator)
    return x * kept * (1 / (1 - probability) if probability < 1 else 0), kept


def _check_and_unscale(grads: list[Tensor], found_inf: Tensor, inv_scale: Tensor) -> None:
    """A chip that saturates has no infinity to be found: there the flag tells, and then nothing is unscaled."""
    if not _cann.emulated_saturates():
        torch.ops.aten._amp_foreach_non_finite_check_and_unscale_.default(grads, found_inf, inv_scale)
    elif _cann.emulated_take_overflow(1):
        found_inf.fill_(1.0)
    else:
        for grad in grads:
            grad.mul_(inv_scale)


def _fused_sgd(
    params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], *,
    momentum: float, lr: float | Tensor, found_inf: Tensor | None = None, **others: Any,
) -> None:  # fmt: skip
    """As torch_npu's: it does nothing at all after an overflow, and it wants momentum."""
    if found_inf is not None and float(found_inf) == 1:
        return
    if momentum <= 0:
        raise RuntimeError(f"momentum must be positive, but got {momentum}")
    torch.ops.aten._fused_sgd_.default(
        params, grads, momentum_buffers, momentum=momentum, lr=float(lr), found_inf=None, **others
    )


def _get_float_status(status: Tensor, mode: int = 0) -> Tensor:
    """The first number is not 0 after an overflow. The old chips' operator fills its argument."""
    _calls["npu_get_float_status"] += 1
    _wait_for_current_stream(status.get_device())
    host = on_host(status)
    host.zero_()
    host[0] = float(_cann.emulated_take_overflow(0))
    return status


def _clear_float_status(status: Tensor, mode: int = 0) -> Tensor:
    _calls["npu_clear_float_status"] += 1
    _wait_for_current_stream(status.get_device())
    _cann.emulated_take_overflow(1)
    return torch.zeros_like(status)


def _alloc_float_status(like: Tensor) -> Tensor:
    return torch.zeros(8, device=like.device)


def _same(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    """For casts between the card's private layouts: here there is but one."""
    return tensor


OURS: dict[str, Callable[..., Any]] = {
    "_amp_foreach_non_finite_check_and_unscale_": _check_and_unscale,
    "_fused_sgd_": _fused_sgd,
    "_fused_sgd_.tensor_lr": _fused_sgd,
    "convolution_backward_overrideable": _convolution_backward,
    "convolution_overrideable": torch.ops.aten.convolution.default,
    "native_dropout": _native_dropout,
}
OURS_OF_NPU: dict[str, Callable[..., Any]] = {
    "npu_alloc_float_status": _alloc_float_status,
    "npu_clear_float_status": _clear_float_status,
    "npu_get_float_status": _get_float_status,
}


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"the emulated card has no kernel for {name}")

    return refuse


def install() -> None:
    """Put them in the place of torch_npu's."""
    new_library: Any = torch.library.Library
    aten, own = new_library("aten", "IMPL"), new_library("npu", "IMPL")
    _libraries.extend((aten, own))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced
        for qualified in torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1"):
            namespace, _, name = qualified.partition("::")
            if namespace == "npu" and name not in KEPT_OF_NPU:
                cast = name.startswith(("npu_format_cast", "_npu_format_cast"))
                kernel = _same if cast else OURS_OF_NPU.get(name) or _refusal(qualified)
                own.impl(name, kernel, "PrivateUse1", allow_override=True)
            elif namespace == "aten" and name not in KEPT and torch._C._dispatch_has_kernel(qualified):
                aten.impl(name, Kernel(name, OURS.get(name)), "PrivateUse1", allow_override=True)
    atexit.register(_report, os.getpid())


# ---- counters ---------------------------------------------------------------------------------------------------


def counters() -> dict[str, Any]:
    """What this process has done: copies by kind and to the device by likeness, events, waits, collectives, kernels."""
    text = _cann.emulated_counters()
    try:
        counted: dict[str, Any] = json.loads(ctypes.string_at(text))
    finally:
        _free(text)
    rank = os.environ.get("RANK")
    return counted | {"kernels": dict(_calls), "rank": None if rank is None else int(rank), "pid": os.getpid()}


_free = ctypes.CDLL(None).free
_free.argtypes = [ctypes.c_void_p]
_free.restype = None


def _report(owner: int) -> None:
    folder = os.environ.get("EMULATED_NPU_REPORT")
    if folder and os.getpid() == owner:  # a fork's end is not ours
        path = Path(folder, f"{os.getpid()}.json")
        path.write_text(json.dumps(counters() | {"finished": True}), encoding="utf-8")
