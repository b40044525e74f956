from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.augment import Crops, center_crops, random_resized_crops
from pipeline.backends import BACKENDS, choose_backend, is_installed
from pipeline.errors import ConfigError, PictureError
from pipeline.transcoder import to_crop_addressed
from tests.photos import KINDS, PicturesInMemory, photo

SIZE = 96
N = 42
dali = pytest.mark.skipif(not is_installed("dali"), reason="DALI is not installed: pip install nvidia-dali-cuda130")
both = pytest.mark.parametrize("backend", ["pillow", pytest.param("dali", marks=dali)])


def encoded(seed: int, kind: str = "JPEG") -> bytes:
    width, height, mode, subsampling, progressive = KINDS[seed % len(KINDS)]
    file = io.BytesIO()
    options = {"quality": 90, "subsampling": subsampling, "progressive": progressive} if kind == "JPEG" else {}
    photo(seed, width, height, mode).save(file, kind, **options)
    return file.getvalue()


def sizes(n: int) -> list[tuple[int, int]]:
    return [KINDS[i % len(KINDS)][:2] for i in range(n)]


def training_crops(n: int = N) -> tuple[list[bytes], Crops]:
    widths, heights = np.array(sizes(n)).T
    return [encoded(i) for i in range(n)], random_resized_crops(np.arange(n), widths, heights, seed=1, epoch=2)


def fill(
    backend: str, files: list[bytes], crops: Crops, size: int = SIZE, of: list[tuple[int, int]] | None = None
) -> npt.NDArray[np.uint8]:
    out = np.full((len(files), size, size, 3), 77, np.uint8)
    built = BACKENDS[backend]()(image_size=size, max_pictures=len(files))
    pictures = PicturesInMemory(files, of or [Image.open(io.BytesIO(data)).size for data in files])
    built.fill(pictures, crops, out)
    built.close()
    assert not pictures.damaged
    return out


def reference(data: bytes, region: list[int], flip: bool) -> npt.NDArray[np.uint8]:
    """The recipe written with PIL alone: decode, crop, resize, mirror."""
    x, y, w, h = region
    image = Image.open(io.BytesIO(data)).convert("RGB").crop((x, y, x + w, y + h))
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


def test_the_pixels_are_those_of_the_recipe() -> None:
    files, crops = training_crops()
    got = fill("pillow", files, crops)
    for i, data in enumerate(files):
        difference = got[i].astype(int) - reference(data, crops.region[i].tolist(), bool(crops.flip[i]))
        assert np.abs(difference).max() <= 1
        assert np.abs(difference).mean() < 0.1  # pillow-simd weighs with fewer bits, 0.04


def test_crop_addressed_pictures_give_the_same_pixels() -> None:
    files, crops = training_crops()
    rewritten = [to_crop_addressed(data) for data in files]
    assert np.array_equal(fill("pillow", rewritten, crops), fill("pillow", files, crops))


@dali
@pytest.mark.parametrize("crop_addressed", [True, False])
def test_dali_equals_pillow_bit_for_bit(crop_addressed: bool) -> None:
    files, crops = training_crops()
    if crop_addressed:
        files = [to_crop_addressed(data) for data in files]
    assert np.array_equal(fill("dali", files, crops), fill("pillow", files, crops))
    widths, heights = np.array(sizes(N)).T
    crops = center_crops(widths, heights, resize_size=110, image_size=SIZE)
    assert np.array_equal(fill("dali", files, crops), fill("pillow", files, crops))


@both
def test_nothing_outside_the_region_matters(backend: str) -> None:
    """What lets a reader decode only the region: the same pixels from a picture that ends where the region ends."""
    whole = photo(3, 240, 180)
    x, y, w, h = 40, 30, 120, 90

    def png(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    box, flip = np.array([[0.0, 0.0, w, h]]), np.array([False])
    a = fill(backend, [png(whole)], Crops(region=np.array([[x, y, w, h]]), box=box, flip=flip))
    cut = whole.crop((x, y, x + w, y + h))
    b = fill(backend, [png(cut)], Crops(region=np.array([[0, 0, w, h]]), box=box, flip=flip))
    assert np.array_equal(a, b)


@both
@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_odd_pictures_are_the_same_in_every_backend(backend: str, mode: str) -> None:
    file = io.BytesIO()
    kind = "JPEG" if mode == "CMYK" else "PNG"
    picture = photo(5, 120, 100)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    picture.save(file, kind)
    ordinary = encoded(0)
    files = [ordinary, file.getvalue(), ordinary]
    crops = center_crops(np.array([240, 120, 240]), np.array([180, 100, 180]), resize_size=110, image_size=SIZE)
    assert np.array_equal(fill(backend, files, crops), fill("pillow", files, crops))


@both
def test_exif_orientation_is_ignored(backend: str) -> None:
    """One policy in every backend, the original's: pixels as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = io.BytesIO(), io.BytesIO()
    photo(1, 200, 120).save(plain, "JPEG", quality=90)
    photo(1, 200, 120).save(turned, "JPEG", quality=90, exif=exif)
    crops = center_crops(np.array([200]), np.array([120]), resize_size=110, image_size=SIZE)
    assert np.array_equal(fill(backend, [plain.getvalue()], crops), fill(backend, [turned.getvalue()], crops))


@both
@pytest.mark.parametrize("damage", ["empty", "text", "cut header", "cut picture", "bomb"])
def test_a_damaged_picture_is_named(backend: str, damage: str) -> None:
    good = encoded(0)
    bad = {
        "empty": b"",
        "text": b"this is no picture" * 10,
        "cut header": good[:100],
        "cut picture": good[: len(good) // 2],
        "bomb": b"P5 60000 60000 255\n",
    }[damage]
    files = [good, good, bad, good]
    crops = center_crops(np.full(4, 240), np.full(4, 180), resize_size=110, image_size=SIZE)
    with pytest.raises(PictureError) as error:
        fill(backend, files, crops, of=[(240, 180)] * 4)
    assert error.value.row == 2
    assert len(str(error.value)) > 10


def test_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto") == "pillow"
    with pytest.raises(ConfigError, match="auto, pillow or dali, was 'magic'"):
        choose_backend("magic")
    monkeypatch.setattr("pipeline.backends.is_installed", lambda _name: False)
    with pytest.raises(ConfigError, match="pip install nvidia-dali"):
        choose_backend("dali")
    with pytest.raises(ConfigError, match="pip install Pillow"):
        choose_backend("auto")
