"""Crop-addressed JPEG: a crop is read, cut out and decoded at the price of the crop (docs/FORMAT.md).

The picture's entropy-coded data is a grid of tiles that can be decoded on their own: ``columns`` restart intervals in
each row of MCUs. A crop's tiles, behind the picture's own header with the height and width changed, are a small JPEG
which any decoder decodes to the very pixels that it would give for that part of the whole picture.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .jpeg import read_header
from .kernel import kernel

U8 = npt.NDArray[np.uint8]
IDENTIFIER = b"CropJPG\0"
VERSION = 1

# How a crop-addressed file begins: SOI, APP9, the segment's length, the identifier; version, CRC-32 of the header but
# for these four bytes, header length, place of SOF0, width and height of the picture and of an MCU in pixels, restart
# interval in MCUs. Then, for each row of MCUs and for the end of the last, its place in the entropy-coded data, and the
# CRC-32 of all that comes before it there: the CRC of any rows follows from two of these.
PREFIX = struct.Struct(">4s H 8s B I I I HH BB H")
SOI_APP9 = b"\xff\xd8\xff\xe9"
CRC_AT, CRC_END = 15, 19
ROW = struct.Struct(">II")
SEGMENT_MAX = 65535  # a segment's length is 16 bits and counts itself

_RST0, _EOI = 0xD0, 0xD9


class LayoutError(Exception):
    """A picture is not laid out as its header says, or says nothing: it must be decoded whole."""


class Tiles(NamedTuple):
    """A rectangle of tiles."""

    left: int  # columns left to right (excluded)
    right: int
    top: int  # rows top to bottom (excluded)
    bottom: int


class Excerpt(NamedTuple):
    """A file that holds a part of a picture, or all of it."""

    data: bytes | U8  # the picture's own bytes, or the JPEG of some of its tiles: uint8 [bytes]
    x: int  # where it lies in the picture, in pixels
    y: int
    width: int  # its own size
    height: int
    components: int  # of a JPEG: 1 grey, 3 colour, 4 CMYK; 0 of anything else


def whole_picture(data: bytes, width: int, height: int) -> Excerpt:
    """All of a picture, of which the size is known. One whose header says another is none of ours to make room for."""
    header = read_header(data)
    fits = header is not None and (header.width, header.height) == (width, height)
    return Excerpt(data, 0, 0, width, height, header.components if header and fits else 0)


class Layout(NamedTuple):
    """The grid of tiles of one picture, from its header."""

    header: bytes  # SOI to SOS
    sof_at: int
    width: int  # of the picture, in pixels
    height: int
    tile_width: int  # pixels
    tile_height: int  # pixels: one row of MCUs
    columns: int
    rows: int
    margin: int  # pixels around a crop that its own pixels depend on: chroma is interpolated from its neighbours

    def tiles(self, x: int, y: int, width: int, height: int) -> Tiles:
        """The tiles from which a part of the picture can be decoded exactly."""
        margin = self.margin
        return Tiles(
            max(0, (x - margin) // self.tile_width),
            min(self.columns, -((x + width + margin) // -self.tile_width)),
            max(0, (y - margin) // self.tile_height),
            min(self.rows, -((y + height + margin) // -self.tile_height)),
        )

    def span(self, tiles: Tiles) -> tuple[int, int]:
        """From where to where the rows of some tiles lie in the file, in bytes, with the marker that ends the last."""
        return len(self.header) + self._row(tiles.top)[0], len(self.header) + self._row(tiles.bottom)[0]

    def is_intact(self, tiles: Tiles, body: bytearray) -> bool:
        """Whether ``body`` is what was written at ``span(tiles)``."""
        return zlib.crc32(body, self._row(tiles.top)[1]) == self._row(tiles.bottom)[1]

    def table(self) -> bytes:
        """The places and CRCs of all rows, as they are in the header."""
        return self.header[PREFIX.size : PREFIX.size + ROW.size * (self.rows + 1)]

    def _row(self, row: int) -> tuple[int, int]:
        """Place of a row, and CRC of what is before it."""
        place, crc = ROW.unpack_from(self.header, PREFIX.size + ROW.size * row)
        return place, crc


def header_crc(header: bytes) -> int:
    """CRC-32 of a header, SOI to SOS, without the field that holds it."""
    return zlib.crc32(header[CRC_END:], zlib.crc32(header[:CRC_AT]))


def read_layout(header: bytes, known_crc: int | None = None) -> Layout:
    """The layout of a picture from its header, SOI to SOS, of which not one bit may have changed.

    ``known_crc`` is the CRC that it had when it was written, where that is known from elsewhere.

    Raises LayoutError where the header has no segment of ours, or not one that can be relied on.
    """
    if len(header) < PREFIX.size:
        raise LayoutError("not crop-addressed")
    marker, segment, identifier, version, crc, length, sof_at, width, height, mcu_width, mcu_height, interval = (
        PREFIX.unpack_from(header)
    )
    if marker != SOI_APP9 or identifier != IDENTIFIER:
        raise LayoutError("not crop-addressed")
    if version != VERSION:
        raise LayoutError(f"crop-addressed in version {version}, this reader knows {VERSION}")
    if length != len(header) or crc != header_crc(header) or known_crc not in (None, crc):
        raise LayoutError("its header has been changed")
    rows = -(height // -mcu_height) if mcu_height else 0
    mcus = -(width // -mcu_width) if mcu_width else 0
    if not (rows and mcus and interval) or mcus % interval or 4 + segment != PREFIX.size + ROW.size * (rows + 1):
        raise LayoutError("its header contradicts itself")
    frame = header[sof_at : sof_at + 9]  # SOF0 or SOF1, length, precision, height and width
    if frame[:2] not in (b"\xff\xc0", b"\xff\xc1") or frame[5:] != height.to_bytes(2) + width.to_bytes(2):
        raise LayoutError("its header contradicts itself")
    return Layout(
        header=header,
        sof_at=sof_at,
        width=width,
        height=height,
        tile_width=interval * mcu_width,
        tile_height=mcu_height,
        columns=mcus // interval,
        rows=rows,
        margin=int(mcu_width > 8 or mcu_height > 8),
    )


def splice(layout: Layout, tiles: Tiles, body: bytearray) -> Excerpt:
    """The JPEG of some tiles.

    Args:
        body: the bytes of ``layout.span(tiles)``; changed in place.

    Raises LayoutError where they are not the bytes that were written: a picture that is damaged.
    """
    if not layout.is_intact(tiles, body):
        raise LayoutError("its data has been changed")
    left, top = tiles.left * layout.tile_width, tiles.top * layout.tile_height
    width = min(tiles.right * layout.tile_width, layout.width) - left
    height = min(tiles.bottom * layout.tile_height, layout.height) - top
    header = bytearray(layout.header[:2] + layout.header[PREFIX.size + ROW.size * (layout.rows + 1) :])
    sof_at = layout.sof_at + len(header) - len(layout.header)
    header[sof_at + 5 : sof_at + 9] = height.to_bytes(2) + width.to_bytes(2)
    out = np.empty(len(header) + len(body), np.uint8)
    out[: len(header)] = np.frombuffer(header, np.uint8)
    end = _copy_tiles(np.frombuffer(body, np.uint8), layout.columns, tiles.left, tiles.right, out, len(header))
    if not end:
        raise LayoutError("its restart markers are not those of its header")
    return Excerpt(out[:end], left, top, width, height, header[sof_at + 9])


_ONES = np.uint64(0x0101010101010101)
_HIGHS = np.uint64(0x8080808080808080)


@kernel
def _copy_tiles(body: U8, columns: int, left: int, right: int, out: U8, at: int) -> int:
    """Copy the columns ``left`` to ``right`` of whole rows of tiles, with their markers numbered anew and EOI last.

    ``out`` has room for all of ``body`` behind ``at``. Returns where the copy ends, or 0 where the markers do not make
    whole rows.
    """
    size = len(body)
    eights = body[: size >> 3 << 3].view(np.uint64)
    column, kept, begin, end, start = 0, 0, 0, 0, at
    for eight in range(len(eights) + 1):
        # A byte of 0xFF is a zero in the complement: eight are looked at together (Mycroft's test, 1987).
        if eight < len(eights) and (~eights[eight] - _ONES) & eights[eight] & _HIGHS == 0:
            continue
        for i in range(eight << 3, min((eight + 1) << 3, size - 1)):
            if body[i] != 0xFF or body[i + 1] == 0:
                continue
            end = i + 2
            if left <= column < right:
                body[i + 1] = 0xD0 + (kept & 7)
                kept += 1
                if column == right - 1:
                    out[at : at + end - begin] = body[begin:end]
                    at += end - begin
            column = column + 1 if column + 1 < columns else 0
            if column == left:
                begin = end
    if column or at == start or end != size:
        return 0
    out[at - 1] = _EOI
    return at


def describe(data: bytes) -> tuple[int, int]:
    """Length and CRC of a crop-addressed picture's header, after a look at every byte; (0, 0) for any other."""
    if len(data) < PREFIX.size or data[:4] != SOI_APP9:
        return 0, 0
    length = int.from_bytes(data[CRC_END : CRC_END + 4])
    try:
        layout = read_layout(data[:length])
    except LayoutError:
        return 0, 0
    if not _is_true(layout):
        return 0, 0
    markers, numbers = _find_markers(np.frombuffer(data, np.uint8)[length:])
    tiles = layout.columns * layout.rows
    if (
        len(markers) != tiles
        or markers[-1] != len(data) - length - 2
        or numbers[-1] != _EOI
        or (numbers[:-1] != _RST0 + (np.arange(tiles - 1) & 7)).any()
    ):
        return 0, 0
    if layout.table() != row_table(data[length:], markers[layout.columns - 1 :: layout.columns] + 2):
        return 0, 0
    return length, int.from_bytes(data[CRC_AT:CRC_END])


def _is_true(layout: Layout) -> bool:
    """Whether the segments behind ours are one frame and one scan, of the tiles that ours says.

    Only of those does a splice decode to what the whole does; whoever made the file may have written anything.
    """
    header, at = layout.header, PREFIX.size + ROW.size * (layout.rows + 1)
    interval, mcu, components = 0, (0, 0), b""
    while at + 4 <= len(header):
        marker, end = header[at : at + 2], at + 2 + int.from_bytes(header[at + 2 : at + 4])
        payload = header[at + 4 : end]
        if marker[0] != 0xFF or end > len(header):
            return False
        if marker == b"\xff\xdd":
            interval = int.from_bytes(payload)
        elif at == layout.sof_at:
            if len(payload) < 9 or payload[0] != 8 or len(payload) != 6 + 3 * payload[5]:
                return False
            components, factors = payload[6::3], payload[7::3]
            mcu = 8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors)
            mcu = mcu if len(factors) > 1 else (8, 8)
        elif marker == b"\xff\xda":
            one_scan = payload[:1] == bytes([len(components)]) and payload[1:-3:2] == components and end == len(header)
            return one_scan and interval * mcu[0] == layout.tile_width and mcu[1] == layout.tile_height
        elif marker[1] not in (0xDB, 0xC4, 0xFE, *range(0xE0, 0xF0)):
            return False
        at = end
    return False


def row_table(body: bytes, ends: npt.NDArray[np.int64]) -> bytes:
    """The table of the header, for entropy-coded data whose rows end, behind their markers, at ``ends``."""
    table, before, crc = [ROW.pack(0, 0)], 0, 0
    for end in ends.tolist():
        crc = zlib.crc32(body[before:end], crc)
        table.append(ROW.pack(end, crc))
        before = end
    return b"".join(table)


def _find_markers(data: U8) -> tuple[npt.NDArray[np.int64], U8]:
    """Where in entropy-coded data the markers are, and what they are: 0xFF is followed by 0 where it is none."""
    ff = np.flatnonzero(data[:-1] == 0xFF)
    following = data[ff + 1]
    is_marker = following != 0
    return ff[is_marker], following[is_marker]
