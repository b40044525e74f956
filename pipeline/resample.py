"""Resize a crop from where it was decoded to where the batch is, mirrored on the way: Pillow's antialiased bilinear
filter, within 1, on any processor's vector units.

Two passes as Pillow has them, along the rows and then across, rounding to 8 bits in between (recent Pillows turn that
order round for some shapes: hence the 1). What is different is what is left out: no image object, no fourth channel in
the second pass, no copy of the result, and mirroring is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numba.core.cgutils
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .kernel import inlined, kernel

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]

PIXEL = 4  # bytes that are read of a pixel: RGB, and one that does not matter
_BITS = 22  # of a weight's fraction: 8 bits of a value, and 2 to spare, fit in 32 besides
_HALF = 1 << (_BITS - 1)
_TOGETHER = 8  # rows that are resized at once: they share their weights

cgutils: Any = numba.core.cgutils  # it has no types


class Pixels(NamedTuple):
    """Where the pixels of a crop lie."""

    memory: U8  # uint8 [bytes]; one more follows the last pixel's three
    first: int  # place of the crop's first pixel
    step: int  # bytes from a pixel to the next: 3 or 4
    stride: int  # bytes from a row to the next


class Resampler:
    """Resizes to ``size`` x ``size`` pixels. Holds its scratch memory, so one for each thread."""

    def __init__(self, size: int):
        self.size = size
        # One byte more than a row has: a pixel of three bytes is written as four.
        self._rows = np.empty((0, 3 * size + 1), np.uint8)
        self._across = _Weights(size)
        self._down = _Weights(size)

    def resize(self, pixels: Pixels, width: int, height: int, *, box: list[float], flip: bool, out_HWC: U8) -> None:
        """Fill ``out_HWC``, uint8 [size, size, 3], from the part ``box`` (left, top, right, bottom) of a crop.

        ``width`` and ``height`` are the crop's, in pixels: what lies outside has no influence.
        """
        begin = pixels.first + (height - 1) * pixels.stride + (width - 1) * pixels.step
        if not 0 <= pixels.first <= begin <= len(pixels.memory) - PIXEL:  # the kernels look at no bound
            raise ValueError(f"a crop of {width}x{height} pixels does not lie within {pixels}")
        left, top, right, bottom = np.array(box, np.float32)  # Pillow takes them in single precision
        self._across.set(width, left, right)
        self._down.set(height, top, bottom)
        if len(self._rows) < max(height, _TOGETHER):
            self._rows = np.empty((max(height, _TOGETHER), 3 * self.size + 1), np.uint8)
        begin, end = self._down.reach()
        rows, across, down = self._rows, self._across, self._down
        memory = pixels.memory[pixels.first :]
        _across(memory, pixels.step, pixels.stride, begin, end, across.first, across.count, across.weight, rows, flip)
        _down(rows, begin, down.first, down.count, down.weight, out_HWC.reshape(self.size, 3 * self.size))


class _Weights:
    """Which pixels along one axis make each of the output, and how much of each."""

    def __init__(self, size: int):
        self.first = np.zeros(size, np.int32)
        self.count = np.zeros(size, np.int32)
        self.weight = np.zeros((size, 8), np.int32)

    def set(self, side: int, begin: np.float32, end: np.float32) -> None:
        scale = float(end - begin) / len(self.first)
        most = 2 * int(np.ceil(max(scale, 1.0))) + 1
        if self.weight.shape[1] < most:
            self.weight = np.zeros((len(self.first), most), np.int32)
        _set_weights(side, float(begin), scale, self.first, self.count, self.weight)

    def reach(self) -> tuple[int, int]:
        """The first pixel that is used, and the one behind the last."""
        return int(self.first[0]), int(self.first[-1] + self.count[-1])


@kernel
def _set_weights(side: int, begin: float, scale: float, first: I32, count: I32, weight: I32) -> None:
    """Pillow's ``precompute_coeffs`` for the triangle filter, without the zeros at either end."""
    support = max(scale, 1.0)
    for i in range(len(first)):
        centre = begin + (i + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), side)
        total = 0.0
        for k in range(low, high):
            total += _triangle((k - centre + 0.5) * (1.0 / support))
        n = 0
        for k in range(low, high):
            w = int(0.5 + _triangle((k - centre + 0.5) * (1.0 / support)) / total * (1 << _BITS))
            if n == 0:
                first[i] = k
            if n > 0 or w > 0:
                weight[i, n] = w
                n += 1
        while n > 1 and weight[i, n - 1] == 0:
            n -= 1
        count[i] = n


@inlined
def _triangle(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


@kernel
def _across(
    pixels: U8, step: int, stride: int, begin: int, end: int, first: I32, count: I32, weight: I32, rows: U8, flip: bool
) -> None:
    """Rows ``begin`` to ``end`` of a crop at their final width, RGB, to rows 0 ... of ``rows``."""
    size = len(first)
    source, target, weights = pixels.ctypes.data + begin * stride, rows.ctypes.data, weight.ctypes.data
    apart = end - begin >= _TOGETHER
    for row in range(0, end - begin, _TOGETHER if apart else 1):
        # The last eight rows are done again rather than fewer at once; of fewer in all, each is done eight times.
        at = min(row, end - begin - _TOGETHER) if apart else row
        for x in range(size):  # ascending: a pixel's fourth byte is the first of the next
            i = size - 1 - x if flip else x
            _blend(
                source + at * stride + step * first[i],
                step,
                stride if apart else 0,
                weights + weight.strides[0] * i,
                np.int64(count[i]),
                target + at * rows.strides[0] + 3 * x,
                rows.strides[0] if apart else 0,
            )


def _declare_blend(
    _: Any, source: Any, step: Any, stride: Any, weights: Any, count: Any, target: Any, target_stride: Any
) -> Any:
    """One output pixel of ``_TOGETHER`` rows: ``count`` pixels from the address ``source`` on, ``step`` apart, times
    ``weights``, to ``target``; the next row is a ``stride`` further.

    Written in LLVM's language, for numba has no vectors: the four channels of a pixel are one.
    """

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        source, step, stride, weights, count, target, target_stride = args
        i32, int64 = ir.IntType(32), source.type
        channels, packed = ir.VectorType(i32, 4), ir.VectorType(ir.IntType(8), 4)
        nothing = ir.Constant(channels, ir.Undefined)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(channels, [_HALF] * 4)) for _ in range(_TOGETHER)]

        def address(base: Any, offset: Any, kind: Any) -> Any:
            return builder.inttoptr(builder.add(base, offset), kind.as_pointer())

        with cgutils.for_range(builder, count, intp=int64) as loop:
            weight = builder.load(address(weights, builder.mul(loop.index, int64(4)), i32))
            weight = builder.insert_element(nothing, weight, i32(0))
            weight = builder.shuffle_vector(weight, nothing, ir.Constant(channels, [0] * 4))
            for row, total in enumerate(sums):
                offset = builder.add(builder.mul(step, loop.index), builder.mul(stride, int64(row)))
                pixel = address(source, offset, packed)
                product = builder.mul(builder.zext(builder.load(pixel, align=1), channels), weight)
                builder.store(builder.add(builder.load(total), product), total)
        for row, total in enumerate(sums):
            value = builder.trunc(builder.ashr(builder.load(total), ir.Constant(channels, [_BITS] * 4)), packed)
            builder.store(value, address(target, builder.mul(target_stride, int64(row)), packed), align=1)
        return context.get_dummy_value()

    return types.void(source, step, stride, weights, count, target, target_stride), generate


_blend = cast(Callable[..., None], intrinsic(_declare_blend))


@kernel
def _down(rows: U8, begin: int, first: I32, count: I32, weight: I32, out: U8) -> None:
    """The rows of the output from those at their final width, of which the first is number ``begin``."""
    width = out.shape[1]
    total = np.empty(width, np.int32)
    for i in range(len(first)):
        n, top = count[i], first[i] - begin
        a = rows[top]
        w0 = weight[i, 0]
        if n == 1:
            for x in range(width):
                out[i, x] = np.int32(_HALF + w0 * np.int32(a[x])) >> _BITS
        elif n == 2:
            w1, b = weight[i, 1], rows[top + 1]
            for x in range(width):
                out[i, x] = np.int32(_HALF + w0 * np.int32(a[x]) + w1 * np.int32(b[x])) >> _BITS
        else:
            for x in range(width):
                total[x] = _HALF + w0 * np.int32(a[x])
            for k in range(1, n):
                w, b = weight[i, k], rows[top + k]
                for x in range(width):
                    total[x] += w * np.int32(b[x])
            for x in range(width):
                out[i, x] = total[x] >> _BITS
