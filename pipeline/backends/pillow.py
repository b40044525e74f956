"""Decode with libjpeg-turbo, and with Pillow what is no ordinary JPEG; resize straight into the slot: the reference for
every backend. The pixels are Pillow's: a recipe of its ``open``, ``crop`` and ``resize`` gives the same within 1.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError, features

from ..augment import Crops
from ..crop_jpeg import Excerpt
from ..errors import DataError, PictureError
from ..jpeg import MAX_PIXELS
from ..pictures import Pictures
from ..resample import Pixels, Resampler
from ..watch import DECODE, RESIZE

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# What a folder of pictures holds. Pillow knows forty more, and runs a program (Ghostscript) on one of them.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", *(("WEBP",) if features.check("webp") else ()))
_ORIENTATION = 0x0112  # EXIF


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
            pictures.lap(DECODE, row)
            self.resampler.resize(pixels, region[2], region[3], box=box, flip=flip, out_HWC=out_NHWC[row])
            pictures.lap(RESIZE, row)

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
            warnings.simplefilter("ignore")  # of metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        what = f"not a picture ({len(data)} bytes) of a kind that is read: {', '.join(FORMATS)}"
        if data[8:12] == b"WEBP" and not features.check("webp"):
            what = "a WebP, which this build of Pillow cannot read: pip install pillow"
        raise DataError(what if data else "the file is empty") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"the header claims an absurd size: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"its header cannot be read: {error}") from error


class Decoded(NamedTuple):
    """A picture as the one policy has it, and what that meant for this one."""

    image: Image.Image  # grey or RGB, 8 bits
    kind: str  # the file's format
    changes: tuple[str, ...]  # what was done that shows, or would: "alpha dropped"
    orientation: int  # of EXIF, and ignored: 1 is upright


def decode_picture(data: bytes) -> Decoded:
    """The picture as grey or RGB. CMYK is converted, as Adobe's marker has it; transparency is dropped, palettes are
    expanded, of 16 bits the upper 8 are taken, of a film the first frame; EXIF orientation is ignored.

    Raises DataError where it cannot be decoded whole.
    """
    image = open_picture(data)
    kind, mode, changes = str(image.format).replace("MPO", "JPEG"), image.mode, _changes(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata
            if mode == "F":
                raise DataError("its samples are floating point, which has no one range to scale from")
            if mode.startswith("I"):
                image = _eight_bits(image)
            if mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # Pillow's own advice for palettes with transparency
            orientation = int(image.getexif().get(_ORIENTATION, 1)) if "exif" in image.info else 1
            image = image.convert("L" if mode in ("1", "L", "LA", "La") or image.mode == "L" else "RGB")
    except DataError:
        raise
    except Exception as error:  # what Pillow's many decoders raise for a damaged file is of any kind
        raise DataError(f"it cannot be decoded: {error}") from error
    return Decoded(image, kind, changes, orientation)


def _changes(image: Image.Image) -> tuple[str, ...]:
    """What ``decode_picture`` does to a picture that is more than grey or RGB of 8 bits."""
    mode, kind = image.mode, image.format
    ycck = kind == "JPEG" and image.info.get("adobe_transform") == 2
    deep = mode.startswith("I") or (kind in ("PNG", "TIFF") and ";16" in str(getattr(image, "tile", "")))
    said = {
        "first frame taken": kind in ("GIF", "PNG", "WEBP", "TIFF") and getattr(image, "is_animated", False),
        "16 bits scaled to 8": deep,
        "palette expanded": mode == "P",
        "alpha dropped": mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
        f"{'YCCK' if ycck else 'CMYK'} converted to RGB": mode == "CMYK",
    }
    return tuple(what for what, is_so in said.items() if is_so)


def decode_rgb(data: bytes) -> Image.Image:
    """The picture as RGB, grey repeated. Raises DataError where it cannot be decoded whole."""
    return decode_picture(data).image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits; Pillow's own conversion would clip it."""
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise DataError("its samples have more than 16 bits, which have no one range to scale from")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
