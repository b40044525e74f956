"""Functions that are compiled: loops over bytes and pixels, at the speed of C, with no compiler to be installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

from .advice import advise

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call, for this very processor, and keep the machine code beside the source (or, where that
    cannot be written, in the user's cache). The GIL is not held.

    A kernel sees no index errors: it says why every access is inside its array. numba's cache looks at the date of the
    kernel's own file only: after editing an ``inlined`` function of another file, remove ``__pycache__``.
    """
    try:
        return cast(Callable[P, R], numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # numba's way to say that there is no place to write to
        advise("compiled code cannot be kept (no writable folder): every process compiles its own, for seconds")
        return cast(Callable[P, R], numba.njit(nogil=True, error_model="numpy")(function))


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile into the kernels that call it: for what is done per code, per block or per pixel."""
    return cast(Callable[P, R], numba.njit(nogil=True, error_model="numpy", forceinline=True)(function))
