"""The blocks of arithmetic-coded scans, sequential and progressive: which decisions make a coefficient.

Source: ITU-T T.81 (the JPEG standard): F.1.4 and F.2.4 (statistical models), G.1.3 and G.2 (progression). See
entropy.py for the arrays, and qm.py for `coder` and `states`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..kernel import kernel
from .entropy import AC_LIMIT, DC_LIMIT, LEFT_OVER, MISSING, OUT_OF_RANGE, RAN_OUT
from .qm import AT, HALF, decide, start

_BINS = 256  # of one table: 49 of DC (table F.4), 245 of AC (table F.5), and the last in state HALF
_FIXED = _BINS - 1

# Decoding may run past a segment's end: final zero bytes are not written (D.1.8). Only a few bytes of zeros can be
# missing, because a decision that is always right soon costs nothing; more means that the data was cut.
_LACKING = 64


@kernel
def _magnitude(
    coder: npt.NDArray[np.int64], data: npt.NDArray[np.uint8], states: npt.NDArray[np.uint8], index: int, beyond: int
) -> int:
    """A magnitude above 1 (figures F.23 and F.24), or one out of range. `index` is X1's, `beyond` X2's bin.

    Eleven bins from `beyond` on are used at most, and those 14 further: bins 45 of DC, 241 of AC are the last.
    """
    power = 1
    while decide(coder, data, states, index):
        index = beyond if power == 1 else index + 1
        power <<= 1
        if power > 2 * DC_LIMIT:
            return power
    size = power
    power >>= 1
    while power:
        if decide(coder, data, states, index + 14):
            size |= power
        power >>= 1
    return size + 1


@kernel
def _difference(
    coder: npt.NDArray[np.int64], data: npt.NDArray[np.uint8], states: npt.NDArray[np.uint8], table: int, context: int
) -> int:
    """A DC difference (F.1.4.1, table F.4), or one out of range."""
    index = table + 4 * context
    if not decide(coder, data, states, index):
        return 0
    negative = decide(coder, data, states, index + 1)
    size = 1
    if decide(coder, data, states, index + 2 + negative):
        size = _magnitude(coder, data, states, table + 20, table + 21)
    return -size if negative else size


@kernel
def _first_ac(
    coder: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    states: npt.NDArray[np.uint8],
    table: int,
    kx: int,
    band: tuple[int, int, int],
    block: npt.NDArray[np.int16],
) -> int:
    """The AC coefficients of one block, or the first scan of a band (F.1.4.2, figure F.20). Returns 0 or an error."""
    first, last, low = band
    k = first
    while k <= last:
        if decide(coder, data, states, table + 3 * (k - 1)):  # EOB
            return 0
        while not decide(coder, data, states, table + 3 * (k - 1) + 1):
            k += 1
            if k > last:
                return OUT_OF_RANGE
        negative = decide(coder, data, states, table + _FIXED)
        index = table + 3 * (k - 1) + 2
        size = 1
        if decide(coder, data, states, index):
            size = _magnitude(coder, data, states, index, table + (189 if k <= kx else 217))
        size <<= low
        if size > AC_LIMIT:
            return OUT_OF_RANGE
        block[k] = -size if negative else size
        k += 1
    return 0


@kernel
def _refine_ac(
    coder: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    states: npt.NDArray[np.uint8],
    table: int,
    band: tuple[int, int, int],
    block: npt.NDArray[np.int16],
) -> int:
    """A later scan of a band of one block (G.1.3.3, figures G.10 and G.11). Returns 0 or an error."""
    first, last, low = band
    previous = last  # EOBx: the last coefficient that is not zero yet
    while previous >= first and block[previous] == 0:
        previous -= 1
    k = first
    while k <= last:
        if k > previous and decide(coder, data, states, table + 3 * (k - 1)):
            return 0
        while True:
            index = table + 3 * (k - 1)
            if block[k] != 0:
                if decide(coder, data, states, index + 2):
                    block[k] += (1 << low) if block[k] > 0 else -(1 << low)
                break
            if decide(coder, data, states, index + 1):
                block[k] = -(1 << low) if decide(coder, data, states, table + _FIXED) else 1 << low
                break
            k += 1
            if k > last:
                return OUT_OF_RANGE
        k += 1
    return 0


@kernel
def _dc(
    coder: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    states: npt.NDArray[np.uint8],
    row: int,
    bounds: npt.NDArray[np.int64],
    history: npt.NDArray[np.int64],
    low: int,
    block: npt.NDArray[np.int16],
) -> int:
    """The DC coefficient of one block, or its first scan. `history` int64 [2]: prediction and context (F.1.4.4.1).

    The context says what the difference before was: 0 zero, 1 and 2 small and positive or negative, 3 and 4 large.
    Returns 0 or an error.
    """
    difference = _difference(coder, data, states, row * _BINS, history[1])
    size = abs(difference)
    history[1] = 0
    if size > (1 << bounds[0]) >> 1:
        history[1] = (3 if size > 1 << bounds[1] else 1) + (1 if difference < 0 else 0)
    history[0] += difference
    value = history[0] << low
    if value > DC_LIMIT or value < -DC_LIMIT:
        return OUT_OF_RANGE
    block[0] = value
    return 0


@kernel
def _block(
    coder: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    states: npt.NDArray[np.uint8],
    rows: tuple[int, int],
    conditioning: npt.NDArray[np.int64],
    history: npt.NDArray[np.int64],
    spectrum: tuple[int, int, int, int],
    block: npt.NDArray[np.int16],
) -> int:
    """What one scan has of one block. Returns 0 or an error."""
    first, last, high, low = spectrum
    dc, ac = rows
    error = 0
    if first == 0 and high:  # the next bit of a two's complement, so nothing leaves the range
        block[0] |= decide(coder, data, states, dc * _BINS + _FIXED) << low
    elif first == 0:
        error = _dc(coder, data, states, dc, conditioning[dc], history, low, block)
    if last and high:
        error = _refine_ac(coder, data, states, ac * _BINS, (first, last, low), block)
    elif last and not error:
        error = _first_ac(coder, data, states, ac * _BINS, conditioning[ac, 0], (max(first, 1), last, low), block)
    return error


@kernel
def _segment(
    data: npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int64],
    segment: int,
    mcus: tuple[int, int],
    conditioning: npt.NDArray[np.int64],
    units: npt.NDArray[np.int64],
    per_row: int,
    out: npt.NDArray[np.int16],
    spectrum: tuple[int, int, int, int],
) -> int:
    """The MCUs mcus[0] to mcus[1] - 1, which are those of `segment`. Returns 0 or an error."""
    states = np.zeros(8 * _BINS, np.uint8)
    states[_FIXED::_BINS] = HALF
    history = np.zeros((4, 2), np.int64)
    coder = np.zeros(5, np.int64)
    end = ends[segment]
    start(coder, data, ends[segment - 1] if segment else 0, end)
    for mcu in range(mcus[0], mcus[1]):
        row = mcu // per_row
        column = mcu - row * per_row
        for unit in range(len(units)):
            if coder[AT] > end + _LACKING:
                return RAN_OUT | (mcus[1] - mcu) << MISSING
            base = 64 * (units[unit, 0] + column * units[unit, 1] + row * units[unit, 2])
            rows = units[unit, 4], units[unit, 5]
            block = out[base : base + 64]
            error = _block(coder, data, states, rows, conditioning, history[units[unit, 3] & 3], spectrum, block)
            if error:
                return error
    if coder[AT] > end + _LACKING:
        return RAN_OUT
    return LEFT_OVER if coder[AT] < end else 0


@kernel
def decode_arithmetic(
    data: npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int64],
    interval: int,
    conditioning: npt.NDArray[np.int64],
    units: npt.NDArray[np.int64],
    grid: tuple[int, int],
    out: npt.NDArray[np.int16],
    spectrum: tuple[int, int, int, int],
) -> int:
    """Decode one arithmetic-coded scan into `out`, which holds the scans before it; returns 0 or an error.

    data: uint8 [n], the segments as `unstuff` leaves them, read below their ends only
    conditioning: int64 [8, 2]: L and U of the DC tables 0 to 3, then Kx and nothing of the AC tables (F.1.4.4)
    spectrum: Ss, Se, Ah, Al; 0, 63, 0, 0 in a sequential picture, else as in `decode_progressive`
    The rest is as in `decode_sequential`. A segment that was cut is found out only where more than _LACKING bytes lack.
    """
    for segment in range(len(ends)):
        mcus = segment * interval, min((segment + 1) * interval, grid[1])
        error = _segment(data, ends, segment, mcus, conditioning, units, grid[0], out, spectrum)
        if error:
            return error
    return 0
