"""The reader of crop-addressed JPEGs: a crop's pixels are the whole picture's, whatever the file has been through."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment import Crops
from pipeline.backends.pillow import PillowBackend, decode_rgb
from pipeline.crop_jpeg import CRC_AT, CRC_END, PREFIX, LayoutError, describe, header_crc, read_layout, splice
from pipeline.errors import DataError, PictureError
from pipeline.resample import Pixels, Resampler
from pipeline.shards import RECORD, ShardPictures, Shards
from pipeline.transcoder import to_crop_addressed
from tests.jpegs import SAMPLINGS, decoded, jpeg

MUTATIONS = int(os.environ.get("HEADRACE_FUZZ", "1500"))  # `make fuzz` asks for more


def cut(data: bytes, x: int, y: int, w: int, h: int) -> tuple[bytes, int, int]:
    """The small JPEG of a crop, and where the crop lies in it."""
    layout = read_layout(data[: describe(data)[0]])
    tiles = layout.tiles(x, y, w, h)
    begin, end = layout.span(tiles)
    excerpt = splice(layout, tiles, bytearray(data[begin:end]))
    return bytes(excerpt.data), x - excerpt.x, y - excerpt.y


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1000),
    width=st.integers(1, 200),
    height=st.integers(1, 120),
    sampling=st.sampled_from(SAMPLINGS),
    quality=st.sampled_from([35, 75, 90, 100]),
    progressive=st.booleans(),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_a_crop_has_the_pixels_of_the_whole(
    seed: int, width: int, height: int, sampling: str, quality: int, progressive: bool, corners: list[float]
) -> None:
    original = jpeg(seed, width, height, sampling, quality=quality, progressive=progressive)
    data = to_crop_addressed(original)
    whole = decoded(original)
    assert np.array_equal(decoded(data), whole)
    x, y = int(corners[0] * (width - 1)), int(corners[1] * (height - 1))
    w, h = 1 + int(corners[2] * (width - x - 1)), 1 + int(corners[3] * (height - y - 1))
    small, left, top = cut(data, x, y, w, h)
    want = whole[y : y + h, x : x + w]
    assert np.array_equal(decoded(small)[top : top + h, left : left + w], want)
    if sampling != "CMYK":
        assert np.array_equal(simplejpeg.decode_jpeg(small, "RGB")[top : top + h, left : left + w], want)


def test_only_the_crop_is_decoded() -> None:
    data = to_crop_addressed(jpeg(0, 640, 480))
    small, _, _ = cut(data, 200, 200, 64, 64)
    assert decoded(small).size < 0.06 * decoded(data).size
    assert len(small) < 0.1 * len(data)


def test_a_header_that_is_not_as_it_was_written_is_refused() -> None:
    data = to_crop_addressed(jpeg(1, 160, 120))
    length, crc = describe(data)
    assert length
    for at in range(length):
        header = bytearray(data[:length])
        header[at] ^= 1 << at % 8
        with pytest.raises(LayoutError):
            read_layout(bytes(header))
    with pytest.raises(LayoutError):
        read_layout(data[:length], crc ^ 1)
    assert describe(jpeg(1, 160, 120)) == describe(b"") == describe(data[:-1]) == (0, 0)


def test_a_header_that_lies_well_is_refused() -> None:
    """Rows 1 and 2 are said to be one, and the last to be two: every offset is that of a row, and the CRC is right."""
    data = to_crop_addressed(jpeg(2, 256, 160))
    length, crc = describe(data)
    rows = read_layout(data[:length]).rows
    table = np.frombuffer(data, ">u8", rows + 1, PREFIX.size).copy()
    table[2:-2] = table[3:-1]
    lying = bytearray(data[:length])
    lying[PREFIX.size : PREFIX.size + table.nbytes] = table.tobytes()
    lying[CRC_AT:CRC_END] = header_crc(bytes(lying)).to_bytes(4)
    assert read_layout(bytes(lying)).rows == rows  # by itself it could be true
    assert describe(bytes(lying) + data[length:]) == (0, 0)  # not beside the picture
    with pytest.raises(LayoutError):
        read_layout(bytes(lying), crc)  # and not against the index


def mutate(data: bytes, rng: random.Random, header: int) -> bytes:
    """One to three changes of the kinds that disks, networks and programs make; the length stays, as in a tar."""
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


def test_no_mutation_gives_a_wrong_picture_in_silence(tmp_path: Path) -> None:
    """Through the real reader. What is delivered is what the whole file decodes to, now or before it was damaged (a
    crop that lies elsewhere may not even see the damage), or it is counted as damaged, or refused by name."""
    rng = random.Random(20261123)
    kinds = [(96, 80, "420"), (131, 70, "444"), (64, 90, "grey"), (150, 60, "422"), (75, 64, "440"), (90, 40, "CMYK")]
    files = [to_crop_addressed(jpeg(n, *kind, quality=75)) for n, kind in enumerate(kinds)]
    backend = PillowBackend(image_size=32, max_pictures=1)
    seen: Counter[str] = Counter()
    for _ in range(MUTATIONS):
        number = rng.randrange(len(files))
        (width, height, _), good = kinds[number], files[number]
        length, crc = describe(good)
        bad = mutate(good, rng, length)
        (tmp_path / "shard").write_bytes(bad)
        record = np.array([(0, len(bad), 0, width, height, length, crc)], RECORD)
        source = Shards(str(tmp_path), ("a",), ("shard",), np.array([0]), tmp_path / "index", record, "")
        pictures = ShardPictures(source, np.array([0]))
        w, h = rng.randrange(1, width + 1), rng.randrange(1, height + 1)
        x, y = rng.randrange(width - w + 1), rng.randrange(height - h + 1)
        box = np.array([[0.0, 0.0, w, h]])
        crops = Crops(region=np.array([[x, y, w, h]]), box=box, flip=np.array([False]))
        out = np.zeros((1, 32, 32, 3), np.uint8)
        try:
            backend.fill(pictures, crops, out)
        except PictureError:
            seen["refused"] += 1
            continue
        finally:
            source.close()
        if pictures.damaged:
            seen["counted"] += 1
            continue
        assert any(np.array_equal(out[0], cut_whole(data, x, y, w, h)) for data in (bad, good))
        seen["equal"] += 1
    assert all(seen[kind] > MUTATIONS / 100 for kind in ("refused", "counted", "equal")), seen


def cut_whole(data: bytes, x: int, y: int, w: int, h: int) -> np.ndarray:
    """The reference: decode whole with Pillow, cut, resize."""
    try:
        crop = np.asarray(decode_rgb(data).crop((x, y, x + w, y + h)).convert("RGBX"))
    except DataError:
        return np.empty(0)
    out = np.empty((32, 32, 3), np.uint8)
    pixels = Pixels(np.ascontiguousarray(crop).reshape(-1), first=0, step=4, stride=4 * w)
    Resampler(32).resize(pixels, w, h, box=[0, 0, w, h], flip=False, out_HWC=out)
    return out
