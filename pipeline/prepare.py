"""What becomes of a picture's bytes on their way into a shard: the ``--jpeg`` modes of tools/make_shards.py."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import simplejpeg
from PIL import Image

from .backends.pillow import decode_rgb, open_picture
from .crop_jpeg import describe
from .errors import DataError
from .jpeg import has_end, read_header
from .shards import MAX_SIDE
from .transcoder import NotTranscodableError, to_crop_addressed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture as a shard holds it."""

    data: bytes
    width: int  # pixels
    height: int
    header: int = 0  # of a crop-addressed picture: length in bytes of its header, and the CRC-32 in it
    crc: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recode:
    """How ``--jpeg recode`` makes pictures smaller."""

    max_side: int  # pixels of the long side; a smaller picture is not enlarged
    quality: int  # of libjpeg, 1 to 100; chroma is subsampled 4:2:0


def _verbatim(data: bytes, _: Recode) -> Prepared:
    """The original bytes, after one whole decode."""
    width, height = _decode(data).size
    return _described(data, width, height)


def _crop(data: bytes, recode: Recode) -> Prepared:
    """The same picture, crop-addressed; what is no JPEG, or one that decodes with warnings, keeps its bytes."""
    try:
        written = to_crop_addressed(data)
    except NotTranscodableError:
        return _verbatim(data, recode)
    header = read_header(written)
    assert header is not None
    # Whatever comes out must be what libjpeg takes without a warning; an eighth of the size is enough to read it all.
    simplejpeg.decode_jpeg(
        written, "CMYK" if header.components == 4 else "GRAY", min_factor=8, min_height=1, min_width=1
    )
    return _described(written, header.width, header.height)


def _recode(data: bytes, recode: Recode) -> Prepared:
    """Resized and encoded anew, crop-addressed."""
    image = _decode(data)
    if open_picture(data).mode == "L":
        image = image.convert("L")
    scale = recode.max_side / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=recode.quality, subsampling="4:2:0")
    return _crop(file.getvalue(), recode)


PREPARE: dict[str, Callable[[bytes, Recode], Prepared]] = {"crop": _crop, "recode": _recode, "verbatim": _verbatim}
JPEG_MODES = tuple(PREPARE)


def prepare(mode: str, data: bytes, recode: Recode) -> Prepared:
    """The bytes to store. Raises DataError for a damaged picture, with what is wrong with it."""
    return PREPARE[mode](data, recode)


def _decode(data: bytes) -> Image.Image:
    """The whole picture as RGB. Raises DataError for a damaged one."""
    if read_header(data) and not has_end(data):
        raise DataError("the JPEG is truncated (no end-of-image marker)")
    return decode_rgb(data)


def _described(data: bytes, width: int, height: int) -> Prepared:
    if max(width, height) > MAX_SIDE:
        raise DataError(f"it is {width}x{height} pixels, a side may have {MAX_SIDE}")
    header, crc = describe(data)
    return Prepared(data=data, width=width, height=height, header=header, crc=crc)
