"""The exact quantised DCT coefficients of a JPEG of any ordinary kind, and the refusal of every other file.

The first half of a lossless transcoder, so it is stricter than a decoder: where a decoder would warn and show
something, the file is refused. Source: ITU-T T.81 (the JPEG standard), annex B.
"""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from .arithmetic import decode_arithmetic
from .entropy import KIND, MESSAGES, MISSING, PADDING, decode_sequential, unstuff
from .frame import BLOCKS_PER_BYTE, Frame, Plane
from .progressive import decode_progressive
from .survey import MAX_SCANS
from .tables import NotTranscodableError, Tables, refuse, reject

__all__ = ["Coefficients", "Component", "NotTranscodableError", "read_coefficients"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One component of the frame and its coefficients.

    `blocks` is [rows, columns, 64], the coefficients in zigzag order, |DC| <= 2047 and |AC| <= 1023. It is padded to
    whole interleaved MCUs; of a picture's only component it is exactly ceil(height / 8) x ceil(width / 8). Padding that
    the file does not code repeats the DC of the block before it in the row, and below the last row, of that above it.
    """

    id: int
    h: int  # sampling factors, as the frame header has them
    v: int
    table: int  # number of its quantisation table
    blocks: npt.NDArray[np.int16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coefficients:
    """A whole picture, and what a decoder needs to show the same pixels.

    `quantisation` has the 64 values in zigzag order of every table number that a component names. `jfif` is the payload
    of APP0 where it is JFIF's, without the thumbnail, and `adobe` that of APP14 where it is Adobe's: with the
    components' identifiers they say what the colours are.
    """

    width: int  # pixels
    height: int
    components: tuple[Component, ...]  # 1 to 4, in frame order
    quantisation: dict[int, npt.NDArray[np.uint16]]
    jfif: bytes | None
    adobe: bytes | None


_MAX_VISITS = 1 << 26  # blocks over all scans: seconds, not minutes, for a file that was made to take long
_ARITHMETIC_VISIT = 16  # what an arithmetic-coded block may cost in others
_CUT = 0.1  # a wrong bit makes a decoder lose or gain some blocks, but not as much of a scan

_TRANSFORMS = {1: range(256), 2: range(256), 3: (0, 1), 4: (0, 2)}  # Adobe's that libjpeg knows, by components

_REFUSED = {
    0xC3: "lossless JPEG",
    0xCB: "lossless JPEG",
    0xDC: "the height comes after the picture (DNL)",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE, 0xDF), "hierarchical JPEG"),
}


def read_coefficients(data: bytes) -> Coefficients:
    """The coefficients of a JPEG of 8 bits per sample: SOF0, SOF1, SOF2, SOF9 or SOF10, in any number of scans.

    Costs 2 bytes a coefficient and about 1.5 ns a bit of sequential Huffman data. What follows EOI is ignored.
    Raises NotTranscodableError, and nothing else, for whatever else the bytes are.
    """
    return _Reader(data).read()


def _give_up(error: int, unit: float) -> NoReturn:
    """Damaged is what a decoder may still show well; cut, in the end, is a picture of which much is missing."""
    kind, missing = error & KIND, (error >> MISSING) * unit
    if missing > _CUT:
        reject(f"the JPEG is truncated: {MESSAGES[kind]} ({missing:.0%} of a scan is missing)")
    refuse(MESSAGES[kind])


class _Reader:
    """One pass over the file's segments."""

    def __init__(self, data: bytes):
        self.data = data
        self.bytes = np.frombuffer(data, np.uint8)
        self.at = 0
        self.tables = Tables()
        self.frame: Frame | None = None
        self.out = np.zeros(0, np.int16)
        self.scans = self.visits = 0
        self.colours: tuple[bytes | None, bytes | None] = None, None

    def read(self) -> Coefficients:
        if self.data[:2] != b"\xff\xd8":
            refuse("no JPEG: it does not begin with SOI")
        self.at = 2
        while (marker := self._marker()) != 0xD9:
            if marker in _REFUSED:
                refuse(_REFUSED[marker])
            payload = self._payload()
            if marker in BLOCKS_PER_BYTE:
                if self.frame:
                    refuse("more than one frame")
                self.frame = Frame(marker, payload, len(self.data))
                self.out = np.zeros(self.frame.blocks * 64, np.int16)
            elif marker != 0xDA:
                self.tables.define(marker, payload)
            elif self.frame:
                self._scan(self.frame, payload)
            else:
                refuse("a scan before the frame header")
        if not self.frame:
            refuse("no picture before EOI")
        return self._finish(self.frame)

    def _marker(self) -> int:
        data, at = self.data, self.at
        if data[at : at + 1] not in (b"\xff", b""):
            refuse("bytes that belong to no segment")
        while data[at : at + 1] == b"\xff":
            at += 1
        if at >= len(data):
            refuse("the file ends before the picture does (no EOI)")
        self.at = at + 1
        return data[at]

    def _payload(self) -> bytes:
        data, at = self.data, self.at
        length = int.from_bytes(data[at : at + 2])
        if length < 2 or at + length > len(data):
            refuse("a segment is damaged, or the file ends within it")
        self.at = at + length
        return data[at + 2 : self.at]

    def _scan(self, frame: Frame, payload: bytes) -> None:
        """One scan: its header (B.2.3), then its entropy-coded segments, which lie at self.at."""
        if not self.scans:  # libjpeg decides here what the colours are
            self.colours = self.tables.jfif, self.tables.adobe
        self.scans += 1
        if self.scans > MAX_SCANS:
            reject(f"more than {MAX_SCANS} scans")
        count = payload[0] if payload else 0
        if not 1 <= count <= 4 or len(payload) != 4 + 2 * count:
            refuse("a scan header is damaged")
        spectrum = first, last, high, low = payload[-3], payload[-2], payload[-1] >> 4, payload[-1] & 15
        planes = [plane for id_ in payload[1:-3:2] for plane in frame.planes if plane.id == id_]
        rows = [(numbers >> 4, 4 + (numbers & 15)) for numbers in payload[2:-3:2]]
        if len(set(planes)) < count or any(dc > 3 or ac > 7 for dc, ac in rows):
            refuse("a scan header is damaged")
        frame.advance(planes, first, last, high, low)
        self._latch_quantisation(planes)
        if not frame.arithmetic:
            needed = {dc for dc, _ in rows if first == high == 0} | {ac for _, ac in rows if last}
            if not all(self.tables.defined[row] for row in needed):
                refuse("a Huffman table is missing")
        units, grid = frame.units(planes, rows)
        self.visits += grid[1] * len(units) * (_ARITHMETIC_VISIT if frame.arithmetic else 1)
        if self.visits > _MAX_VISITS:
            refuse("a picture that would take too long: too many blocks and scans")
        self._decode(frame, units, grid, spectrum)

    def _latch_quantisation(self, planes: list[Plane]) -> None:
        for plane in planes:
            values = self.tables.quantisation.get(plane.table)
            if values is None:
                refuse("a quantisation table is missing")
            if plane.quantisation not in (None, values):
                refuse("a quantisation table changes between the scans of a component")
            plane.quantisation = values

    def _decode(
        self, frame: Frame, units: npt.NDArray[np.int64], grid: tuple[int, int], spectrum: tuple[int, int, int, int]
    ) -> None:
        interval = self.tables.interval or grid[1]
        ends = np.zeros(-(-grid[1] // interval), np.int64)
        buffer = np.empty(-(-(len(self.data) - self.at + PADDING) // 8) * 8, np.uint8)
        after = unstuff(self.bytes, self.at, buffer, ends)
        if after < 0:
            _give_up(-after, interval / grid[1])
        self.at = after
        tables = self.tables
        if frame.arithmetic:
            error = decode_arithmetic(buffer, ends, interval, tables.conditioning, units, grid, self.out, spectrum)
        else:
            words = buffer.view(">i8")[: (int(ends[-1]) + PADDING) // 8].astype(np.int64)
            if frame.progressive:
                error = decode_progressive(words, ends, interval, tables.huffman, units, grid, self.out, spectrum)
            else:
                error = decode_sequential(words, ends, interval, tables.huffman, units, grid, self.out)
        if error:
            _give_up(error, 1 / grid[1])

    def _finish(self, frame: Frame) -> Coefficients:
        quantisation: dict[int, bytes] = {}
        components = []
        for plane in frame.planes:
            if plane.quantisation is None:
                refuse("a component has no scan")
            if any(plane.precision):
                refuse("a progressive picture lacks some of its scans")
            if quantisation.setdefault(plane.table, plane.quantisation) != plane.quantisation:
                refuse("a quantisation table changes between the components that use it")
            end = plane.first + plane.across * plane.down
            blocks = self.out[64 * plane.first : 64 * end].reshape(plane.down, plane.across, 64)
            if plane.bare:
                blocks[: plane.rows, plane.columns :, 0] = blocks[: plane.rows, plane.columns - 1, None, 0]
                blocks[plane.rows :, :, 0] = blocks[plane.rows - 1, :, 0]
            components.append(Component(id=plane.id, h=plane.h, v=plane.v, table=plane.table, blocks=blocks))
        jfif, adobe = self.colours
        if adobe and adobe[11] not in _TRANSFORMS[len(components)] and not (jfif and len(components) == 3):
            refuse(f"unknown colours: Adobe's transform {adobe[11]} of {len(components)} components")
        return Coefficients(
            width=frame.width,
            height=frame.height,
            components=tuple(components),
            quantisation={number: np.frombuffer(values, np.uint16) for number, values in quantisation.items()},
            jfif=jfif,
            adobe=adobe,
        )
