"""What the first bytes of a picture say: the size and kind of a JPEG, without decoding it.

Source: ITU-T T.81 (the JPEG standard), annex B.
"""

from __future__ import annotations

import dataclasses

MAX_PIXELS = 1 << 28  # 268 megapixels; a header that claims more is refused before anything is allocated


@dataclasses.dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """What the frame header says."""

    width: int
    height: int
    components: int  # 1 grey, 3 colour, 4 CMYK or YCCK
    baseline: bool  # sequential Huffman, 8 bit: what every decoder takes


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 ... SOF15 without DHT, JPG and DAC


def read_header(data: bytes) -> JpegHeader | None:
    """The frame header of a JPEG, or None where the bytes are no JPEG or hold no whole frame header.

    Costs a few microseconds: it hops from segment to segment and touches none of the picture.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(data)
    while at + 4 <= end:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if marker in _FRAMES:
            if at + 10 > end or length < 8:
                return None
            height = data[at + 5] << 8 | data[at + 6]
            width = data[at + 7] << 8 | data[at + 8]
            if not width or not height:
                return None
            baseline = marker in (0xC0, 0xC1) and data[at + 4] == 8
            return JpegHeader(width=width, height=height, components=data[at + 9], baseline=baseline)
        if marker in (0xD9, 0xDA) or length < 2:  # the picture begins or ends before a frame was described
            return None
        at += 2 + length
    return None


def has_end(data: bytes) -> bool:
    """Whether a JPEG has its end-of-image marker, at most a little padding away from its end. A cut file has not."""
    return b"\xff\xd9" in data[-4096:]
