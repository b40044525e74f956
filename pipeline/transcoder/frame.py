"""A JPEG's frame: its components, where their blocks lie, and which bits of them the scans have brought so far.

Source: ITU-T T.81 (the JPEG standard): A.1.1 and A.2 (dimensions and order), B.2.2 (frame header), G.1.1.1
(progression).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..jpeg import MAX_PIXELS
from .tables import refuse, reject

_MAX_UNITS = 10  # blocks in an interleaved MCU (B.2.3)

# Kinds of frame that are read, and the most blocks that a byte can hold: sequential Huffman takes 2 bits for a block,
# progressive 1 for its DC alone; arithmetic less than any bound, but a picture of 64 blocks a byte would be blank.
BLOCKS_PER_BYTE = {0xC0: 4, 0xC1: 4, 0xC2: 8, 0xC9: 64, 0xCA: 64}


class Plane:
    """A component while its scans are read."""

    def __init__(self, identifier: int, factors: int, table: int):
        self.id = identifier
        self.h, self.v = factors >> 4, factors & 15
        self.table = table
        self.columns = self.rows = 0  # blocks that a non-interleaved scan codes
        self.across = self.down = 0  # the same with the padding to whole MCUs
        self.first = 0  # number of the first block
        self.quantisation: bytes | None = None  # in force at its first scan
        self.precision = [-1] * 64  # per coefficient: bits still to come, -1 where no scan has coded it
        self.bare = False  # a DC scan has left out the padding


class Frame:
    """The frame header. Raises NotTranscodableError for one that is damaged, not supported, or too large for its file.

    Nothing is allocated here: `blocks` says how many blocks the picture takes.
    """

    def __init__(self, marker: int, payload: bytes, file_size: int):
        if len(payload) < 6 or len(payload) != 6 + 3 * payload[5]:
            refuse("the frame header is damaged")
        if payload[0] != 8:
            reject(f"a JPEG of {payload[0]} bits per sample, where only 8 can be read")
        self.progressive = marker in (0xC2, 0xCA)
        self.arithmetic = marker >= 0xC9
        self.height, self.width = payload[1] << 8 | payload[2], payload[3] << 8 | payload[4]
        if not self.width or not self.height:
            refuse("a picture without width or height")
        if self.width * self.height > MAX_PIXELS:
            reject(f"a picture of more than {MAX_PIXELS} pixels")
        if not 1 <= payload[5] <= 4:
            refuse(f"{payload[5]} components")
        self.planes = [Plane(*values) for values in zip(payload[6::3], payload[7::3], payload[8::3], strict=True)]
        if any(not (1 <= plane.h <= 4 and 1 <= plane.v <= 4 and plane.table <= 3) for plane in self.planes):
            refuse("the frame header is damaged")
        if len({plane.id for plane in self.planes}) < len(self.planes):
            refuse("two components have the same identifier")
        self._lay_out()
        coded = sum(plane.columns * plane.rows for plane in self.planes)
        if coded > BLOCKS_PER_BYTE[marker] * file_size:
            reject(f"the file is too short for the size that it states: {self.width}x{self.height} pixels")

    def _lay_out(self) -> None:
        h_max, v_max = max(plane.h for plane in self.planes), max(plane.v for plane in self.planes)
        self.mcus = -(-self.width // (8 * h_max)), -(-self.height // (8 * v_max))  # interleaved: across, down
        self.blocks = 0
        for plane in self.planes:
            plane.columns = -(-self.width * plane.h // (8 * h_max))
            plane.rows = -(-self.height * plane.v // (8 * v_max))
            plane.across, plane.down = self.mcus[0] * plane.h, self.mcus[1] * plane.v
            if len(self.planes) == 1:
                plane.across, plane.down = plane.columns, plane.rows
            plane.first = self.blocks
            self.blocks += plane.across * plane.down

    def advance(self, planes: list[Plane], first: int, last: int, high: int, low: int) -> None:
        """Note what a scan brings. Every bit of every coefficient comes once, from the highest on, DC first."""
        if not self.progressive:
            if (first, last, high, low) != (0, 63, 0, 0):
                refuse("a scan header is damaged")
        elif first > last or last > 63 or (first == 0) != (last == 0) or (first and len(planes) > 1):
            refuse("a progressive scan has an impossible band")
        elif low > (9 if first else 13) or (high and low != high - 1):
            refuse("a progressive scan has an impossible precision")
        for plane in planes:
            if first and plane.precision[0] < 0:
                refuse("a progressive scan comes before the one that it refines")
            if any(bits != (high or -1) for bits in plane.precision[first : last + 1]):
                refuse("a scan comes twice or out of order")
            plane.precision[first : last + 1] = [low] * (last + 1 - first)
            if first == 0 and len(planes) == 1:
                plane.bare = True

    def units(
        self, planes: list[Plane], tables: list[tuple[int, int]]
    ) -> tuple[npt.NDArray[np.int64], tuple[int, int]]:
        """Where the blocks of a scan's MCUs lie, and the MCUs per row and in all, as `decode_sequential` takes them.

        `tables`: of each plane the rows of its DC and its AC table.
        """
        if len(planes) == 1:
            plane = planes[0]
            unit = plane.first, 1, plane.across, 0, *tables[0]
            return np.array([unit], np.int64), (plane.columns, plane.columns * plane.rows)
        units = [
            (plane.first + y * plane.across + x, plane.h, plane.v * plane.across, number, *tables[number])
            for number, plane in enumerate(planes)
            for y in range(plane.v)
            for x in range(plane.h)
        ]
        if len(units) > _MAX_UNITS:
            refuse(f"more than {_MAX_UNITS} blocks in an MCU")
        return np.array(units, np.int64), (self.mcus[0], self.mcus[0] * self.mcus[1])
