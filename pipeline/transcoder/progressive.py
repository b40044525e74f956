"""The blocks of progressive scans with Huffman codes: spectral selection and successive approximation.

Source: ITU-T T.81 (the JPEG standard), annex G.1.2 and G.2. See entropy.py for the arrays and the bounds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..kernel import inlined, kernel
from .entropy import (
    AC_LIMIT,
    BAD_CODE,
    DC_LIMIT,
    LEFT_OVER,
    MISSING,
    OUT_OF_RANGE,
    RAN_OUT,
    extend,
    find_code,
    segment_end,
    window,
)


@inlined
def _bit(words: npt.NDArray[np.int64], position: int) -> int:
    return int(words[position >> 6] >> (63 - (position & 63)) & 1)


@inlined
def _end_of_band(words: npt.NDArray[np.int64], position: int, run: int) -> int:
    """How many blocks, this one included, an EOBn code ends: 2**n and n more bits (table G.1)."""
    return (1 << run) + ((window(words, position) >> 1) >> (63 - run) & ((1 << run) - 1))


@kernel
def _first_ac(
    words: npt.NDArray[np.int64],
    position: int,
    tables: npt.NDArray[np.int32],
    row: int,
    band: tuple[int, int, int],
    block: npt.NDArray[np.int16],
) -> tuple[int, int]:
    """The first scan of a band of one block (G.1.2.2). Returns the position, or minus an error, and the EOB run."""
    first, last, low = band
    k = first
    while k <= last:
        bits = window(words, position)
        entry = find_code(bits, tables, row)
        if entry == 0:
            return -BAD_CODE, 0
        length = entry & 31
        size = entry >> 8 & 15
        run = entry >> 16
        position += length + size
        if size == 0 and run < 15:
            return position + run, _end_of_band(words, position, run)
        k += run
        if k > last or (size == 0 and k == last):  # a run of 16 zeros has a coefficient after it
            return -BAD_CODE, 0
        if size:
            value = extend(bits << length, size) << low
            if value > AC_LIMIT or value < -AC_LIMIT:
                return -OUT_OF_RANGE, 0
            block[k] = value
        k += 1
    return position, 0


@inlined
def _correct(words: npt.NDArray[np.int64], position: int, block: npt.NDArray[np.int16], k: int, low: int) -> None:
    """Add the next bit to the magnitude of a coefficient that is not zero."""
    step = _bit(words, position) << low
    block[k] += step if block[k] > 0 else -step


@inlined
def _pass_over(
    words: npt.NDArray[np.int64],
    position: int,
    block: npt.NDArray[np.int16],
    k: int,
    run: int,
    band: tuple[int, int, int],
) -> tuple[int, int]:
    """Correct the coefficients from k on, up to the zero that has `run` zeros before it. Returns the position and k."""
    _, last, low = band
    while k <= last:
        if block[k] != 0:
            _correct(words, position, block, k, low)
            position += 1
        elif run == 0:
            break
        else:
            run -= 1
        k += 1
    return position, k


@kernel
def _refine_ac(
    words: npt.NDArray[np.int64],
    position: int,
    tables: npt.NDArray[np.int32],
    row: int,
    band: tuple[int, int, int],
    block: npt.NDArray[np.int16],
    end_of_band: int,
) -> tuple[int, int]:
    """A later scan of a band of one block (G.1.2.3, figure G.7). Returns the position, or minus an error, and the run.

    No magnitude passes AC_LIMIT: it was below it with its lower bits zero, and only the next bit is set.
    """
    first, last, low = band
    k = first
    while end_of_band == 0 and k <= last:
        bits = window(words, position)
        entry = find_code(bits, tables, row)
        size = entry >> 8 & 15
        if entry == 0 or size > 1:
            return -BAD_CODE, 0
        length = entry & 31
        run = entry >> 16
        position += length + size
        if size == 0 and run < 15:
            end_of_band = _end_of_band(words, position, run)
            position += run
            break
        position, k = _pass_over(words, position, block, k, run, band)
        if k > last:
            return -BAD_CODE, 0
        if size:
            block[k] = 1 << low if bits << length < 0 else -(1 << low)  # the window's sign is its first bit
        k += 1
    if end_of_band:
        position, k = _pass_over(words, position, block, k, last + 1, band)
    return position, end_of_band


@kernel
def _first_dc(
    words: npt.NDArray[np.int64],
    position: int,
    tables: npt.NDArray[np.int32],
    row: int,
    low: int,
    prediction: int,
    block: npt.NDArray[np.int16],
) -> tuple[int, int]:
    """The first DC scan of one block (G.1.2.1). Returns the position, or minus an error, and the next prediction."""
    bits = window(words, position)
    entry = find_code(bits, tables, row)
    if entry == 0:
        return -BAD_CODE, 0
    length = entry & 31
    size = entry >> 8 & 15
    prediction += extend(bits << length, size)
    value = prediction << low
    if value > DC_LIMIT or value < -DC_LIMIT:
        return -OUT_OF_RANGE, 0
    block[0] = value
    return position + length + size, prediction


@kernel
def _segment(
    words: npt.NDArray[np.int64],
    begin: int,
    end: int,
    mcus: tuple[int, int],
    tables: npt.NDArray[np.int32],
    units: npt.NDArray[np.int64],
    per_row: int,
    out: npt.NDArray[np.int16],
    spectrum: tuple[int, int, int, int],
) -> int:
    """The MCUs mcus[0] to mcus[1] - 1 from bits `begin` to `end`. Returns 0 or an error."""
    first, last, high, low = spectrum
    band = first, last, low
    state = np.zeros(5, np.int64)  # predictions of four components, and blocks to the end of the EOB run
    position = begin
    for mcu in range(mcus[0], mcus[1]):
        row = mcu // per_row
        column = mcu - row * per_row
        for unit in range(len(units)):
            if position > end:
                return RAN_OUT | (mcus[1] - mcu) << MISSING
            base = 64 * (units[unit, 0] + column * units[unit, 1] + row * units[unit, 2])
            block = out[base : base + 64]
            if first == 0 and high == 0:
                component = units[unit, 3] & 3
                position, state[component] = _first_dc(
                    words, position, tables, units[unit, 4], low, state[component], block
                )
            elif first == 0:  # the next bit of a two's complement, so nothing leaves the range
                block[0] |= _bit(words, position) << low
                position += 1
            elif high:
                position, state[4] = _refine_ac(words, position, tables, units[unit, 5], band, block, state[4])
            elif state[4] == 0:
                position, state[4] = _first_ac(words, position, tables, units[unit, 5], band, block)
            if position < 0:
                return -position
            state[4] = max(state[4] - 1, 0)
    return LEFT_OVER if state[4] else segment_end(position, end)


@kernel
def decode_progressive(
    words: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    interval: int,
    tables: npt.NDArray[np.int32],
    units: npt.NDArray[np.int64],
    grid: tuple[int, int],
    out: npt.NDArray[np.int16],
    spectrum: tuple[int, int, int, int],
) -> int:
    """Decode one scan of a progressive picture into `out`, which holds the scans before it; returns 0 or an error.

    spectrum: Ss, Se, Ah, Al of the scan header: 0, 0 for DC, else 1 <= Ss <= Se <= 63 and a single unit; Al is at most
    13 for DC and 9 for AC. The rest is as in `decode_sequential`, and so is the reason why nothing is read or written
    outside: a block of a first scan takes 63 codes of 26 bits at most, one of a later scan 63 codes of 17 bits, 63
    corrections and 14 bits of an EOB run.
    """
    begin = 0
    for segment in range(len(ends)):
        mcus = segment * interval, min((segment + 1) * interval, grid[1])
        error = _segment(words, 8 * begin, 8 * ends[segment], mcus, tables, units, grid[0], out, spectrum)
        if error:
            return error
        begin = ends[segment]
    return 0
