"""Numbers and names as people read them."""

from __future__ import annotations

import math
import re

# Control characters, halves of surrogate pairs, non-characters, and what turns the direction of all that follows.
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def plain(text: str) -> str:
    """Fit for any reader: a byte of a file's name that is no UTF-8 is written ``\\xNN``, other oddities likewise."""
    return _ODD.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # how Python keeps such a byte
    return chr(byte).encode("unicode_escape").decode()


def number(value: float) -> str:
    """1,234 or 12.3 or 0.0012: three digits at least, all of those before the point."""
    if not math.isfinite(value):
        return "unbounded" if value == math.inf else "unknown"
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.3g}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def short(value: float) -> str:
    """The same in few letters, for an axis: 250 k, 1.2 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= (size if size > 1e3 else 1e4):
            return f"{value / size:.3g} {unit}"
    return number(value)


def percent(fraction: float) -> str:
    """36 %; a digit more where that would be little, or all but not quite."""
    share = 100 * fraction
    fine = 0.05 <= abs(share) < 9.95 or 99.5 <= share < 99.95
    return f"{share:.1f} %" if fine else f"{share:.0f} %"


def micros(us: float) -> str:
    """A time given in microseconds, in the unit that fits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if abs(us) >= size:
            return f"{number(us / size)} {unit}"
    return f"{number(us)} us"


def byte_count(count: float) -> str:
    """A number of bytes, in the unit that fits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{number(count / size)} {unit}"
    return f"{number(count)} B"
