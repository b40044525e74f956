"""The resampler against Pillow's, over sizes, boxes, mirroring and ways in which pixels lie in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.resample import Pixels, Resampler

PICTURE = np.random.default_rng(0).integers(0, 256, (300, 300, 4), np.uint8)
SIDE = st.integers(1, 150) | st.integers(1, 4)


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 100),
    width=SIDE,
    height=SIDE,
    at=st.tuples(st.integers(0, 149), st.integers(0, 149)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    flip=st.booleans(),
    step=st.sampled_from([3, 4]),
)
def test_it_is_pillows_within_one(
    size: int,
    width: int,
    height: int,
    at: tuple[int, int],
    corners: tuple[float, float, float, float],
    flip: bool,
    step: int,
) -> None:
    x, y = at
    left, top = corners[0] * width / 2, corners[1] * height / 2
    right, bottom = left + 0.2 + corners[2] * (width - left - 0.2), top + 0.2 + corners[3] * (height - top - 0.2)
    box = (left, top, min(right, width), min(bottom, height))
    crop = Image.fromarray(np.ascontiguousarray(PICTURE[y : y + height, x : x + width, :3]))
    want = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR, box=box))
    memory = np.append(PICTURE[..., :step].reshape(-1), np.uint8(0))
    pixels = Pixels(memory, first=(300 * y + x) * step, step=step, stride=300 * step)
    got = np.zeros((size, size, 3), np.uint8)
    Resampler(size).resize(pixels, width, height, box=list(box), flip=flip, out_HWC=got)
    assert np.abs(got[:, ::-1].astype(int) - want if flip else got.astype(int) - want).max() <= 1


def test_a_crop_at_its_own_size_is_copied() -> None:
    memory, out = PICTURE.reshape(-1), np.zeros((120, 120, 3), np.uint8)
    pixels = Pixels(memory, first=4 * (300 * 7 + 9), step=4, stride=1200)
    Resampler(120).resize(pixels, 120, 120, box=[0, 0, 120, 120], flip=False, out_HWC=out)
    assert np.array_equal(out, PICTURE[7:127, 9:129, :3])


@pytest.mark.parametrize("first", [-4, 4 * (300 * 200), 4 * 300 * 300])
def test_no_pixel_is_read_outside_the_memory(first: int) -> None:
    pixels = Pixels(PICTURE.reshape(-1), first=first, step=4, stride=1200)
    with pytest.raises(ValueError, match="does not lie within"):
        Resampler(8).resize(pixels, 150, 150, box=[0, 0, 150, 150], flip=False, out_HWC=np.zeros((8, 8, 3), np.uint8))
