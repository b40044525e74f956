"""Gives torch_npu its kernels: Python imports this module by itself where this folder is on PYTHONPATH.

Right after ``import torch_npu`` has finished, kernels.install() runs. A process that never imports torch_npu pays for
one small class and nothing else; torch, which may import torch_npu by itself, is not imported here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence


class _Loader(importlib.abc.Loader):
    """torch_npu's own loader, and then the kernels."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        # Not compiled yet, its sources warn of "\[" in their strings: that is no business of our programs.
        warnings.filterwarnings("ignore", message="invalid escape sequence")
        self.loader.exec_module(module)
        importlib.import_module("kernels").install()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torch_npu where the next finder does, once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch_npu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
