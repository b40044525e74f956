"""Headrace's pipeline: everything between a folder or a shard on disk and a batch on the device.

    from pipeline import PipelineConfig, build_loader       # headrace.pipeline when installed

Names are imported when they are asked for: decode processes import this package and must not pay for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Batch", "ConfigError", "DataError", "Loader", "PipelineConfig", "build_loader"]

if TYPE_CHECKING:
    from .config import PipelineConfig
    from .errors import ConfigError, DataError
    from .loader import Batch, Loader, build_loader

_HOMES = {
    "Batch": "loader",
    "ConfigError": "errors",
    "DataError": "errors",
    "Loader": "loader",
    "PipelineConfig": "config",
    "build_loader": "loader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
