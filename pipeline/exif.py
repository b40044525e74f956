"""The one thing of EXIF that anybody asks for: which way up a camera was held."""

from __future__ import annotations

import struct

_ORIENTATION = 0x0112  # EXIF 2.3, table 3


def read_orientation(segment: bytes) -> int:
    """1 (upright) to 8, from the content of a JPEG's APP1; 1 where it says nothing, or nothing that can be read."""
    if segment[:6] != b"Exif\0\0" or segment[6:8] not in (b"II", b"MM"):
        return 1
    order = "<" if segment[6:8] == b"II" else ">"
    tiff = memoryview(segment)[6:]
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for number in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * number)
            if tag == _ORIENTATION:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
