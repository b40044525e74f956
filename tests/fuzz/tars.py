"""Tar files: what scan_shard says is in them."""

from __future__ import annotations

import io
import random
import tarfile
from functools import cache
from pathlib import Path

from pipeline.crop_jpeg import describe
from pipeline.folder import picture_size
from pipeline.scan import scan_shard
from pipeline.shards import BLOCK
from pipeline.transcoder import to_crop_addressed
from tests.fuzz.engine import Target
from tests.fuzz.mutations import mutate_bytes
from tests.jpegs import jpeg

# Where a header's fields are (POSIX.1-2001, ustar): name, mode, uid, gid, size, mtime, checksum, type, link, magic.
_FIELDS = ((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (148, 8), (156, 1), (157, 100), (257, 8))
_NAMES = (
    b"../../a.jpg",
    b"/a.jpg",
    b"a\xff.jpg",
    b"\0",
    b"a" * 100,
    b"1/2.jpg",
    b"0.jpg",
    b"0.cls",
    b"a\n.jpg",
    b"con",
)
_NUMBERS = (
    *(b"%011o\0" % n for n in (0, 1, 511, 512, 513, 1 << 20, 1 << 32)),
    *(b"77777777777\0", b"-0000000001\0", b"9\0", b"        \0", b"", b"0x10\0", b"1_0\0", b"\xb2\xb3\0"),
    *(bytes([mark]) + value.to_bytes(11) for mark in (128, 255) for value in (0, 1, 1 << 40, 1 << 62, (1 << 88) - 1)),
)
_TYPES = b"0\x001234567gxLKSNVMDX"
_RECORDS = (
    *(("size", n) for n in ("0", "-1", "513", "1000000000000", "1e9", "x", "")),
    *(("path", n) for n in ("0.jpg", "../x.jpg", "/x.jpg", "", "a\0b")),
    *(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "1000000000000")),
    *(("GNU.sparse.size", "1000000000000"), ("GNU.sparse.map", "0,1,1000000000000,1"), ("GNU.sparse.map", "0,x")),
    *(("GNU.sparse.numblocks", "9999999"), ("GNU.sparse.name", "x.jpg"), ("mtime", "nan"), ("hdrcharset", "BINARY")),
)


def _tar(form: int, members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@cache
def tars() -> list[bytes]:
    """Shards of three samples: with short names, and with long ones in both ways that there are."""
    pictures = [to_crop_addressed(jpeg(1, 40, 24, quality=40)), jpeg(2, 16, 16, "grey"), jpeg(3, 9, 20, "444")]
    names = (("0", "1.2", "b"), (f"{'n' * 120}.x", "ü", "c"))
    members = [
        [member for n, key in enumerate(keys) for member in ((f"{key}.jpg", pictures[n]), (f"{key}.cls", b"%d" % n))]
        for keys in names
    ]
    forms = tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT
    return [_tar(forms[0], members[0]), *(_tar(form, members[1]) for form in forms[1:])]


def _checksummed(block: bytes | bytearray) -> bytes:
    """A header with the sum that belongs to it."""
    blank = block[:148] + b" " * 8 + block[156:]
    return bytes(block[:148]) + b"%06o\0 " % sum(blank) + bytes(block[156:])


def _change_header(rng: random.Random, block: bytes) -> bytes:
    out = bytearray(block)
    at, size = rng.choice((_FIELDS[0], _FIELDS[4], _FIELDS[4], _FIELDS[7], rng.choice(_FIELDS)))
    match at:
        case 0 | 157:
            value = rng.choice(_NAMES)
        case 156:
            value = bytes([rng.choice(_TYPES)])
        case _:
            value = rng.choice(_NUMBERS)
    out[at : at + size] = value[:size].ljust(size, b"\0")
    return _checksummed(out) if rng.random() < 0.9 else bytes(out)


def _extended(rng: random.Random) -> list[bytes]:
    """A header that says something of the next, in PAX's way or in GNU's, and its content."""
    if rng.random() < 0.7:
        content = b""
        for key, value in rng.choices(_RECORDS, k=rng.randint(1, 4)):
            line = f" {key}={value}\n".encode()
            length = len(line) + len(str(len(line) + 2))
            content += str(rng.choice((length, length, length, 0, -1, 10**9))).encode() + line
        kind = rng.choice(b"xxxg")
    else:
        content, kind = rng.choice((*_NAMES, b"x" * 3000)), rng.choice(b"LK")
    info = tarfile.TarInfo("extended")
    info.size = len(content)
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[156] = kind
    block = _checksummed(header)
    if rng.random() < 0.2:
        block = _change_header(rng, block)
    return [block, content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0")]


def mutate_tar(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One to three changes of blocks, most of them of headers, whose sums are put right."""
    data = rng.choice(seeds)
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        headers = [n for n, block in enumerate(blocks) if block[257:262] == b"ustar"] or [0]
        at = rng.choice(headers) if rng.random() < 0.8 else rng.randrange(len(blocks))
        match rng.randrange(9):
            case 0:
                del blocks[at]
            case 1:
                blocks.insert(rng.randrange(len(blocks) + 1), blocks[at])
            case 2:
                to = rng.choice(headers)
                blocks[at], blocks[to] = blocks[to], blocks[at]
            case 3:
                blocks[at:at] = _extended(rng)
            case 4:
                blocks[at] = mutate_bytes(rng, blocks[at], [])
            case 5:
                other = rng.choice(seeds)
                blocks.insert(at, other[: rng.randrange(4) * BLOCK])
            case _ if len(blocks[at]) == BLOCK:
                blocks[at] = _change_header(rng, blocks[at])
        blocks = blocks or [bytes(BLOCK)]
    out = b"".join(blocks)
    return out[: rng.randrange(len(out) + 1)] if rng.random() < 0.05 else out


def _check_tar(data: bytes, rng: random.Random, folder: Path) -> str:
    path = folder / "train-000000.tar"
    path.write_bytes(data)
    scanned = scan_shard(path)
    assert scanned.info.bytes == len(data)
    assert len(set(scanned.keys)) == len(scanned.keys) == len(scanned.records) == len(scanned.idx)
    for record in scanned.records:
        offset, size = int(record["offset"]), int(record["bytes"])
        picture = data[offset : offset + size]
        assert len(picture) == size
        assert (record["width"], record["height"]) == picture_size(picture)
        assert (record["header"], record["crc"]) == describe(picture)
    assert {path.name} == {entry.name for entry in folder.iterdir()}
    return f"{len(scanned.keys)} samples" if len(scanned.keys) < 4 else "more samples"


TARGETS = (Target(name="tar", share=12, seeds=tars, mutate=mutate_tar, check=_check_tar),)
