"""Batches of whatever form: a tensor, or tuples, lists, mappings and dataclasses of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import ConfigError


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


def copied(value: Any) -> Any:
    """A batch that stays as it is, where its loader uses the memory again."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return type(value)({key: copied(part) for key, part in value.items()})  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: copied(part) for name, part in vars(value).items()})
    return value
