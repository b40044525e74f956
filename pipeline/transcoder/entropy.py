"""The Huffman entropy decoder: segments without their stuffing, code tables, and the blocks of sequential scans.

Source: ITU-T T.81 (the JPEG standard): B.1.1.5 (stuffing), annex C and F.2.2 (Huffman decoding). The functions are
compiled; none checks an index, so each says why every access is inside its array whatever the file holds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..kernel import inlined, kernel

# What a decoder returns instead of 0. The order is that of MESSAGES.
BAD_CODE, RAN_OUT, LEFT_OVER, OUT_OF_RANGE, BAD_RESTART, TRUNCATED = range(1, 7)
MESSAGES = (
    "",
    "the entropy-coded data holds an invalid code",
    "the entropy-coded data ends before the picture does",
    "the entropy-coded data goes on after the picture",
    "a coefficient is out of range",
    "restart markers are missing, surplus or out of order",
    "the file ends within the picture",
)

KIND, MISSING = 15, 4  # its bits, and above them, where data ran out: MCUs, or restart intervals, that did not come

DC_LIMIT = 2047  # of a coefficient, and of a difference: categories 0 to 11 for 8-bit samples (table F.1)
AC_LIMIT = 1023  # categories 1 to 10 (table F.2)

# No block takes as many bits: 64 codes of at most 16 bits with at most 11 more. The decoders look at the end of the
# data once per block and may read this far beyond it.
BLOCK_BITS = 2048
PADDING = BLOCK_BITS // 8 + 16  # bytes of zeros after the data: a window reads two whole words

LOOKUP_BITS = 10  # codes up to this length (98 % of a photograph's or more) are decoded by one look-up
_LIMIT = 1 << LOOKUP_BITS  # a table's columns: look-up, then per code length the limit, the offset; then the entries
_OFFSET = _LIMIT + 17
_ENTRY = _OFFSET + 17
TABLE_SIZE = _ENTRY + 256


@kernel
def unstuff(data: npt.NDArray[np.uint8], at: int, out: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> int:
    """Copy the entropy-coded segments of one scan without stuffed zeros and restart markers, one after the other.

    `data` uint8 [bytes] is the file and `at` where the scan's first segment begins; `out` uint8 [len(data) - at +
    PADDING or more] gets the segments and PADDING zeros, `ends` int64 [segments] the end of each in `out`.
    Returns where the marker after the scan begins, or minus an error. `out` is never full: it gets a byte for a byte.
    """
    filled = 0
    found = 0
    while at < len(data):
        if data[at] != 0xFF:
            out[filled] = data[at]
            filled += 1
            at += 1
            continue
        begin = at
        while at < len(data) - 1 and data[at] == 0xFF:  # markers may have fill bytes before them, stuffed zeros not
            at += 1
        marker = data[at]
        at += 1
        if marker == 0:
            if at - begin != 2:
                return -BAD_CODE
            out[filled] = 0xFF
            filled += 1
            continue
        if marker == 0xFF:
            break
        if found == len(ends):
            return -BAD_RESTART
        ends[found] = filled
        found += 1
        if marker < 0xD0 or marker > 0xD7:
            out[filled : filled + PADDING] = 0
            return begin if found == len(ends) else -(BAD_RESTART | (len(ends) - found) << MISSING)
        if marker != 0xD0 + (found - 1) % 8:
            return -BAD_RESTART
    return -TRUNCATED


@kernel
def build_table(
    counts: npt.NDArray[np.uint8], symbols: npt.NDArray[np.uint8], ac: bool, table: npt.NDArray[np.int32]
) -> bool:
    """Fill `table` int32 [TABLE_SIZE] from a DHT segment's `counts` uint8 [16] and `symbols` uint8 [sum of counts].

    An entry is length | size << 8 | run << 16, or 0 where the code is longer than LOOKUP_BITS, has a size that 8-bit
    pictures cannot have, or is none (C.2, figures C.1 to C.3). Returns False where the lengths are no prefix code, or
    use the code of ones alone, which is reserved. There are at most 256 symbols: the caller's check.
    """
    table[:] = 0
    code = 0
    index = 0
    for length in range(1, 17):
        for _ in range(counts[length - 1]):
            if code >= (1 << length) - 1:
                return False
            symbol = np.int64(symbols[index])
            size, run = (symbol & 15, symbol >> 4) if ac else (symbol, np.int64(0))
            if size <= (10 if ac else 11):
                entry = length | size << 8 | run << 16
                table[_ENTRY + index] = entry
                if length <= LOOKUP_BITS:  # code < 1 << length, so the range ends within the look-up
                    shift = LOOKUP_BITS - length
                    table[code << shift : (code + 1) << shift] = entry
            index += 1
            code += 1
        table[_LIMIT + length] = code << (16 - length)
        table[_OFFSET + length] = index - code
        code <<= 1
    return True


@inlined
def window(words: npt.NDArray[np.int64], position: int) -> int:
    """The 64 bits at a bit position, the first as the sign. `words` int64 [n], big-endian; position < 64 * (n - 1)."""
    index = position >> 6
    shift = position & 63
    return int(words[index] << shift | ((words[index + 1] >> 1) & 0x7FFFFFFFFFFFFFFF) >> (63 - shift))


@inlined
def find_code(bits: int, tables: npt.NDArray[np.int32], row: int) -> int:
    """The entry of the code at the head of a window of at least 16 valid bits; 0 where there is none."""
    entry = np.int64(tables[row, (bits >> (64 - LOOKUP_BITS)) & (_LIMIT - 1)])
    if entry == 0:
        head = (bits >> 48) & 0xFFFF
        for length in range(1, 17):
            if head < tables[row, _LIMIT + length]:
                index = (head >> (16 - length)) + tables[row, _OFFSET + length]
                return int(np.int64(tables[row, _ENTRY + (index & 255)]))
    return int(entry)


@inlined
def extend(bits: int, size: int) -> int:
    """The signed value of the first `size` bits (0 to 15) of a window (F.2.2.1, figure F.12)."""
    mask = (1 << size) - 1
    return ((bits >> 1) >> (63 - size) & mask) - (~(bits >> 63) & mask)


@inlined
def _block(
    words: npt.NDArray[np.int64],
    position: int,
    tables: npt.NDArray[np.int32],
    rows: tuple[int, int],
    prediction: int,
    out: npt.NDArray[np.int16],
    base: int,
) -> tuple[int, int]:
    """One block at out[base : base + 64] (F.2.2.1, F.2.2.2). Returns the position, or minus an error, and its DC."""
    dc, ac = rows
    bits = window(words, position)
    stale = position + 64 - 27  # from here on the window may lack bits of the next code and its value
    entry = find_code(bits, tables, dc)
    if entry == 0:
        return -BAD_CODE, 0
    length = entry & 31
    size = entry >> 8 & 15
    prediction += extend(bits << length, size)
    if prediction > DC_LIMIT or prediction < -DC_LIMIT:
        return -OUT_OF_RANGE, 0
    out[base] = prediction
    bits <<= length + size
    position += length + size
    k = 1
    while k < 64:
        if position > stale:
            bits = window(words, position)
            stale = position + 64 - 27
        entry = find_code(bits, tables, ac)
        if entry == 0:
            return -BAD_CODE, 0
        length = entry & 31
        size = entry >> 8 & 15
        k += entry >> 16
        position += length + size
        if size == 0:
            if entry >> 16 == 0:  # EOB
                break
            if entry >> 16 != 15 or k > 62:  # a run of 16 zeros has a coefficient after it
                return -BAD_CODE, 0
        elif k > 63:
            return -BAD_CODE, 0
        else:
            out[base + k] = extend(bits << length, size)
        bits <<= length + size
        k += 1
    return position, prediction


@inlined
def _segment(
    words: npt.NDArray[np.int64],
    begin: int,
    end: int,
    mcus: tuple[int, int],
    tables: npt.NDArray[np.int32],
    units: npt.NDArray[np.int64],
    per_row: int,
    out: npt.NDArray[np.int16],
) -> int:
    """The MCUs mcus[0] to mcus[1] - 1 from bits `begin` to `end`. Returns 0 or an error."""
    prediction = np.zeros(4, np.int64)
    position = begin
    for mcu in range(mcus[0], mcus[1]):
        row = mcu // per_row
        column = mcu - row * per_row
        for unit in range(len(units)):
            if position > end:
                return RAN_OUT | (mcus[1] - mcu) << MISSING
            base = 64 * (units[unit, 0] + column * units[unit, 1] + row * units[unit, 2])
            component = units[unit, 3] & 3
            rows = units[unit, 4], units[unit, 5]
            position, prediction[component] = _block(words, position, tables, rows, prediction[component], out, base)
            if position < 0:
                return -position
    return segment_end(position, end)


@inlined
def segment_end(position: int, end: int) -> int:
    """0 where at most the bits that fill up the last byte are left of a segment, else the error."""
    if position > end:
        return RAN_OUT
    return LEFT_OVER if end - position > 7 else 0


@kernel
def decode_sequential(
    words: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    interval: int,
    tables: npt.NDArray[np.int32],
    units: npt.NDArray[np.int64],
    grid: tuple[int, int],
    out: npt.NDArray[np.int16],
) -> int:
    """Decode one scan of a sequential picture; returns 0 or an error.

    words: int64 [n], the segments as `unstuff` leaves them, PADDING included, as big-endian words
    ends: int64 [segments], bytes; segments = MCUs / interval, rounded up
    interval: MCUs per segment
    tables: int32 [8, TABLE_SIZE], DC tables 0 to 3, then AC tables 0 to 3
    units: int64 [blocks per MCU, 6]: block of the first MCU, step per MCU to the right, step per MCU row, component
        (0 to 3), rows of the DC and the AC table
    grid: MCUs per row, MCUs in all
    out: int16 [blocks * 64], zeros, zigzag order; for every MCU of the grid the units lie inside it (the caller's work)

    Words are read inside their array: the position is at most the end of the data when a block begins, and a block
    takes fewer than BLOCK_BITS. Coefficients are written inside their block: k is checked.
    """
    begin = 0
    for segment in range(len(ends)):
        mcus = segment * interval, min((segment + 1) * interval, grid[1])
        error = _segment(words, 8 * begin, 8 * ends[segment], mcus, tables, units, grid[0], out)
        if error:
            return error
        begin = ends[segment]
    return 0
