"""What a JPEG's table and application segments define, for the scans after them: DQT, DHT, DAC, DRI, APP0 and APP14.

Source: ITU-T T.81 (the JPEG standard), B.2.4; JFIF 1.02 for APP0.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from .entropy import TABLE_SIZE, build_table


class NotTranscodableError(Exception):
    """The picture is of a kind that has no coefficients to read here, or damaged. The text says which."""


class DamagedJpegError(NotTranscodableError):
    """No decoder should be asked for the picture either: it is damaged beyond use, or made to cost too much."""


def refuse(reason: str) -> NoReturn:
    """Give up the file."""
    raise NotTranscodableError(reason)


def reject(reason: str) -> NoReturn:
    """Give up the picture."""
    raise DamagedJpegError(reason)


class Tables:
    """The tables in force; `define` changes them as the file goes on."""

    def __init__(self) -> None:
        self.quantisation: dict[int, bytes] = {}  # table number: 64 values in zigzag order, as uint16
        self.huffman = np.zeros((8, TABLE_SIZE), np.int32)  # DC tables 0 to 3, then AC tables 0 to 3
        self.defined = [False] * 8  # which of them
        # L and U of the DC tables, then Kx of the AC tables, with the defaults of F.1.4.4.1.4 and F.1.4.4.2.1
        self.conditioning = np.array([[0, 1]] * 4 + [[5, 0]] * 4, np.int64)
        self.interval = 0  # MCUs between restart markers, 0 without
        self.jfif: bytes | None = None
        self.adobe: bytes | None = None

    def define(self, marker: int, payload: bytes) -> None:
        """Take one segment. Raises NotTranscodableError where it is damaged, or none that may stand in a picture."""
        if marker == 0xDB:
            self._define_quantisation(payload)
        elif marker == 0xC4:
            self._define_huffman(payload)
        elif marker == 0xCC:
            self._define_conditioning(payload)
        elif marker == 0xDD:
            if len(payload) != 2:
                refuse("the restart interval segment is damaged")
            self.interval = int.from_bytes(payload)
        elif 0xE0 <= marker <= 0xEF:
            self._keep_application(marker, payload)
        elif marker != 0xFE:  # a comment
            refuse(f"unexpected marker {marker:02X}")

    def _define_quantisation(self, payload: bytes) -> None:
        while payload:
            kind, number = payload[0] >> 4, payload[0] & 15
            size = 1 + 64 * (kind + 1)
            if kind > 1 or number > 3 or len(payload) < size:
                refuse("a quantisation table is damaged")
            values = np.frombuffer(payload[1:size], (np.uint8, ">u2")[kind]).astype(np.uint16)
            if not values.all():
                refuse("a quantisation table holds a zero")
            self.quantisation[number] = values.tobytes()
            payload = payload[size:]

    def _define_huffman(self, payload: bytes) -> None:
        while payload:
            kind, number = payload[0] >> 4, payload[0] & 15
            size = 17 + sum(payload[1:17])
            if kind > 1 or number > 3 or len(payload) < size or size > 17 + 256:
                reject("a Huffman table is damaged")
            if kind == 0 and max(payload[17:size], default=0) > 15:  # libjpeg refuses it, even where it is not used
                reject("a Huffman table is damaged")
            row = 4 * kind + number
            counts, symbols = np.frombuffer(payload[1:17], np.uint8), np.frombuffer(payload[17:size], np.uint8)
            if not build_table(counts, symbols, kind == 1, self.huffman[row]):
                reject("a Huffman table holds no prefix code")
            self.defined[row] = True
            payload = payload[size:]

    def _define_conditioning(self, payload: bytes) -> None:
        if len(payload) % 2:
            refuse("the arithmetic conditioning segment is damaged")
        for key, value in zip(payload[::2], payload[1::2], strict=True):
            kind, number, low, high = key >> 4, key & 15, value & 15, value >> 4
            if kind > 1 or number > 3 or (kind == 0 and low > high) or (kind == 1 and not 1 <= value <= 63):
                refuse("the arithmetic conditioning segment is damaged")
            self.conditioning[4 * kind + number] = (value, 0) if kind else (low, high)

    def _keep_application(self, marker: int, payload: bytes) -> None:
        """Two segments say what the colours are; libjpeg knows them by these lengths."""
        if marker == 0xE0 and payload[:5] == b"JFIF\0" and len(payload) >= 14:
            if payload[5] != 1:
                refuse(f"unknown JFIF version {payload[5]}")
            self.jfif = payload[:12] + b"\0\0"  # the thumbnail is 0 x 0
        elif marker == 0xEE and payload[:5] == b"Adobe" and len(payload) >= 12:
            self.adobe = payload
