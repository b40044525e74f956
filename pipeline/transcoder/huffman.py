"""Huffman codes for a JPEG: the shortest that a set of symbols can have with no code longer than a limit.

The limit is what the picture's decoder gains by: libjpeg finds a code of at most 8 bits in one table look-up and takes
a slow loop for a longer one.

Source: package-merge, Larmore and Hirschberg 1990; canonical codes, ITU-T T.81 annexes C and K.2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..kernel import kernel

SYMBOLS = 256
_RESERVED = SYMBOLS  # T.81 forbids the code of all ones: an extra, rarest symbol takes it, and is then left out


@kernel
def code_lengths(counts: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """Bits of each symbol's code, 0 for a symbol that does not occur: int64 [256].

    Args:
        counts: int64 [256], how often each symbol occurs.
        limit: the longest code allowed, in bits; 2 ** limit must be above the number of symbols in use.
    """
    weights = np.empty(SYMBOLS + 1, np.int64)
    symbols = np.empty(SYMBOLS + 1, np.int64)
    used = 1
    weights[0], symbols[0] = 0, _RESERVED
    for symbol in range(SYMBOLS):
        if counts[symbol] > 0:
            weights[used], symbols[used] = counts[symbol], symbol
            used += 1
    order = np.argsort(weights[:used], kind="mergesort")

    # Level by level: merge the leaves with the pairs of the level before. leaf[level, i] says whether the i-th item
    # of the level is a leaf; in the end a symbol's length is the number of levels in which its leaf is taken.
    lengths = np.zeros(SYMBOLS + 1, np.int64)
    leaf = np.zeros((limit, 2 * used), np.bool_)
    sizes = np.zeros(limit, np.int64)
    previous = np.zeros(2 * used, np.int64)
    current = np.zeros(2 * used, np.int64)
    for level in range(limit):
        pairs = 0 if level == 0 else sizes[level - 1] // 2
        i, j, n = 0, 0, 0
        while i < used or j < pairs:
            pair = previous[2 * j] + previous[2 * j + 1] if j < pairs else 0
            if j >= pairs or (i < used and weights[order[i]] <= pair):
                current[n] = weights[order[i]]
                leaf[level, n] = True
                i += 1
            else:
                current[n] = pair
                j += 1
            n += 1
        sizes[level] = n
        previous, current = current, previous
    take = 2 * (used - 1)
    for level in range(limit - 1, -1, -1):
        leaves = 0
        for i in range(take):
            if leaf[level, i]:
                leaves += 1
        for i in range(leaves):
            lengths[symbols[order[i]]] += 1
        take = 2 * (take - leaves)

    # The reserved symbol is the rarest, so it is among the longest; the last of the longest gets all ones.
    lengths[_RESERVED] = 0
    return lengths[:SYMBOLS]


@kernel
def canonical_codes(
    lengths: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The code with these lengths as T.81 builds it.

    Returns BITS, uint8 [16], and HUFFVAL, uint8 [symbols in use], as a DHT segment holds them, and the code of each
    symbol, int64 [256]. Of codes with the same length the more frequent symbols come first.
    """
    bits = np.zeros(16, np.uint8)
    values = np.empty(SYMBOLS, np.uint8)
    codes = np.zeros(SYMBOLS, np.int64)
    by_count = np.argsort(-counts, kind="mergesort")
    used, code = 0, 0
    for length in range(1, 17):
        for i in range(SYMBOLS):
            symbol = by_count[i]
            if lengths[symbol] == length:
                bits[length - 1] += 1
                values[used] = symbol
                codes[symbol] = code
                code += 1
                used += 1
        code <<= 1
    return bits, values[:used], codes
