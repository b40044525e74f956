"""Decode with libjpeg-turbo, and with Pillow what is no ordinary JPEG; resize straight into the slot: the reference for
every backend. The pixels are Pillow's: a recipe of its ``open``, ``crop`` and ``resize`` gives the same within 1.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError, features

from ..augment import Crops
from ..crop_jpeg import Excerpt
from ..errors import DataError, PictureError
from ..pictures import Pictures
from ..resample import Pixels, Resampler

# What a folder of pictures holds. Pillow knows forty more, and runs a program (Ghostscript) on one of them.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", *(("WEBP",) if features.check("webp") else ()))
Image.MAX_IMAGE_PIXELS = 1 << 28  # 268 megapixels; a header that claims more is refused before anything is allocated


class PillowBackend:
    """Fills rows of a slot one picture after the other, on one core."""

    def __init__(self, *, image_size: int, max_pictures: int):
        self.resampler = Resampler(image_size)
        self._memory = np.empty(0, np.uint8)  # grows to the largest picture that was met

    def fill(self, pictures: Pictures, crops: Crops, out_NHWC: npt.NDArray[np.uint8]) -> None:
        """Write N crops into ``out_NHWC``, uint8 [N, S, S, 3]. Raises PictureError for what cannot be decoded."""
        rows = zip(crops.region.tolist(), crops.box.tolist(), crops.flip.tolist(), strict=True)
        for row, (region, box, flip) in enumerate(rows):
            try:
                pixels = self.cut(pictures, row, region, pictures.excerpt(row, region))
            except DataError as error:
                raise PictureError(row, str(error)) from error
            self.resampler.resize(pixels, region[2], region[3], box=box, flip=flip, out_HWC=out_NHWC[row])

    def cut(self, pictures: Pictures, row: int, region: Sequence[int], excerpt: Excerpt) -> Pixels:
        """``region`` of a picture, decoded from an excerpt that holds it: valid until the next call.

        What is neither a grey nor a colour JPEG is decoded whole; so is a damaged one, and it is noted. Raises
        DataError where a picture cannot be decoded at all.
        """
        try:
            return self._decode(excerpt, region)
        except ValueError as error:
            image = decode_rgb(bytes(pictures.whole(row).data))
            if excerpt.components in (1, 3):
                pictures.damaged.setdefault(row, str(error))
        want = (int(pictures.widths[row]), int(pictures.heights[row]))
        if image.size != want:
            raise DataError(f"the index says {want[0]}x{want[1]}, the picture is {image.width}x{image.height}")
        x, y, w, h = region
        memory = np.frombuffer(image.crop((x, y, x + w, y + h)).tobytes("raw", "RGBX"), np.uint8)
        return Pixels(memory, first=0, step=4, stride=4 * w)

    def _decode(self, excerpt: Excerpt, region: Sequence[int]) -> Pixels:
        """Raises ValueError for what is no grey or colour JPEG, and where libjpeg says that one is damaged."""
        if excerpt.components not in (1, 3):
            raise ValueError("no JPEG in grey or colour")  # of CMYK, Pillow's conversion is the one policy
        width, height, stride = excerpt.width, excerpt.height, 4 * excerpt.width
        if len(self._memory) < stride * height:
            self._memory = np.empty(stride * height, np.uint8)
        decoded = simplejpeg.decode_jpeg(excerpt.data, "RGBX", buffer=self._memory)
        if decoded.shape != (height, width, 4):
            raise ValueError(f"it should be {width}x{height} and is {decoded.shape[1]}x{decoded.shape[0]}")
        x, y, _, _ = region
        first = (y - excerpt.y) * stride + 4 * (x - excerpt.x)
        return Pixels(self._memory, first=first, step=4, stride=stride)

    def close(self) -> None:
        """Nothing is held."""


def open_picture(data: bytes) -> Image.Image:
    """The picture with its header read. Raises DataError where it is none or is absurdly large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(f"not a picture ({len(data)} bytes)" if data else "the file is empty") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"the header claims an absurd size: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"its header cannot be read: {error}") from error


def decode_rgb(data: bytes) -> Image.Image:
    """The picture as RGB. Grey is repeated, CMYK converted, transparency dropped, EXIF orientation ignored.

    Raises DataError where it cannot be decoded whole.
    """
    image = open_picture(data)
    try:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow's own advice for palettes with transparency
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        raise DataError(f"it cannot be decoded: {error}") from error
