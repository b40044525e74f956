"""Why is my accelerator starving? (tools/profile_loader.py, headrace-profile)

from pipeline.profiler import profile       # headrace.pipeline.profiler when installed: any loader, any step
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["ForeignReport", "profile"]

_HOMES = {"ForeignReport": ".foreign_report", "profile": ".foreign"}

if TYPE_CHECKING:
    from .foreign import profile
    from .foreign_report import ForeignReport


def __getattr__(name: str) -> Any:  # what is imported here must not cost those who want something else
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name], __name__), name)
