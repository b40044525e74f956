"""Any JPEG -> the same picture, crop-addressed: the same quantised coefficients, so the same pixels, and tiles that can
be decoded on their own (docs/FORMAT.md).

What changes is how the coefficients are written: baseline Huffman, a restart marker at the end of every tile, tables
made for this picture and for libjpeg's look-up (no long codes), and no metadata but what decides the colours.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..crop_jpeg import CRC_AT, CRC_END, IDENTIFIER, PREFIX, SEGMENT_MAX, SOI_APP9, VERSION, header_crc, row_table
from ..kernel import inlined, kernel
from .coefficients import Coefficients, Component, NotTranscodableError, read_coefficients
from .huffman import canonical_codes, code_lengths

TILE_PIXELS = 32  # what a tile's width should come near to (benchmarks/)
CODE_BITS = 9  # libjpeg looks up 8 bits at once: codes longer by one are rare, and cost fewer bytes than none
SOF0, SOF1, DHT, SOS, DQT, DRI, APP14 = 0xC0, 0xC1, 0xC4, 0xDA, 0xDB, 0xDD, 0xEE
_MAX_UNITS = 10  # blocks in an interleaved MCU (T.81 B.2.3)


def to_crop_addressed(data: bytes) -> bytes:
    """The crop-addressed form of a JPEG. Raises NotTranscodableError, saying why, for what has none."""
    return write_crop_addressed(read_coefficients(data))


def compile_kernels() -> None:
    """Have the machine code ready: seconds after an installation, when it is made and kept beside the source."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    to_crop_addressed(file.getvalue())


def write_crop_addressed(picture: Coefficients) -> bytes:
    """A crop-addressed JPEG of these coefficients. Raises NotTranscodableError where baseline JPEG cannot hold them."""
    components = _as_written(picture)
    h, v = max(c.h for c in components), max(c.v for c in components)
    columns = components[0].blocks.shape[1] // components[0].h
    interval = restart_interval(columns, 8 * h)

    # A second pair of tables where a second kind of quantisation shows that there is chroma.
    chroma = np.array([int(c.table != components[0].table) for c in components])
    component = np.repeat(np.arange(len(components)), [c.h * c.v for c in components])
    tokens, tiles, counts = tokenise(_units(components), component, chroma[component], interval)
    if counts[12:16].any() or counts[256 + 12 : 256 + 16].any():
        raise NotTranscodableError("its brightness jumps by more than baseline JPEG can say")
    dht, table = _huffman_tables(counts.reshape(4, 256))
    coded, ends = write_tiles(tokens, tiles, table, int(counts @ (table & 0xFF)))
    body = coded.tobytes()

    rows = row_table(body, ends[columns // interval - 1 :: columns // interval])
    if PREFIX.size + len(rows) - 4 > SEGMENT_MAX:
        raise NotTranscodableError(f"it is too high: {picture.height} pixels")
    # Only Adobe's marker is kept: with it, or else by the components' names, a decoder tells the colours' space.
    parts = [PREFIX.pack(SOI_APP9, PREFIX.size + len(rows) - 4, IDENTIFIER, *[0] * 9), rows]
    parts += [_segment(APP14, picture.adobe)] if picture.adobe and not _is_ycc(picture) else []
    deep = any(values.max() > 255 for values in picture.quantisation.values())
    for number, values in sorted(picture.quantisation.items()):
        content = values.astype(">u2" if deep else np.uint8).tobytes()
        parts.append(_segment(DQT, bytes([deep << 4 | number]) + content))
    sof_at = sum(map(len, parts))
    size = picture.height.to_bytes(2) + picture.width.to_bytes(2)
    described = b"".join(bytes([c.id, c.h << 4 | c.v, c.table]) for c in components)
    parts.append(_segment(SOF1 if deep else SOF0, b"\x08" + size + bytes([len(components)]) + described))
    parts.append(_segment(DHT, dht))
    parts.append(_segment(DRI, interval.to_bytes(2)))
    selectors = b"".join(bytes([c.id, k << 4 | k]) for c, k in zip(components, chroma.tolist(), strict=True))
    parts.append(_segment(SOS, bytes([len(components)]) + selectors + b"\x00\x3f\x00"))

    header = bytearray(b"".join(parts))
    segment = PREFIX.size + len(rows) - 4
    place = (len(header), sof_at, picture.width, picture.height, 8 * h, 8 * v, interval)
    PREFIX.pack_into(header, 0, SOI_APP9, segment, IDENTIFIER, VERSION, 0, *place)
    header[CRC_AT:CRC_END] = header_crc(bytes(header)).to_bytes(4)
    return bytes(header) + body


def restart_interval(columns: int, mcu_width: int) -> int:
    """How many MCUs make a tile: the divisor of the MCUs in a row whose width is nearest to 32 pixels, by ratio.

    Where there is none between half as wide and four times, the rows are left whole.
    """
    divisors = [k for k in range(1, columns + 1) if columns % k == 0]
    best = min(divisors, key=lambda k: max(k * mcu_width / TILE_PIXELS, TILE_PIXELS / (k * mcu_width)))
    ratio = best * mcu_width / TILE_PIXELS
    return best if 0.5 <= ratio <= 4 else columns


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def _is_ycc(picture: Coefficients) -> bool:
    """Whether JFIF says that three components are YCbCr, whatever else is said (as libjpeg has it)."""
    return picture.jfif is not None and len(picture.components) == 3


def _as_written(picture: Coefficients) -> tuple[Component, ...]:
    """The components as one interleaved scan holds them."""
    components = picture.components
    if len(components) == 1:  # an only component's sampling factors mean nothing: they are 1
        return (dataclasses.replace(components[0], h=1, v=1),)
    if len(components) == 2:
        raise NotTranscodableError("it has two components, which no decoder shows")
    if sum(c.h * c.v for c in components) > _MAX_UNITS:
        raise NotTranscodableError("its sampling factors do not allow one interleaved scan")
    if any(max(d.h for d in components) % c.h or max(d.v for d in components) % c.v for c in components):
        raise NotTranscodableError("its sampling factors are no multiples of each other")
    if _is_ycc(picture):
        return tuple(dataclasses.replace(c, id=number) for number, c in enumerate(components, 1))
    return components


def _huffman_tables(counts: npt.NDArray[np.int64]) -> tuple[bytes, npt.NDArray[np.int64]]:
    """The content of DHT, and the table that ``write_tiles`` takes, for symbols that occur so often: int64 [4, 256]."""
    lengths, codes, dht = np.zeros((4, 256), np.int64), np.zeros((4, 256), np.int64), b""
    for table in np.flatnonzero(counts.any(axis=1)).tolist():
        lengths[table] = code_lengths(counts[table], CODE_BITS)
        bits, values, codes[table] = canonical_codes(lengths[table], counts[table])
        dht += bytes([table >> 1 << 4 | table & 1]) + bits.tobytes() + values.tobytes()
    following = np.arange(256) & 0xF  # bits after the code of each symbol
    return dht, (codes << (following + 8) | lengths + following).ravel()


def _units(components: tuple[Component, ...]) -> npt.NDArray[np.int16]:
    """All blocks in the order of the scan: int16 [MCUs, blocks of an MCU, 64]."""
    parts = []
    for c in components:
        rows, columns = c.blocks.shape[0] // c.v, c.blocks.shape[1] // c.h
        grid = c.blocks.reshape(rows, c.v, columns, c.h, 64).transpose(0, 2, 1, 3, 4)
        parts.append(grid.reshape(rows * columns, c.h * c.v, 64))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


@kernel
def tokenise(
    units: npt.NDArray[np.int16], component: npt.NDArray[np.int64], chroma: npt.NDArray[np.int64], interval: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What the entropy coder has to say: uint32 [n] tokens, where each tile's end: int64 [tiles], and how often each
    symbol is said: int64 [4 * 256].

    A token is table << 24 | symbol << 16 | the bits that follow the symbol's code; how many is in the symbol. Tables
    are DC of luma, DC of chroma, AC of luma, AC of chroma.

    Args:
        units: int16 [MCUs, blocks of an MCU, 64].
        component, chroma: int64 [blocks of an MCU], the component of each, and whether its tables are chroma's.
    """
    tokens = np.empty(units.size + units.shape[0] * units.shape[1], np.uint32)  # 64 symbols and an end of block
    ends = np.empty(units.shape[0] // interval, np.int64)
    counts = np.zeros(4 * 256, np.int64)
    fours = units.view(np.int64)
    before = np.zeros(4, np.int64)
    n = 0
    for mcu in range(units.shape[0]):
        for b in range(units.shape[1]):
            block = units[mcu, b]
            dc = np.int64(block[0])
            token = chroma[b] << 24 | _symbol(0, int(dc - before[component[b]]))
            before[component[b]] = dc
            tokens[n] = token
            counts[token >> 16] += 1
            n += 1
            end = 16
            while end > 0 and fours[mcu, b, end - 1] == 0:
                end -= 1
            table = (2 + chroma[b]) << 24
            last = 0
            for k in range(1, 4 * end):
                value = np.int64(block[k])
                if value == 0:
                    continue
                run = k - last - 1
                last = k
                while run > 15:
                    tokens[n] = table | 0xF0 << 16
                    counts[table >> 16 | 0xF0] += 1
                    n += 1
                    run -= 16
                token = table | _symbol(run, int(value))
                tokens[n] = token
                counts[token >> 16] += 1
                n += 1
            if last < 63:
                tokens[n] = table
                counts[table >> 16] += 1
                n += 1
        if (mcu + 1) % interval == 0:
            before[:] = 0
            ends[mcu // interval] = n
    return tokens[:n], ends, counts


_SIZES = np.array([value.bit_length() for value in range(4096)], np.uint8)  # of a magnitude (T.81 F.1.2)


@inlined
def _symbol(run: int, value: int) -> int:
    """Symbol << 16 | extra bits, of a coefficient or a difference after ``run`` zeros."""
    size = int(_SIZES[abs(value) & 4095])
    extra = value if value >= 0 else value + (1 << size) - 1
    return run << 20 | size << 16 | extra


@kernel
def write_tiles(
    tokens: npt.NDArray[np.uint32], ends: npt.NDArray[np.int64], table: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The entropy-coded data with its markers: uint8 [bytes], and where each tile's ends, behind its marker.

    Args:
        tokens, ends: as ``tokenise`` gives them.
        table: int64 [4 * 256], for each symbol its code, shifted by the number of bits that follow it and by 8, and
            how many bits that makes together.
        size: bits of all tokens together.
    """
    out = np.empty(2 * (size // 8 + len(ends)) + 2 * len(ends) + 8, np.uint8)  # as if every byte had to be stuffed
    stops = np.empty(len(ends), np.int64)
    at, begin = 0, 0
    for tile in range(len(ends)):
        buffer, held = 0, 0  # the low ``held`` bits, at most 31 + 9 + 11, wait to be written; what is above them is old
        for i in range(begin, ends[tile]):
            token = int(tokens[i])
            entry = table[token >> 16]
            buffer = buffer << (entry & 0xFF) | entry >> 8 | token & 0xFFFF
            held += entry & 0xFF
            if held >= 32:
                held -= 32
                for shift in (24, 16, 8, 0):
                    at = _put(out, at, buffer >> (held + shift))
        begin = ends[tile]
        buffer, held = buffer << 7 | 0x7F, held + 7  # the last byte ends in ones
        while held >= 8:
            held -= 8
            at = _put(out, at, buffer >> held)
        out[at] = 0xFF
        out[at + 1] = 0xD0 + (tile & 7) if tile + 1 < len(ends) else 0xD9
        at += 2
        stops[tile] = at
    return out[:at], stops


@inlined
def _put(out: npt.NDArray[np.uint8], at: int, bits: int) -> int:
    """Write the low 8 bits, with a zero behind 0xFF, so that it is no marker; gives back where the next byte goes."""
    byte = bits & 0xFF
    out[at] = byte
    out[at + 1] = 0
    return at + 1 + int(byte == 0xFF)
