"""Changes to bytes and to JPEGs: those that disks, networks and programs make, and those that somebody would."""

from __future__ import annotations

import random

_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
_WORDS = (0, 1, 2, 7, 8, 16, 17, 255, 256, 1000, 4096, 32767, 32768, 65535)


def mutate_bytes(rng: random.Random, data: bytes, others: list[bytes], *, changes: int = 3) -> bytes:
    """One to `changes` changes of any bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, changes)):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((1, 1, 2, 4, rng.randrange(1, 60), rng.randrange(1, 1000))))
        match rng.randrange(12):
            case 0 | 1 | 2 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 3 if at < len(out):
                out[at] = rng.randrange(256)
            case 4 if at < len(out):
                out[at] = rng.choice(_BYTES)
            case 5:
                out[at : at + 2] = rng.choice(_WORDS).to_bytes(2, rng.choice(("big", "little")))
            case 6:
                del out[at:end]
            case 7:
                out[at:at] = out[at:end]
            case 8:
                out[at:end] = bytes(end - at)
            case 9:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 10 if rng.random() < 0.3:
                del out[at:]
            case 11 if others and rng.random() < 0.5:
                other = rng.choice(others)
                place = min(len(other), at) if rng.random() < 0.5 else rng.randrange(len(other) + 1)
                out[at:] = other[place:]
    return bytes(out)


def pieces(data: bytes) -> list[bytes]:
    """A JPEG in pieces: its markers with their segments, and the entropy-coded data between them."""
    found, at = [], 0
    while at < len(data):
        end = at + 2
        if data[at] != 0xFF or end > len(data) or data[at + 1] in (0, 0xFF):
            end = at + 1
            while end < len(data) and not (
                data[end] == 0xFF and data[end + 1 : end + 2] not in (b"", b"\x00", b"\xff")
            ):
                end += 1
        elif not 0xD0 <= data[at + 1] <= 0xD9:
            end += int.from_bytes(data[at + 2 : at + 4])
        found.append(data[at:end])
        at = end
    return found


def _change_segment(rng: random.Random, piece: bytes) -> bytes:
    """A segment with one field changed: its length, or what the kind of the segment has."""
    out = bytearray(piece)
    if len(out) < 5 or rng.random() < 0.1:
        out[2:4] = rng.choice((*_WORDS, len(out), max(0, len(out) - 3))).to_bytes(2)
        return bytes(out)
    at = rng.randrange(4, len(out))
    match out[1]:
        case 0xC0 | 0xC1 | 0xC2 | 0xC9 | 0xCA if rng.random() < 0.8:
            match rng.randrange(6):
                case 0 | 1:  # mostly sizes that a picture may have: they are decoded
                    side = rng.choice((rng.randrange(300), rng.randrange(300), rng.choice((0, 1, 2000, 65535))))
                    place = rng.choice((5, 7))
                    out[place : place + 2] = side.to_bytes(2)
                case 2:
                    out[1] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB))
                case 3:  # sampling factors
                    out[min(len(out) - 1, 11 + 3 * rng.randrange(4))] = rng.choice(
                        (0x11, 0x12, 0x21, 0x22, 0x41, 0x31, 0)
                    )
                case 4:  # identifiers and table numbers
                    out[min(len(out) - 1, 10 + 3 * rng.randrange(4) + 2 * rng.randrange(2))] = rng.randrange(5)
                case 5:  # another number of components
                    count = rng.choice((0, 1, 2, 3, 4, 5))
                    out[9:] = bytes([count]) + (bytes(out[10:]) + 5 * b"\x04\x11\x00")[: 3 * count]
                    out[2:4] = (8 + 3 * count).to_bytes(2)
        case 0xDA:
            out[rng.choice((len(out) - 3, len(out) - 2, len(out) - 1, at))] = rng.choice(
                (0, 1, 2, 5, 13, 0x10, 0x21, 63, 64)
            )
        case 0xC4 if len(out) > 21:  # counts of codes, or symbols
            at = rng.choice((4, 5 + rng.randrange(16), rng.randrange(21, len(out))))
            out[at] = rng.choice((0, 1, 2, out[at] ^ 1, 255, rng.randrange(256)))
        case 0xDD:
            out[4:6] = rng.choice((*range(12), 255, 65535)).to_bytes(2)
        case _:
            out[at] = rng.choice((*_BYTES, rng.randrange(256)))
    return bytes(out)


_EXTRA = (
    b"\xff\xdc\x00\x04\x00\x10",  # DNL
    b"\xff\xdd\x00\x04\x00\x02",  # DRI
    b"\xff\xcc\x00\x04\x00\x10",  # DAC
    b"\xff\xcc\x00\x04\x10\x3f",
    b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00",
    b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x02",
    b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00",
    b"\xff\xe2\x00\x10MPF\x00MM\x00*\x00\x00\x00\x08\x00\x00",
    b"\xff\xe1\x00\x10Exif\x00\x00II*\x00\x08\x00\x00\x00",
    b"\xff\xd8",
    b"\xff\xd9",
    b"\xff\xff",
    b"\xff\x01",
    b"\x00",
)


def mutate_jpeg(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to three changes of segments or of the data between them, and of any bytes now and then."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, data, others)
    parts = pieces(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not parts:
            break
        at = rng.randrange(len(parts))
        match rng.randrange(10):
            case 0:
                del parts[at]
            case 1:
                parts.insert(rng.randrange(len(parts) + 1), parts[at])
            case 2:
                to = rng.randrange(len(parts))
                parts[at], parts[to] = parts[to], parts[at]
            case 3:
                parts.insert(at, rng.choice(_EXTRA))
            case 4 if others:
                parts.insert(at, rng.choice(pieces(rng.choice(others)) or [b""]))
            case 5:
                parts[at] = mutate_bytes(rng, parts[at], [], changes=2)
            case _:
                headers = [i for i, part in enumerate(parts) if len(part) > 4 and part[0] == 0xFF]
                at = rng.choice(headers) if headers else at
                parts[at] = _change_segment(rng, parts[at])
    out = b"".join(parts)
    return mutate_bytes(rng, out, [], changes=1) if rng.random() < 0.1 else out
