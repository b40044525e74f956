"""Which part of each picture becomes the sample. Randomness is drawn here, for a whole batch at once, and nowhere
else; backends apply crops and never choose them.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from .rng import STREAM_CROP, random_uniform

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

    def take(self, rows: I64) -> Crops:
        """The crops of some rows."""
        return Crops(region=self.region[rows], box=self.box[rows], flip=self.flip[rows])


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
    u = random_uniform(seed, epoch, STREAM_CROP, indices, 2 * _TRIES + 3)
    area = (widths * heights)[:, None] * (scale[0] + u[:, :_TRIES] * (scale[1] - scale[0]))
    log_ratio = math.log(ratio[0]) + u[:, _TRIES : 2 * _TRIES] * (math.log(ratio[1]) - math.log(ratio[0]))
    aspect = np.exp(log_ratio)
    tried_w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    tried_h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (tried_w > 0) & (tried_w <= widths[:, None]) & (tried_h > 0) & (tried_h <= heights[:, None])
    first = np.argmax(fits, axis=1)
    rows = np.arange(n)
    found = fits[rows, first]

    picture_ratio = widths / heights
    fallback_w = np.where(picture_ratio > ratio[1], np.rint(heights * ratio[1]).astype(np.int64), widths)
    fallback_h = np.where(picture_ratio < ratio[0], np.rint(widths / ratio[0]).astype(np.int64), heights)
    w = np.where(found, tried_w[rows, first], np.maximum(fallback_w, 1))
    h = np.where(found, tried_h[rows, first], np.maximum(fallback_h, 1))
    # floor(u * (k + 1)) is uniform over 0 ... k, as randint is
    x = np.where(found, np.floor(u[:, -3] * (widths - w + 1)).astype(np.int64), (widths - w) // 2)
    y = np.where(found, np.floor(u[:, -2] * (heights - h + 1)).astype(np.int64), (heights - h) // 2)

    zero = np.zeros(n)
    return Crops(
        region=np.stack((x, y, w, h), axis=1),
        box=np.stack((zero, zero, w.astype(np.float64), h.astype(np.float64)), axis=1),
        flip=(u[:, -1] < 0.5) if flip else np.zeros(n, np.bool_),
    )


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
