"""The reader of crop-addressed JPEGs: a crop's pixels are the whole picture's, whatever the file has been through."""

from __future__ import annotations

import os

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crop_jpeg import CRC_AT, CRC_END, PREFIX, LayoutError, describe, header_crc, read_layout, splice
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
