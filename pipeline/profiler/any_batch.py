"""Batches of whatever form: a tensor, or tuples, lists, mappings and dataclasses of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ConfigError

_CHANNELS = (1, 3, 4)


def images_of(batch: Any) -> int:
    """The length of the first tensor (or array) in a batch: a tensor, a sequence, a mapping, a dataclass of them.

    Raises ConfigError where there is none.
    """
    for tensor in tensors(batch):
        return len(tensor)
    raise ConfigError(f"a batch of type {type(batch).__name__} holds no tensor: give count=, its number of pictures")


def tensors(value: Any) -> Iterator[Any]:
    """All tensors and arrays in a batch, in order."""
    if getattr(value, "ndim", 0):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for part in value:
            yield from tensors(part)
    elif dataclasses.is_dataclass(value):
        yield from tensors(vars(value))


def image_side(batch: Any) -> int | None:
    """The side in pixels of a batch's images, NCHW or NHWC, of a square with as many; None where there are none."""
    for tensor in tensors(batch):
        if tensor.ndim == 4:
            _, *shape = tensor.shape
            height, width = shape[:2] if shape[2] in _CHANNELS and shape[0] not in _CHANNELS else shape[1:]
            return round(math.sqrt(height * width))
    return None


def copied(value: Any) -> Any:
    """A batch that stays as it is, where its loader uses the memory again."""
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        return copy.pin_memory() if value.is_pinned() else copy  # as fast to the device as the loader's own
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return type(value)({key: copied(part) for key, part in value.items()})  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: copied(part) for name, part in vars(value).items()})
    return value
