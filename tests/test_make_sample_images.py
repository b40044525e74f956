"""The sample pictures: like photographs from outside, and told apart by shape alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, JpegImagePlugin

from tests.conftest import Run
from tools.make_sample_images import PATTERNS, draw_shape, main, make_sample_images, pattern_coverage, picture

Floats = npt.NDArray[np.floating]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training pictures and one to validate for each class."""
    dst = tmp_path_factory.mktemp("samples") / "dst"
    make_sample_images(dst, train=2, val=1, seed=3, workers=1)
    return dst


def hashes(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.JPEG")}


def test_imagenet_layout(samples: Path) -> None:
    for split, count in (("train", 2), ("val", 1)):
        assert sorted(p.name for p in (samples / split).iterdir()) == sorted(PATTERNS)
        for name in PATTERNS:
            assert len(list((samples / split / name).glob("*.JPEG"))) == count
    assert [p.name for p in samples.parent.iterdir()] == [samples.name], "nothing temporary may stay behind"


def test_files_are_baseline_jpegs_of_a_photographs_weight(samples: Path) -> None:
    pixels = size = 0
    for path in samples.rglob("*.JPEG"):
        with Image.open(path) as image:
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            assert not image.info.get("progressive")
            image.load()
            pixels += image.width * image.height
        size += path.stat().st_size
    assert 3.2 < 8 * size / pixels < 6.2, "ImageNet has 4.5 bits a pixel"


def test_sizes_and_sampling_spread_as_in_imagenet() -> None:
    rng = np.random.default_rng(0)
    shapes = [draw_shape(rng) for _ in range(4000)]
    assert np.mean([s.width for s in shapes]) == pytest.approx(468, rel=0.03)
    assert np.mean([s.height for s in shapes]) == pytest.approx(401, rel=0.03)
    longs = [max(s.width, s.height) for s in shapes]
    assert np.mean(np.equal(longs, 500)) == pytest.approx(0.71, abs=0.03)
    assert np.percentile(longs, 5) < 280
    assert np.percentile(longs, 99) > 900
    share = {sampling: n / len(shapes) for sampling, n in Counter(s.sampling for s in shapes).items()}
    assert share == pytest.approx({"4:4:4": 0.76, "4:2:0": 0.20, "4:2:2": 0.02, "grey": 0.02}, abs=0.02)


def test_same_seed_same_bytes_for_any_number_of_workers(samples: Path, tmp_path: Path) -> None:
    make_sample_images(tmp_path / "again", train=1, val=1, seed=3, workers=3)
    again, first = hashes(tmp_path / "again"), hashes(samples)
    assert len(again) == 20
    assert again.items() <= first.items()  # a picture does not depend on how many there are, either
    assert len(set(first.values())) == len(first), "train and val share no picture"
    make_sample_images(tmp_path / "other", train=1, val=1, seed=4, workers=2)
    assert not set(hashes(tmp_path / "other").values()) & set(first.values())


def drawn(count: int, first: int) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.intp]]:
    """``count`` small RGB pictures of each class, and their labels."""
    images, labels = [], []
    for label, name in enumerate(PATTERNS):
        for i in range(first, first + count):
            planes = picture(name, np.random.default_rng((7, label, i)), 128, 96)
            images.append(np.asarray(Image.fromarray(planes, "YCbCr").convert("RGB")))
            labels.append(label)
    return images, np.array(labels)


def colour(image: npt.NDArray[np.uint8]) -> Floats:
    """Mean and standard deviation of each channel."""
    return np.concatenate((image.mean((0, 1)), image.std((0, 1))))


def directions(image: npt.NDArray[np.uint8]) -> Floats:
    """How strong edges are in each direction, relative to all, and how sharply they turn: no colour in it."""
    grey = image.mean(2)
    dy, dx = np.gradient(grey)
    angle, weight = np.arctan2(dy, dx) % np.pi, np.hypot(dx, dy)
    histogram, _ = np.histogram(angle, 12, (0, np.pi), weights=weight)
    spectrum = np.abs(np.fft.fft(histogram / histogram.sum()))[1:7]  # the same however the picture is turned
    lags = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    correlation = np.fft.ifft2(lags).real / lags.mean()
    return np.concatenate((spectrum, np.sort(correlation[:24, :24].ravel())[:: 24 * 24 // 12]))


def accuracy(train: Floats, train_labels: npt.NDArray[np.intp], val: Floats, val_labels: npt.NDArray[np.intp]) -> float:
    """Of the better of two simple classifiers: nearest centroid, and least squares on squares and products as well."""
    mean, std = train.mean(0), train.std(0)
    train, val = (train - mean) / std, (val - mean) / std
    classes = np.unique(train_labels)
    centroids = np.stack([train[train_labels == c].mean(0) for c in classes])
    nearest = ((val[:, None] - centroids) ** 2).sum(2).argmin(1)

    def expand(x: Floats) -> Floats:
        i, j = np.triu_indices(x.shape[1])
        return np.concatenate((np.ones((len(x), 1)), x, x[:, i] * x[:, j]), 1)

    weights, *_ = np.linalg.lstsq(expand(train), np.eye(len(classes))[train_labels], rcond=None)
    linear = (expand(val) @ weights).argmax(1)
    return float(max((nearest == val_labels).mean(), (linear == val_labels).mean()))


def test_colour_does_not_tell_the_classes_apart_but_shape_does() -> None:
    train, train_labels = drawn(25, 0)
    val, val_labels = drawn(15, 25)

    def score(feature: Callable[[npt.NDArray[np.uint8]], Floats]) -> float:
        features = [np.stack([feature(image) for image in images]) for images in (train, val)]
        return accuracy(features[0], train_labels, features[1], val_labels)

    assert score(colour) <= 0.2  # chance is 0.1, with a standard deviation of 0.025 on 150 pictures
    assert score(directions) >= 0.3


@pytest.mark.parametrize("name", PATTERNS)
def test_ink_covers_the_same_share_whatever_the_pattern(name: str) -> None:
    shares = [pattern_coverage(name, np.random.default_rng(i), 120, 90).mean() for i in range(20)]
    assert np.mean(shares) == pytest.approx(0.475, abs=0.05)  # drawn from 0.35 to 0.6
    assert min(shares) > 0.3
    assert max(shares) < 0.65


def test_the_command_says_what_it_wrote(run: Run, tmp_path: Path) -> None:
    done = run("tools/make_sample_images.py", tmp_path / "new" / "dst", "--train", 1, "--val", 1, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "20 pictures (1 train and 1 val of each of 10 classes)" in done.stdout
    assert len(hashes(tmp_path / "new" / "dst")) == 20


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("make_sample_images: error: DST must be an empty or a new folder, was ")
    assert error.count("\n") == 1
    assert main([str(tmp_path / "mine.txt")]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [["--train", "0"], ["--val", "x"], ["--seed", "-1"], ["--workers", "0"], ["--size"]])
def test_wrong_calls_end_with_2(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "dst"), *wrong])
    assert end.value.code == 2
    assert "make_sample_images: error: " in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()
