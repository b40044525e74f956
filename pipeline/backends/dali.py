"""Decode with NVIDIA DALI's CPU operators; no GPU and no driver is needed.

DALI's decode equals libjpeg-turbo's bit for bit. Its CPU resize does not equal Pillow's, and takes longer than the
decode, for it goes through float32 (benchmarks/). So DALI cuts crops out of pictures, our resampler makes them their
size, and both backends give the same pixels.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import nvidia.dali

from ..augment import Crops
from ..crop_jpeg import Excerpt
from ..errors import DataError, PictureError
from ..jpeg import has_end, read_header
from ..pictures import Pictures
from ..resample import Pixels
from ..watch import DECODE, RESIZE
from .pillow import PillowBackend


class DaliBackend:
    """Fills rows of a slot; DALI decodes all of them at once, on one core."""

    def __init__(self, *, image_size: int, max_pictures: int):
        self._max_pictures = max_pictures
        self._pipeline = _build(max_pictures)
        self._memory = np.empty(0, np.uint8)
        self._pillow = PillowBackend(image_size=image_size, max_pictures=max_pictures)

    def fill(self, pictures: Pictures, crops: Crops, out_NHWC: npt.NDArray[np.uint8]) -> None:
        """Write N crops into ``out_NHWC``, uint8 [N, S, S, 3]. Raises PictureError for what cannot be decoded."""
        regions = crops.region.tolist()
        excerpts: list[Excerpt] = []
        for row, region in enumerate(regions):
            try:
                excerpts.append(pictures.excerpt(row, region))
            except DataError as error:
                raise PictureError(row, str(error)) from error
        # PNG, CMYK, progressive, ...: few, and Pillow's conversions are the one policy for them.
        rows = [row for row, excerpt in enumerate(excerpts) if _is_ordinary(excerpt)]
        decoded = dict(zip(rows, self._cut([excerpts[row] for row in rows], crops.region[rows]), strict=False))
        pictures.lap(DECODE)
        for row, (region, box, flip) in enumerate(zip(regions, crops.box.tolist(), crops.flip.tolist(), strict=True)):
            if row in decoded:
                pixels = self._behind(decoded[row])
            else:
                try:
                    pixels = self._pillow.cut(pictures, row, region, excerpts[row])
                except DataError as error:
                    raise PictureError(row, str(error)) from error
                pictures.lap(DECODE, row)
            self._pillow.resampler.resize(pixels, region[2], region[3], box=box, flip=flip, out_HWC=out_NHWC[row])
            pictures.lap(RESIZE, row)

    def _behind(self, decoded_HWC: npt.NDArray[np.uint8]) -> Pixels:
        """The pixels in memory that goes on behind the last of them, as the resampler wants it."""
        size = decoded_HWC.size
        if len(self._memory) <= size:
            self._memory = np.empty(size + 1, np.uint8)
        self._memory[:size] = decoded_HWC.reshape(-1)
        return Pixels(self._memory, first=0, step=3, stride=3 * decoded_HWC.shape[1])

    def _cut(self, excerpts: list[Excerpt], regions: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
        """The regions, decoded; none at all where DALI does not take one of the pictures."""
        if not excerpts:
            return []
        # DALI's axes go y, x.
        at = regions[:, 1::-1] - np.array([(excerpt.y, excerpt.x) for excerpt in excerpts])
        pipe = self._pipeline
        pipe.feed_input("jpeg", [np.frombuffer(excerpt.data, np.uint8) for excerpt in excerpts])
        pipe.feed_input("region_at", at.astype(np.int32))
        pipe.feed_input("region_size", regions[:, :1:-1].astype(np.int32))
        try:
            (pixels,) = pipe.run()
        except RuntimeError:
            self._pipeline = _build(self._max_pictures)  # one that has failed does not go on
            return []
        return [np.asarray(pixels[i]) for i in range(len(excerpts))]

    def close(self) -> None:
        """End DALI's threads."""
        del self._pipeline


def _is_ordinary(excerpt: Excerpt) -> bool:
    """Whether DALI and Pillow agree on it: a whole baseline JPEG, grey or in colour.

    DALI would fill what is missing of a cut file with grey and say nothing.
    """
    if excerpt.components not in (1, 3):
        return False
    if isinstance(excerpt.data, np.ndarray):  # tiles whose every byte is known to be right
        return True
    header = read_header(excerpt.data)
    return header is not None and header.baseline and has_end(excerpt.data)


def _build(max_pictures: int) -> Any:
    dali: Any = nvidia.dali  # its type stubs know neither its constants nor its operators
    fn, types = dali.fn, dali.types
    os.environ.setdefault("DALI_DISABLE_NVML", "1")  # there may be a driver, but this pipeline has no use for it
    pipe = dali.Pipeline(batch_size=max_pictures, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipe:
        jpeg = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1, no_copy=True)
        region_at = fn.external_source(name="region_at", dtype=types.INT32, ndim=1)
        region_size = fn.external_source(name="region_size", dtype=types.INT32, ndim=1)
        image = fn.decoders.image_slice(
            jpeg, region_at, region_size, axes=(0, 1), output_type=types.RGB, adjust_orientation=False
        )
        pipe.set_outputs(image)
    pipe.build()
    return pipe
