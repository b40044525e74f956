"""The precision levels O0 to O3 of NVIDIA's apex: what of a model is half, and what passes in and out of it.

apex.amp was removed upstream in 2025, so this is its definition on plain PyTorch. In all levels the loss is fp32.

====  ==========================  ===================  ==============  =========================================
      weights                     batch norm (affine)  computing       steps are taken on
====  ==========================  ===================  ==============  =========================================
O0    fp32                        fp32                 fp32            the weights
O1    fp32                        fp32                 autocast        the weights
O2    half, from fp32 masters     fp32                 half            the masters (``master_weights.py``)
O3    half                        half                 half            the half weights: a baseline of speed
====  ==========================  ===================  ==============  =========================================

Source: apex ``amp/frontend.py`` (the table), ``fp16_utils/fp16util.py`` (``convert_network``: which modules) and
``amp/_initialize.py`` (the casts around ``forward``). Written from what they do, none of their text.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LEVELS = ("O0", "O1", "O2", "O3")
HALVES = (torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """A level, the half type it uses, and the kind of device it runs on (as ``torch.autocast`` names it).

    Raises ValueError for a level or a type that is none.
    """

    level: str
    dtype: torch.dtype = torch.float16
    device_type: str = "cpu"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, was {self.level!r}")
        if self.dtype not in HALVES:
            raise ValueError(f"dtype must be torch.float16 or torch.bfloat16, was {self.dtype}")

    @property
    def is_half(self) -> bool:
        """Whether the model itself is converted."""
        return self.level in ("O2", "O3")

    @property
    def input_dtype(self) -> torch.dtype:
        """The type in which pictures had best arrive: any other is cast, on the device."""
        return self.dtype if self.is_half else torch.float32

    @property
    def loss_scale(self) -> float | Literal["dynamic"]:
        """The loss scale where nobody asks for another: apex's, and 1 for bfloat16, which has the range of fp32."""
        return "dynamic" if self.dtype == torch.float16 and self.level in ("O1", "O2") else 1.0

    def convert(self, model: nn.Module) -> None:
        """Make ``model`` one of this level, in place: to be called once, on its device, before DDP wraps it.

        O2 and O3: floating parameters and buffers become half (O2 leaves batch norms with affine parameters as they
        are); floating inputs of ``forward`` are cast to half and its floating outputs to fp32, inside tuples, lists
        and dicts too. O0 and O1: nothing. Parameters stay the same objects, so what is tied stays tied.
        """
        if not self.is_half:
            return
        for module in model.modules():
            if self.level == "O2" and isinstance(module, _BatchNorm) and module.affine:
                continue
            for parameter in module.parameters(recurse=False):
                parameter.grad = None  # a gradient is of its parameter's type
            for tensor in chain(module.parameters(recurse=False), module.buffers(recurse=False)):
                tensor.data = _cast(tensor.data, self.dtype)
        model.register_forward_pre_hook(self._cast_inputs, with_kwargs=True)
        model.register_forward_hook(_cast_outputs)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which to run the forward pass: ``torch.autocast`` at O1, else nothing."""
        if self.level == "O1":
            return torch.autocast(self.device_type, self.dtype)
        return contextlib.nullcontext()

    def _cast_inputs(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _cast(args, self.dtype), _cast(kwargs, self.dtype)


def _cast_outputs(_: nn.Module, _args: Any, output: Any) -> Any:
    return _cast(output, torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """``value`` with the floating tensors in it, however deep, as ``dtype``; what is of that type is not copied."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple wants its fields one by one
        make: Callable[..., Any] = type(value)
        return make(*(_cast(item, dtype) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    if isinstance(value, Mapping):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value
