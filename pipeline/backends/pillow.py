"""Decode, cut, resize and mirror with Pillow, or pillow-simd where it is installed: the reference for every backend.

pillow-simd is Pillow with the resize rewritten for SSE4 and AVX2: 5 to 6 times faster there, 1.7 to 2 times over the
whole path, with pixels within 1 of Pillow's (0.04 on average).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import PIL
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ..augment import Crops
from ..crop_jpeg import Excerpt
from ..errors import DataError, PictureError
from ..jpeg import read_header
from ..pictures import Pictures

Image.MAX_IMAGE_PIXELS = 1 << 28  # 268 megapixels; a header that claims more is refused before anything is allocated


def is_simd() -> bool:
    """Whether the Pillow in use is pillow-simd, which marks its version with ``.postN``."""
    return ".post" in PIL.__version__


_SIMD = is_simd()


class PillowBackend:
    """Fills rows of a slot one picture after the other, on one core.

    libjpeg-turbo (through simplejpeg) writes RGBX straight into a buffer of ours, Pillow resizes the crop from where
    it lies in it: no pixel is copied between the two.
    """

    def __init__(self, *, image_size: int, max_pictures: int):
        self.image_size = image_size
        self._pixels = np.empty(0, np.uint8)  # grows to the largest picture that was met

    def fill(self, pictures: Pictures, crops: Crops, out_NHWC: npt.NDArray[np.uint8]) -> None:
        """Write N crops into ``out_NHWC``, uint8 [N, S, S, 3]. Raises PictureError for what cannot be decoded."""
        rows = zip(crops.region.tolist(), crops.box.tolist(), crops.flip.tolist(), strict=True)
        for row, (region, box, flip) in enumerate(rows):
            try:
                image = self.cut(pictures, row, region, pictures.excerpt(row, region))
            except DataError as error:
                raise PictureError(row, str(error)) from error
            self.store(self.resize(image, box), flip, out_NHWC[row])

    def cut(self, pictures: Pictures, row: int, region: Sequence[int], excerpt: Excerpt) -> Image.Image:
        """``region`` of a picture, decoded from an excerpt that holds it: valid until the next call.

        What is neither a grey nor a colour JPEG is decoded whole; so is a damaged one, and it is noted. Raises
        DataError where a picture cannot be decoded at all.
        """
        try:
            return self._decode(excerpt, region)
        except ValueError as error:
            image = decode_rgb(pictures.whole(row).data)
            if _is_grey_or_colour(excerpt.data):
                pictures.damaged.setdefault(row, str(error))
        want = (int(pictures.widths[row]), int(pictures.heights[row]))
        if image.size != want:
            raise DataError(f"the index says {want[0]}x{want[1]}, the picture is {image.width}x{image.height}")
        x, y, w, h = region
        return image.crop((x, y, x + w, y + h))

    def _decode(self, excerpt: Excerpt, region: Sequence[int]) -> Image.Image:
        """Raises ValueError for what is no grey or colour JPEG, and where libjpeg says that one is damaged."""
        width, height = excerpt.width, excerpt.height
        stride = 4 * width
        # One row more than there is: seen from a place inside the first row, the last ends as far beyond.
        if len(self._pixels) < stride * (height + 1):
            self._pixels = np.empty(stride * (height + 1), np.uint8)
        if not _is_grey_or_colour(excerpt.data):
            raise ValueError("no JPEG in grey or colour")  # of CMYK, Pillow's conversion is the one policy
        decoded = simplejpeg.decode_jpeg(excerpt.data, "RGBX", buffer=self._pixels)
        if decoded.shape != (height, width, 4):
            raise ValueError(f"it should be {width}x{height} and is {decoded.shape[1]}x{decoded.shape[0]}")
        x, y, w, h = region
        first = (y - excerpt.y) * stride + 4 * (x - excerpt.x)
        return Image.frombuffer("RGBX", (w, h), self._pixels[first:], "raw", "RGBX", stride, 1)

    def resize(self, image: Image.Image, box: list[float]) -> Image.Image:
        """A crop at its final size. It was cut out before: the filter must not see pixels outside the region."""
        if not _SIMD:
            image = image.convert("RGB")  # plain Pillow would work on the fourth channel too
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
            rows[:] = np.frombuffer(image.tobytes("raw", "RGB"), np.uint8).reshape(rows.shape)

    def close(self) -> None:
        """Nothing is held."""


def _is_grey_or_colour(data: bytes) -> bool:
    header = read_header(data)
    return header is not None and header.components in (1, 3)


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
