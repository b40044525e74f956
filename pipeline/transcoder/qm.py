"""The QM decoder: binary decisions from arithmetic-coded bytes, with adaptive probabilities.

Source: ITU-T T.81 (the JPEG standard), D.2 and table D.3.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..kernel import inlined, kernel

# Table D.3: Qe, Next_Index_LPS, Next_Index_MPS, and whether an LPS switches the MPS.
_QE = """
5A1D 2586 1114 080B 03D8 01DA 00E5 006F 0036 001A 000D 0006 0003 0001 5A7F 3F25 2CF2 207C 17B9 1182
0CEF 09A1 072F 055C 0406 0303 0240 01B1 0144 00F5 00B7 008A 0068 004E 003B 002C 5AE1 484C 3A0D 2EF1
261F 1F33 19A8 1518 1177 0E74 0BFB 09F8 0861 0706 05CD 04DE 040F 0363 02D4 025C 01F8 01A4 0160 0125
00F6 00CB 00AB 008F 5B12 4D04 412C 37D8 2FE8 293C 2379 1EDF 1AA9 174E 1424 119C 0F6B 0D51 0BB6 0A40
5832 4D1C 438E 3BDD 34EE 2EAE 299A 2516 5570 4CA9 44D9 3E22 3824 32B4 2E17 56A8 4F46 47E5 41CF 3C3D
375E 5231 4C0F 4639 415E 5627 50E7 4B85 5597 504F 5A10 5522 59EB
"""
_LPS = """
1 14 16 18 20 23 25 28 30 33 35 9 10 12 15 36 38 39 40 42 43 45 46 48 49 51 52 54 56 57 59 60 62 63 32 33 37 64 65 67
68 69 70 72 73 74 75 77 78 79 48 50 50 51 52 53 54 55 56 57 58 59 61 61 65 80 81 82 83 84 86 87 87 72 72 74 74 75 77 77
80 88 89 90 91 92 93 86 88 95 96 97 99 99 93 95 101 102 103 104 99 105 106 107 103 105 108 109 110 111 110 112 112
"""
_MPS = """
1 2 3 4 5 6 7 8 9 10 11 12 13 13 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 9 37 38 39 40
41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 32 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 48
81 82 83 84 85 86 87 71 89 90 91 92 93 94 86 96 97 98 99 100 93 102 103 104 99 106 107 103 109 107 111 109 111
"""
_SWITCH = (0, 14, 36, 64, 80, 88, 95, 105, 110, 112)

# A 114th state is our own: one half for ever, for the decisions that have no statistics (F.1.4.4.2, G.1.3.1).
HALF = 113
_QE_OF = np.array([*(int(word, 16) for word in _QE.split()), 0x5A1D], np.int64)
_AFTER_LPS = np.array([*map(int, _LPS.split()), HALF], np.uint8)
_AFTER_MPS = np.array([*map(int, _MPS.split()), HALF], np.uint8)
_SWITCHES = np.isin(np.arange(114), _SWITCH).astype(np.uint8)

_A, _C, _CT, AT, _END = range(5)  # the coder's registers as in D.2, and the next byte and the end of the segment


@inlined
def _byte_in(coder: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]) -> None:
    if coder[AT] < coder[_END]:
        coder[_C] += np.int64(data[coder[AT]]) << 8
    coder[AT] += 1


@kernel
def start(coder: npt.NDArray[np.int64], data: npt.NDArray[np.uint8], begin: int, end: int) -> None:
    """Initdec (D.2.1): put `coder` int64 [5] at the head of the segment data[begin:end]."""
    coder[_A] = 0x10000
    coder[_C] = 0
    coder[_CT] = 0
    coder[AT] = begin
    coder[_END] = end
    for _ in range(2):
        _byte_in(coder, data)
        coder[_C] <<= 8


@kernel
def decide(coder: npt.NDArray[np.int64], data: npt.NDArray[np.uint8], states: npt.NDArray[np.uint8], index: int) -> int:
    """One binary decision with the statistics `states[index]`: MPS << 7 | state (D.2.2 to D.2.6).

    Renorm_d comes before the decision instead of after it, so that no byte is read which no decision needs.
    """
    a = coder[_A]
    while a < 0x8000:
        if coder[_CT] == 0:
            _byte_in(coder, data)
            coder[_CT] = 8
        a <<= 1
        coder[_C] <<= 1
        coder[_CT] -= 1
    state = states[index] & 127
    mps = np.int64(states[index] >> 7)
    qe = _QE_OF[state]
    a -= qe
    if coder[_C] >> 16 < a:
        coder[_A] = a
        if a >= 0x8000:
            return int(mps)
        likely = a >= qe  # if not, the subintervals are exchanged
    else:
        coder[_C] -= a << 16
        coder[_A] = qe
        likely = a < qe
    if likely:
        states[index] = _AFTER_MPS[state] | mps << 7
        return int(mps)
    states[index] = _AFTER_LPS[state] | (mps ^ _SWITCHES[state]) << 7
    return int(1 - mps)
