"""What a JPEG's markers say of it: of which kind it is, and whether it may be decoded at all.

Source: ITU-T T.81 (the JPEG standard), annex B.
"""

from __future__ import annotations

import contextlib
import dataclasses

from ..exif import read_orientation
from ..jpeg import MAX_PIXELS
from .frame import BLOCKS_PER_BYTE, Frame
from .tables import DamagedJpegError, NotTranscodableError, reject

MAX_SCANS = 100  # a progressive picture has about ten; decoding takes scans x blocks, so thousands would take minutes

_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 ... SOF15 without DHT, JPG and DAC
_ALONE = frozenset(range(0xD0, 0xD9)) | {0x00, 0x01}  # RST, SOI, TEM, and what is none: no length follows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What is known of a JPEG that may be decoded."""

    width: int  # pixels
    height: int
    components: int  # 1 grey, 3 colour, 4 CMYK or YCCK
    progressive: bool
    arithmetic: bool
    orientation: int  # of EXIF: 1 is upright


def survey_jpeg(data: bytes) -> Survey | None:
    """Look at a JPEG's markers; None where the bytes are none. Linear in the file's size, and nothing is allocated.

    Raises DamagedJpegError for a frame that is too large, or larger than such a file can hold, and for too many scans.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, orientation, kind, frame = 2, 1, 0, b""
    while True:
        at = data.find(b"\xff", at)  # what belongs to no segment is passed over, as decoders do
        if at < 0 or at + 4 > len(data):
            reject("the JPEG is truncated: it ends before its picture begins")
        marker = data[at + 1]
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (_EOI, _SOS):
            break
        end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
        if marker in _FRAMES:
            kind, frame = marker, data[at + 4 : end]
            _check_frame(kind, frame, len(data))
        elif marker == _APP1 and orientation == 1:
            orientation = read_orientation(data[at + 4 : end])
        at = end
    if not kind:
        reject("the JPEG holds no picture")
    # Chance makes these two bytes in metadata too, so that only many of them are worth a closer look.
    if data.count(b"\xff\xda", at) > MAX_SCANS and _has_more_scans(data, at):
        reject(f"a JPEG of more than {MAX_SCANS} scans, which would take too long")
    return Survey(
        width=int.from_bytes(frame[3:5]),
        height=int.from_bytes(frame[1:3]),
        components=frame[5],
        progressive=bool(kind & 2),
        arithmetic=kind >= 0xC9,
        orientation=orientation,
    )


def _check_frame(marker: int, payload: bytes, file_size: int) -> None:
    """Raises DamagedJpegError for a frame that is not to be decoded."""
    height, width = int.from_bytes(payload[1:3]), int.from_bytes(payload[3:5])
    if len(payload) < 6 or not width or not height:
        reject("the JPEG's frame header is damaged, or states no size")
    if width * height > MAX_PIXELS:
        reject(f"the header claims an absurd size: {width}x{height} pixels, {MAX_PIXELS} are allowed")
    if marker not in BLOCKS_PER_BYTE:
        return  # lossless or hierarchical: a decoder may take it, or says that it does not
    try:
        Frame(marker, payload, file_size)
    except DamagedJpegError:
        raise
    except NotTranscodableError:
        pass  # a decoder may take it


def _has_more_scans(data: bytes, at: int) -> bool:
    scans = 0
    with contextlib.suppress(IndexError):
        while scans <= MAX_SCANS and (at := data.find(b"\xff", at)) >= 0:
            marker = data[at + 1]
            scans += marker == _SOS
            if marker == _EOI:
                break
            if marker == 0xFF or marker in _ALONE:
                at += 1 if marker == 0xFF else 2
            else:
                at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return scans > MAX_SCANS
