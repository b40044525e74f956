"""What becomes of a picture's bytes on their way into a shard: the ``--jpeg`` modes of tools/make_shards.py."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeGuard

import simplejpeg
from PIL import Image

from .backends.pillow import Decoded, decode_picture
from .crop_jpeg import describe
from .errors import DataError
from .jpeg import has_end
from .shards import MAX_SIDE
from .transcoder import (
    DamagedJpegError,
    NotTranscodableError,
    Survey,
    read_coefficients,
    survey_jpeg,
    to_crop_addressed,
)

LISTED = ("normalised", "kept", "warnings")  # kinds of remark that name the picture
COUNTED = ("progressive", "arithmetic", "exif_orientation")  # kinds of which only the number is kept

_NORMALISED = {"quality": 98, "subsampling": "4:4:4"}
_JPEG_SIDE = 65500  # pixels: what libjpeg writes


class Remark(NamedTuple):
    """What should be known of a picture that went into a shard."""

    kind: str  # one of LISTED or COUNTED
    text: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture as a shard holds it."""

    data: bytes
    width: int  # pixels
    height: int
    header: int = 0  # of a crop-addressed picture: length in bytes of its header, and the CRC-32 in it
    crc: int = 0
    remarks: tuple[Remark, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recode:
    """How ``--jpeg recode`` makes pictures smaller."""

    max_side: int  # pixels of the long side; a smaller picture is not enlarged
    quality: int  # of libjpeg, 1 to 100; chroma is subsampled 4:2:0


def _verbatim(data: bytes, survey: Survey | None, _: Recode) -> Prepared:
    """The original bytes, after one whole decode."""
    if _is_ordinary(survey):
        if warned := _warnings(data, survey):
            decode_picture(data)
        return _described(data, survey.width, survey.height, warned)
    decoded, remarks = _decode(data, survey)
    return _described(data, *decoded.image.size, (*remarks, Remark("kept", f"{_what(decoded)}, when it is decoded")))


def _crop(data: bytes, survey: Survey | None, _: Recode) -> Prepared:
    """The same picture, crop-addressed: a grey or colour JPEG loses no pixel, all else is encoded anew."""
    if not _is_ordinary(survey):
        return _normalised(data, survey)
    try:
        written = to_crop_addressed(data)
    except DamagedJpegError:
        raise
    except NotTranscodableError as error:
        return _normalised(data, survey, f" ({error})")
    # Whatever comes out must be what libjpeg takes without a warning; an eighth of the size is enough to read it all.
    simplejpeg.decode_jpeg(written, "GRAY", min_factor=8, min_height=1, min_width=1)
    kinds = {"progressive": survey.progressive, "arithmetic": survey.arithmetic}
    return _described(written, survey.width, survey.height, [Remark(kind) for kind, is_it in kinds.items() if is_it])


def _recode(data: bytes, survey: Survey | None, recode: Recode) -> Prepared:
    """Resized and encoded anew, crop-addressed."""
    decoded, remarks = _decode(data, survey)
    image = decoded.image
    scale = recode.max_side / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if not _is_ordinary(survey):
        remarks += (Remark("normalised", f"{_what(decoded)}, encoded as JPEG like all others"),)
    return _encoded(image, remarks, quality=recode.quality, subsampling="4:2:0")


def _normalised(data: bytes, survey: Survey | None, why: str = "") -> Prepared:
    """What has no lossless crop-addressed form: its pixels, encoded as a JPEG that has one."""
    decoded, remarks = _decode(data, survey)
    done = f"encoded as JPEG (quality {_NORMALISED['quality']}, {_NORMALISED['subsampling']})"
    remarks += (Remark("normalised", f"{_what(decoded)}{why}, {done}"),)
    return _encoded(decoded.image, remarks, **_NORMALISED)


PREPARE: dict[str, Callable[[bytes, Survey | None, Recode], Prepared]] = {
    "crop": _crop,
    "recode": _recode,
    "verbatim": _verbatim,
}
JPEG_MODES = tuple(PREPARE)


def prepare(mode: str, data: bytes, recode: Recode) -> Prepared:
    """The bytes to store; what the picture is, its content says, not its name.

    Raises DataError for a damaged picture, with what is wrong with it.
    """
    try:
        survey = survey_jpeg(data)
        if survey and not has_end(data):
            raise DataError("the JPEG is truncated (no end-of-image marker)")
        prepared = PREPARE[mode](data, survey, recode)
    except DamagedJpegError as error:
        raise DataError(str(error)) from error
    if survey and survey.orientation != 1:
        return dataclasses.replace(prepared, remarks=(*prepared.remarks, Remark("exif_orientation")))
    return prepared


def _is_ordinary(survey: Survey | None) -> TypeGuard[Survey]:
    """Whether it is a JPEG in grey or colour: what every decoder takes as it is."""
    return survey is not None and survey.components in (1, 3)


def _what(decoded: Decoded) -> str:
    return ", ".join((f"a {decoded.kind}", *decoded.changes))


def _decode(data: bytes, survey: Survey | None) -> tuple[Decoded, tuple[Remark, ...]]:
    """The whole picture, and what libjpeg warned of. Raises DataError for a damaged one."""
    warned = _warnings(data, survey) if survey else ()
    decoded = decode_picture(data)
    turned = survey is None and decoded.orientation != 1
    return decoded, (*warned, *([Remark("exif_orientation")] if turned else []))


def _warnings(data: bytes, survey: Survey) -> tuple[Remark, ...]:
    """The first of libjpeg's warnings of a JPEG. Raises DamagedJpegError where much of the picture is missing."""
    try:
        simplejpeg.decode_jpeg(data, "CMYK" if survey.components == 4 else "RGB")
    except ValueError as error:
        try:
            read_coefficients(data)
        except DamagedJpegError:
            raise
        except NotTranscodableError:
            pass
        return (Remark("warnings", str(error)),)
    return ()


def _encoded(image: Image.Image, remarks: tuple[Remark, ...], **options: object) -> Prepared:
    if max(image.size) > _JPEG_SIDE:
        raise DataError(f"it is {image.width}x{image.height} pixels, a side of a JPEG may have {_JPEG_SIDE}")
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return _described(to_crop_addressed(file.getvalue()), *image.size, remarks)


def _described(data: bytes, width: int, height: int, remarks: Iterable[Remark]) -> Prepared:
    if max(width, height) > MAX_SIDE:
        raise DataError(f"it is {width}x{height} pixels, a side may have {MAX_SIDE}")
    header, crc = describe(data)
    return Prepared(data=data, width=width, height=height, header=header, crc=crc, remarks=tuple(remarks))
