"""Which part of each picture becomes the sample. Randomness is drawn here, for a whole batch at once, and nowhere
else; backends apply crops and never choose them.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from .kernel import kernel
from .rng import STREAM_CROP, U64, nth_uniform, random_bits

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

_TRIES = 10  # as in torchvision's RandomResizedCrop, whose distribution this is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crops:
    """N crops, in pixels of the pictures they are cut from.

    A picture is first cut to ``region``, then the rectangle ``box`` of that cut is resized to the square output with
    an antialiased bilinear filter, then mirrored where ``flip``. Pixels outside ``region`` have no influence at all:
    that is what lets a reader decode only that part of a file.
    """

    region: I64  # [N, 4]: x, y, width, height in the picture
    box: F64  # [N, 4]: left, top, right, bottom relative to the region; may lie inside it
    flip: npt.NDArray[np.bool_]  # [N]

    def __len__(self) -> int:
        return len(self.flip)


def random_resized_crops(
    indices: I64,
    widths: I64,
    heights: I64,
    *,
    seed: int,
    epoch: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> Crops:
    """The training transform: a random part of each picture, keyed by (seed, epoch, index) alone.

    Area uniform in ``scale`` times the picture's, aspect ratio log-uniform in ``ratio``, ten tries, then the largest
    centred rectangle with an allowed ratio (Szegedy et al. 2015, as torchvision does it).

    Args:
        indices, widths, heights: int64 [N], the sample's number and its picture's size in pixels.
    """
    n = len(indices)
    region, flips = np.empty((n, 4), np.int64), np.zeros(n, np.bool_)
    bits = random_bits(seed, epoch, STREAM_CROP, indices)
    _draw_regions(bits, widths, heights, scale, (math.log(ratio[0]), math.log(ratio[1])), flip, region, flips)
    box = np.zeros((n, 4))
    box[:, 2:] = region[:, 2:]
    return Crops(region=region, box=box, flip=flips)


@kernel
def _draw_regions(
    bits: U64,
    widths: I64,
    heights: I64,
    scale: tuple[float, float],
    log_ratio: tuple[float, float],
    flip: bool,
    region: I64,
    flips: npt.NDArray[np.bool_],
) -> None:
    """Fill ``region`` int64 [N, 4] and ``flips`` bool [N]."""
    for row in range(len(bits)):
        width, height = widths[row], heights[row]
        area = width * height
        w, h = 0, 0
        for attempt in range(_TRIES):
            wanted = area * (scale[0] + nth_uniform(bits[row], attempt) * (scale[1] - scale[0]))
            position = nth_uniform(bits[row], _TRIES + attempt)
            aspect = math.exp(log_ratio[0] + position * (log_ratio[1] - log_ratio[0]))
            w, h = round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))
            if 0 < w <= width and 0 < h <= height:
                # floor(u * (k + 1)) is uniform over 0 ... k, as randint is
                region[row, 0] = int(nth_uniform(bits[row], 2 * _TRIES) * (width - w + 1))
                region[row, 1] = int(nth_uniform(bits[row], 2 * _TRIES + 1) * (height - h + 1))
                break
        else:
            w, h = width, height
            if width / height > math.exp(log_ratio[1]):
                w = max(round(height * math.exp(log_ratio[1])), 1)
            elif width / height < math.exp(log_ratio[0]):
                h = max(round(width / math.exp(log_ratio[0])), 1)
            region[row, 0], region[row, 1] = (width - w) // 2, (height - h) // 2
        region[row, 2], region[row, 3] = w, h
        flips[row] = flip and nth_uniform(bits[row], 2 * _TRIES + 2) < 0.5


def center_crops(widths: I64, heights: I64, *, resize_size: int, image_size: int) -> Crops:
    """The evaluation transform: short side resized to ``resize_size``, the central square of ``image_size`` kept.

    Both steps in one: the box that the square covers is resized straight to its final size, with the same filter at
    the same places, so the pixels are those of Resize followed by CenterCrop (within 1, for Pillow takes the box in
    single precision), and nothing outside the filter's reach is decoded.

    Args:
        widths, heights: int64 [N], in pixels.
        resize_size: at least ``image_size``.
    """
    short = np.minimum(widths, heights)
    # torchvision truncates the long side: int(size * long / short)
    resized_w = np.where(widths <= heights, resize_size, resize_size * widths // short)
    resized_h = np.where(widths <= heights, resize_size * heights // short, resize_size)
    left = np.rint((resized_w - image_size) / 2.0)
    top = np.rint((resized_h - image_size) / 2.0)
    scale_x = widths / resized_w
    scale_y = heights / resized_h
    x0, x1, box_x0, box_x1 = _within_reach(left * scale_x, (left + image_size) * scale_x, scale_x, widths)
    y0, y1, box_y0, box_y1 = _within_reach(top * scale_y, (top + image_size) * scale_y, scale_y, heights)
    return Crops(
        region=np.stack((x0, y0, x1 - x0, y1 - y0), axis=1),
        box=np.stack((box_x0, box_y0, box_x1, box_y1), axis=1),
        flip=np.zeros(len(widths), np.bool_),
    )


def _within_reach(begin: F64, end: F64, scale: F64, side: I64) -> tuple[I64, I64, F64, F64]:
    """Along one axis: the whole pixels that the filter reaches from ``begin`` to ``end``, and these two within them."""
    support = np.maximum(scale, 1.0)  # of the bilinear filter, as wide as an output pixel where it makes smaller
    first = np.maximum(np.floor(begin - support), 0).astype(np.int64)
    last = np.minimum(np.ceil(end + support), side).astype(np.int64)
    return first, last, begin - first, np.minimum(end - first, last - first)  # against the last bit of rounding
