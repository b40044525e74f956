"""Backends: pictures and crops in, rows of a uint8 NHWC slot out. A registry is a dict.

A backend is imported where it is chosen, so one that is not installed costs nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..augment import Crops
from ..errors import ConfigError
from ..pictures import Pictures


class Backend(Protocol):
    """What decodes. Built inside a decode process: ``Backend(image_size=, max_pictures=)``."""

    def fill(self, pictures: Pictures, crops: Crops, out_NHWC: npt.NDArray[np.uint8]) -> None: ...

    def close(self) -> None: ...


def _pillow() -> Callable[..., Backend]:
    from .pillow import PillowBackend

    return PillowBackend


def _dali() -> Callable[..., Backend]:
    from .dali import DaliBackend

    return DaliBackend


BACKENDS: dict[str, Callable[[], Callable[..., Backend]]] = {"pillow": _pillow, "dali": _dali}
_INSTALL = {"pillow": ("PIL", "pip install Pillow"), "dali": ("nvidia.dali", "pip install nvidia-dali-cuda130")}


def is_installed(backend: str) -> bool:
    """Whether a backend's library can be imported (it is looked for, not loaded)."""
    try:
        return importlib.util.find_spec(_INSTALL[backend][0]) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def choose_backend(name: str) -> str:
    """The backend that ``name`` stands for; ``auto`` is the fastest of what is installed.

    Raises ConfigError, with the install line, where a backend asked for by name is missing.
    """
    if name == "auto":
        for candidate in ("pillow", "dali"):
            if is_installed(candidate):
                return candidate
        raise ConfigError(f"no decoder is installed: {_INSTALL['pillow'][1]}")
    if name not in BACKENDS:
        raise ConfigError(f"backend must be auto, {' or '.join(BACKENDS)}, was {name!r}")
    if not is_installed(name):
        raise ConfigError(f"backend {name} is not installed: {_INSTALL[name][1]}")
    return name
