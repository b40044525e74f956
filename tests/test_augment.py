from __future__ import annotations

import io
import math
import random

import numpy as np
from PIL import Image

from pipeline.augment import Crops, center_crops, random_resized_crops
from pipeline.backends.pillow import PillowBackend
from pipeline.rng import STREAM_CROP, random_uniform
from tests.photos import PicturesInMemory, photo

SIZES = np.array([(500, 375), (375, 500), (299, 299), (75, 600), (2000, 60), (1, 1), (31, 29)])


def draw(n: int, *, seed: int = 0, epoch: int = 0) -> tuple[Crops, np.ndarray]:
    sizes = SIZES[np.arange(n) % len(SIZES)]
    return random_resized_crops(np.arange(n), sizes[:, 0], sizes[:, 1], seed=seed, epoch=epoch), sizes


def reference(u: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop as one reads it in the paper's and torchvision's description, one picture at a time."""
    for i in range(10):
        area = width * height * (0.08 + u[i] * 0.92)
        aspect = math.exp(math.log(3 / 4) + u[10 + i] * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (width - w + 1)), int(u[21] * (height - h + 1)), w, h
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


def test_equals_a_plain_loop() -> None:
    crops, sizes = draw(2000, seed=5, epoch=7)
    u = random_uniform(5, 7, STREAM_CROP, np.arange(2000), 23)
    want = [reference(row, int(w), int(h)) for row, (w, h) in zip(u, sizes, strict=True)]
    assert crops.region.tolist() == [list(region) for region in want]
    assert crops.flip.tolist() == (u[:, 22] < 0.5).tolist()


def test_stays_inside_the_picture_and_the_box_is_the_region() -> None:
    crops, sizes = draw(5000)
    x, y, w, h = crops.region.T
    assert min(x.min(), y.min()) >= 0
    assert min(w.min(), h.min()) >= 1
    assert (x + w <= sizes[:, 0]).all()
    assert (y + h <= sizes[:, 1]).all()
    assert np.array_equal(crops.box, np.stack((0 * w, 0 * h, w, h), 1))


def test_has_the_distribution_of_independent_draws() -> None:
    """Area, aspect and place against the same loop fed by Python's own generator."""
    n, width, height = 20_000, 500, 375
    crops = random_resized_crops(np.arange(n), np.full(n, width), np.full(n, height), seed=0, epoch=0)
    rng = random.Random(1)
    want = np.array([reference(np.array([rng.random() for _ in range(23)]), width, height) for _ in range(n)])
    for got, other in (
        (crops.region[:, 2] * crops.region[:, 3], want[:, 2] * want[:, 3]),
        (crops.region[:, 2] / crops.region[:, 3], want[:, 2] / want[:, 3]),
        (crops.region[:, 0], want[:, 0]),
        (crops.region[:, 1], want[:, 1]),
    ):
        error = np.hypot(got.std(), other.std()) / math.sqrt(n)
        assert abs(got.mean() - other.mean()) < 4.5 * error
    assert abs(crops.flip.mean() - 0.5) < 4.5 * 0.5 / math.sqrt(n)


def test_a_crop_does_not_depend_on_its_batch() -> None:
    all_crops, sizes = draw(100, seed=2, epoch=9)
    rows = np.array([77, 3, 50])
    some = random_resized_crops(rows, sizes[rows, 0], sizes[rows, 1], seed=2, epoch=9)
    assert np.array_equal(some.region, all_crops.region[rows])
    assert np.array_equal(some.flip, all_crops.flip[rows])


def test_center_crop_is_resize_then_crop() -> None:
    """The one-step evaluation transform against the two steps it stands for, as torchvision does them with PIL."""
    image_size, resize_size = 96, 110
    backend = PillowBackend(image_size=image_size, max_pictures=1)
    for seed, (width, height) in enumerate([(240, 180), (180, 241), (111, 110), (97, 300), (110, 110), (500, 60)]):
        picture = photo(seed, width, height)
        if width <= height:
            resized = picture.resize((resize_size, int(resize_size * height / width)), Image.Resampling.BILINEAR)
        else:
            resized = picture.resize((int(resize_size * width / height), resize_size), Image.Resampling.BILINEAR)
        left, top = round((resized.width - image_size) / 2), round((resized.height - image_size) / 2)
        want = np.asarray(resized.crop((left, top, left + image_size, top + image_size)))

        crops = center_crops(np.array([width]), np.array([height]), resize_size=resize_size, image_size=image_size)
        got = np.empty((1, image_size, image_size, 3), np.uint8)
        backend.fill(PicturesInMemory([lossless(picture)], [(width, height)]), crops, got)
        # Pillow takes a box in single precision: the last bit of a weight moves some values across a rounding.
        assert np.abs(got[0].astype(int) - want).max() <= 1


def lossless(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
