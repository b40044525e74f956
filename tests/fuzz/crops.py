"""Crop-addressed pictures: damaged in their shard, and made by somebody who knows the format."""

from __future__ import annotations

import random
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.augment import Crops
from pipeline.backends.pillow import PillowBackend, decode_rgb
from pipeline.crop_jpeg import CRC_AT, CRC_END, PREFIX, ROW, describe, header_crc
from pipeline.errors import DataError
from pipeline.jpeg import read_header
from pipeline.resample import Pixels, Resampler
from pipeline.shards import RECORD, ShardPictures, Shards
from pipeline.transcoder import to_crop_addressed
from tests.fuzz.engine import Target
from tests.fuzz.mutations import mutate_jpeg
from tests.jpegs import jpeg

_KINDS = ((96, 80, "420"), (131, 70, "444"), (64, 90, "grey"), (150, 60, "422"), (75, 64, "440"), (90, 40, "CMYK"))
_SIZE = 32
_PIXELS_MAX = 1 << 20


@cache
def crop_addressed() -> list[bytes]:
    """One picture of each kind."""
    return [to_crop_addressed(jpeg(n, *kind, quality=75)) for n, kind in enumerate(_KINDS)]


def _mutate_in_shard(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One to three changes of the kinds that disks, networks and programs make; the length stays, as in a tar."""
    data = rng.choice(seeds)
    header, _ = describe(data)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(out)) if rng.random() < 0.6 else rng.randrange(header)
        markers = [i for i in range(header, len(out) - 1) if out[i] == 0xFF and out[i + 1] != 0] or [at]
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:  # a marker where none was
                out[at : at + 2] = bytes([0xFF, rng.choice((0xD0 + rng.randrange(8), 0xD9, 0xD8, 0xDA, 0xFF, 0xC4))])
            case 3:  # a marker gone
                out[rng.choice(markers)] = rng.randrange(255)
            case 4:  # a marker renumbered
                out[rng.choice(markers) + 1] = 0xD0 + rng.randrange(8)
            case 5:  # a piece that was never written
                end = min(len(out), at + rng.randrange(1, 400))
                out[at:end] = bytes(end - at)
            case 6:  # a piece twice: what follows is moved, the end is lost
                end = min(len(out), at + rng.randrange(1, 60))
                out = (out[:end] + out[at:end] + out[end:])[: len(data)]
            case 7:  # cut short
                out[at:] = bytes(len(out) - at)
    return bytes(out[: len(data)]).ljust(len(data), b"\0")


def _check_in_shard(data: bytes, rng: random.Random, folder: Path) -> str:
    """What is delivered is what the whole file decodes to, now or before it was damaged (a crop that lies elsewhere
    may not even see the damage), or it is counted as damaged, or refused by name."""
    good = min(crop_addressed(), key=lambda seed: abs(len(seed) - len(data)))
    header = read_header(good)
    assert header
    assert len(good) == len(data)
    return _read(data, [data, good], (header.width, header.height, *describe(good)), rng, folder)


def _read(data: bytes, wanted: list[bytes], known: tuple[int, int, int, int], rng: random.Random, folder: Path) -> str:
    """Read any crop through the real reader, with an index that knows width, height, header and CRC."""
    width, height, length, crc = known
    (folder / "shard").write_bytes(data)
    record = np.array([(0, len(data), 0, width, height, length, crc)], RECORD)
    source = Shards(str(folder), ("a",), ("shard",), np.array([0]), folder / "index", record, "")
    pictures = ShardPictures(source, np.array([0]))
    w, h = rng.randint(1, width), rng.randint(1, height)
    x, y = rng.randint(0, width - w), rng.randint(0, height - h)
    crops = Crops(region=np.array([[x, y, w, h]]), box=np.array([[0.0, 0.0, w, h]]), flip=np.array([False]))
    out = np.zeros((1, _SIZE, _SIZE, 3), np.uint8)
    try:
        PillowBackend(image_size=_SIZE, max_pictures=1).fill(pictures, crops, out)
    finally:
        source.close()
    if pictures.damaged:
        return "counted as damaged"
    assert any(np.array_equal(out[0], _cut_whole(file, x, y, w, h)) for file in wanted), "another picture, in silence"
    return "equal"


def _cut_whole(data: bytes, x: int, y: int, w: int, h: int) -> np.ndarray:
    """The reference: decode whole with Pillow, cut, resize."""
    try:
        crop = np.asarray(decode_rgb(data).crop((x, y, x + w, y + h)).convert("RGBX"))
    except DataError:
        return np.empty(0)
    out = np.empty((_SIZE, _SIZE, 3), np.uint8)
    pixels = Pixels(np.ascontiguousarray(crop).reshape(-1), first=0, step=4, stride=4 * w)
    Resampler(_SIZE).resize(pixels, w, h, box=[0, 0, w, h], flip=False, out_HWC=out)
    return out


def _forge(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A picture that is changed anywhere and whose lengths and CRCs are made to fit."""
    data = rng.choice(seeds)
    length, _ = describe(data)
    header, body = bytearray(data[:length]), data[length:]
    rows = (int.from_bytes(header[4:6]) - 39) // 8
    fixed = PREFIX.size + ROW.size * (rows + 1)
    match rng.randrange(4):
        case 0 | 1:  # the segments behind ours
            tail = mutate_jpeg(rng, bytes(header[fixed:]), [seed[describe(seed)[0] :] for seed in seeds[:1]])
            header[fixed:] = tail
        case 2:  # the fields of ours
            at = rng.randrange(CRC_END, PREFIX.size)
            header[at] = rng.choice((0, 1, 2, 8, 16, 32, header[at] ^ 1, header[at] * 2 & 255, header[at] // 2))
        case 3:
            body = mutate_jpeg(rng, body, [])
    return forged(bytes(header), body, keep_place=rng.random() < 0.2)


def forged(header: bytes, body: bytes, *, keep_place: bool = False) -> bytes:
    """The file with the header's length, the place of its frame, the rows' places and all CRCs put right."""
    out = bytearray(header)
    if len(out) < PREFIX.size + ROW.size:
        return header + body
    out[19:23] = len(out).to_bytes(4)
    frame = max(out.find(b"\xff\xc0", PREFIX.size), out.find(b"\xff\xc1", PREFIX.size))
    if frame > 0 and not keep_place:
        out[23:27] = frame.to_bytes(4)
        out[27:31] = out[frame + 7 : frame + 9] + out[frame + 5 : frame + 7]
    ends = [i + 2 for i in range(len(body) - 1) if body[i] == 0xFF and body[i + 1] != 0]
    rows = (int.from_bytes(out[4:6]) - 39) // 8
    columns, before, crc = max(1, len(ends) // max(1, rows)), 0, 0
    for row, end in enumerate(ends[columns - 1 :: columns][:rows], 1):
        crc = zlib.crc32(body[before:end], crc)
        before = end
        if PREFIX.size + ROW.size * (row + 1) <= len(out):
            ROW.pack_into(out, PREFIX.size + ROW.size * row, end, crc)
    out[CRC_AT:CRC_END] = header_crc(bytes(out)).to_bytes(4)
    return bytes(out) + body


def _check_forged(data: bytes, rng: random.Random, folder: Path) -> str:
    """Where the index says that a file is crop-addressed, its crops are those of the whole file."""
    length, crc = describe(data)
    header = read_header(data)
    if not length:
        return "not crop-addressed"
    assert header
    if header.width * header.height > _PIXELS_MAX:
        return "large"
    return _read(data, [data], (header.width, header.height, length, crc), rng, folder)


TARGETS = (
    Target(name="crop", share=15, seeds=crop_addressed, mutate=_mutate_in_shard, check=_check_in_shard),
    Target(name="forged", share=15, seeds=crop_addressed, mutate=_forge, check=_check_forged),
)
