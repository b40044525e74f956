"""Decode, cut, resize and mirror with Pillow, or pillow-simd where it is installed: the reference for every backend.

pillow-simd is Pillow with the resize rewritten for SSE4 and AVX2: 5 to 6 times faster there, 1.7 to 2 times over the
whole path, with pixels within 1 of Pillow's (0.04 on average).
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, UnidentifiedImageError

from ..augment import Crops
from ..errors import DataError, PictureError

Image.MAX_IMAGE_PIXELS = 1 << 28  # 268 megapixels; a header that claims more is refused before anything is allocated


def is_simd() -> bool:
    """Whether the Pillow in use is pillow-simd, which marks its version with ``.postN``."""
    return ".post" in PIL.__version__


class PillowBackend:
    """Fills rows of a slot one picture after the other, on one core."""

    def __init__(self, *, image_size: int, max_pictures: int, threads: int = 1):
        self.image_size = image_size

    def fill(self, pictures: list[bytes], crops: Crops, out_NHWC: npt.NDArray[np.uint8]) -> None:
        """Write N crops into ``out_NHWC``, uint8 [N, S, S, 3]. Raises PictureError for what cannot be decoded."""
        boxes = zip(crops.region.tolist(), crops.box.tolist(), crops.flip.tolist(), strict=True)
        for row, (picture, (region, box, flip)) in enumerate(zip(pictures, boxes, strict=True)):
            try:
                image = decode_rgb(picture)
            except DataError as error:
                raise PictureError(row, str(error)) from error
            self.store(self.cut_and_resize(image, region, box), flip, out_NHWC[row])

    def cut_and_resize(self, image: Image.Image, region: list[int], box: list[float]) -> Image.Image:
        """One crop at its final size. Cut first: the filter must not see pixels outside the region."""
        x, y, w, h = region
        if (w, h) != image.size:
            image = image.crop((x, y, x + w, y + h))
        size = (self.image_size, self.image_size)
        return image.resize(size, Image.Resampling.BILINEAR, box=(box[0], box[1], box[2], box[3]))

    def store(self, image: Image.Image, flip: bool, out_HWC: npt.NDArray[np.uint8]) -> None:
        """Copy a finished crop to its row, mirrored where ``flip``."""
        rows = out_HWC.reshape(len(out_HWC), -1)
        if flip:
            # A row of BGR read from its end is the mirrored row of RGB: one pass over bytes, 6 times faster than
            # numpy's walk over reversed pixels.
            rows[:] = np.frombuffer(image.tobytes("raw", "BGR"), np.uint8).reshape(rows.shape)[:, ::-1]
        else:
            rows[:] = np.frombuffer(image.tobytes(), np.uint8).reshape(rows.shape)

    def close(self) -> None:
        """Nothing is held."""


def open_picture(data: bytes) -> Image.Image:
    """The picture with its header read. Raises DataError where it is none or is absurdly large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
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
