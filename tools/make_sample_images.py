#!/usr/bin/env python3
"""Make a small, photograph-like data set in ImageNet layout: something to shard, train and profile with.

``DST/train/<class>/<name>.JPEG`` and ``DST/val/<class>/<name>.JPEG``. Sizes, chroma sampling, share of grey and bits
per pixel spread as in ImageNet (mean 468 x 401 pixels and 110 KB; 76 % 4:4:4, 20 % 4:2:0, 2 % grey; all baseline), so
that what a loader does with them is what it will do with the real ones.

Ten classes, each a pattern printed on an uneven surface in an uneven light: a network has to learn their shapes.
Colours, contrast, scale, rotation, position and the share of the picture that is ink come from one distribution for
all classes, so that mean and spread of colour say nothing.

The same seed gives the same bytes (with the same numpy and Pillow), whatever the number of workers.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.floating]  # [H, W]
Rng = np.random.Generator

SPLITS = ("train", "val")
GRID = 256  # long side of the grid on which smooth fields are computed before they are stretched over the picture

# --- the ten classes ----------------------------------------------------------------------------------------
# A pattern takes plane coordinates in units of its own period and returns a height; what stands above a level is ink.
# The level is chosen afterwards, for a given share of ink: heights need only be right up to an increasing function.


def _wave(x: Field) -> Field:
    """Triangle wave of period 1: 0.25 at x = 0, -0.25 at x = 0.5."""
    return np.abs(_cell(x)) - 0.25


def _cell(x: Field) -> Field:
    """Offset from the middle of the unit cell that holds ``x``: -0.5 to 0.5."""
    return x - np.floor(x) - 0.5


def stripes(u: Field, _v: Field, _rng: Rng) -> Field:
    """Straight bands."""
    return _wave(u)


def zigzags(u: Field, v: Field, _rng: Rng) -> Field:
    """Bands that turn."""
    return _wave(u + 1.5 * _wave(v / 1.5))


def checks(u: Field, v: Field, _rng: Rng) -> Field:
    """A chessboard."""
    a, b = _wave(u / 2), _wave(v / 2)
    return np.sign(a * b) * np.minimum(np.abs(a), np.abs(b))


def dots(u: Field, v: Field, _rng: Rng) -> Field:
    """Discs, every other column half a step down."""
    return -np.hypot(_cell(u), _cell(v + 0.5 * np.floor(u)))


def rings(u: Field, v: Field, _rng: Rng) -> Field:
    """Discs with a hole."""
    return -np.abs(np.hypot(_cell(u / 1.5), _cell(v / 1.5)) - 0.31)


def crosses(u: Field, v: Field, _rng: Rng) -> Field:
    """Plus signs, every other column half a step down."""
    a, b = np.abs(_cell(u / 1.4)), np.abs(_cell(v / 1.4 + 0.5 * np.floor(u / 1.4)))
    return -np.maximum(np.minimum(a, b), np.maximum(a, b) - 0.27)


def bricks(u: Field, v: Field, _rng: Rng) -> Field:
    """Oblongs in running bond."""
    return np.minimum(0.5 - np.abs(_cell(v)), 2 * (0.5 - np.abs(_cell(u / 2 + 0.5 * np.floor(v)))))


def scales(u: Field, v: Field, _rng: Rng) -> Field:
    """Rows of discs, each row half hidden by the next one up."""
    height, hidden = np.full_like(u, -1), np.zeros(u.shape, bool)
    for row in range(3):  # discs of radius 0.75 in rows 0.5 apart reach two rows down
        top = np.floor(2 * v) - row
        r = np.hypot(_cell(u + 0.5 * top), v - top / 2)
        height = np.where(hidden, height, r)
        hidden |= r < 0.75
    return height


def pebbles(u: Field, v: Field, rng: Rng) -> Field:
    """Scattered stones: how much nearer the nearest of random points is than the second (Worley's F2 - F1)."""
    jitter = rng.random((2, 64, 64), np.float32) * 0.8 + 0.1
    iu, iv = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    cu, cv = _cell(u) + 0.5, _cell(v) + 0.5
    first, second = np.full_like(u, 9), np.full_like(u, 9)
    for du in (-1, 0, 1):
        for dv in (-1, 0, 1):
            at = (iu + du) % 64, (iv + dv) % 64
            d = np.hypot(jitter[0][at] + du - cu, jitter[1][at] + dv - cv)
            second = np.minimum(second, np.maximum(first, d))
            first = np.minimum(first, d)
    return second - first


def blotches(u: Field, v: Field, rng: Rng) -> Field:
    """Camouflage: a sum of waves of about one length in all directions."""
    angles = rng.uniform(0, 2) + np.arange(9) / 9 * np.pi
    waves = 2 * np.pi / rng.uniform(1.25, 2.2, 9)
    ku, kv, phases = np.array((np.cos(angles) * waves, np.sin(angles) * waves, rng.uniform(0, 7, 9)), np.float32)
    total = np.zeros_like(u)
    for i in range(9):
        total += np.cos(ku[i] * u + kv[i] * v + phases[i])
    return total / 6


PATTERNS: dict[str, Callable[[Field, Field, Rng], Field]] = {
    f.__name__: f for f in (blotches, bricks, checks, crosses, dots, pebbles, rings, scales, stripes, zigzags)
}

# --- a picture ----------------------------------------------------------------------------------------------


@functools.cache
def _photo_filter(side: int) -> Field:
    """Amplitude of a photograph's spectrum, about 1 / f^1.25, without its mean."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    f[0, 0] = np.inf
    return np.asarray(f**-1.25, np.float32)


def photo_noise(rng: Rng, side: int) -> Field:
    """``[side, side]``, mean 0 and standard deviation 1, with the spectrum of a photograph."""
    real, imaginary = rng.standard_normal((2, side, side // 2 + 1), np.float32)
    noise = np.fft.irfft2((real + 1j * imaginary) * _photo_filter(side), s=(side, side))
    return np.asarray(noise / noise.std(), np.float32)


def stretch(field: Field, width: int, height: int) -> Field:
    """``[h, w]`` -> ``[height, width]``."""
    image = Image.fromarray(field.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)


def pattern_coverage(name: str, rng: Rng, width: int, height: int) -> Field:
    """``[height, width]``: 1 where there is ink and 0 where there is none, with a soft edge."""
    period = min(width, height) * np.exp(rng.uniform(np.log(0.12), np.log(0.24)))  # pixels
    angle, tilt_x, tilt_y, bend = rng.normal(0, 0.3), *rng.uniform(-0.25, 0.25, 2), rng.uniform(0, 0.15)
    share, phases = rng.uniform(0.35, 0.6), rng.uniform(0, 64, 3)

    step = max(1, max(width, height) / GRID)  # pixels a grid point
    w, h = max(1, round(width / step)), max(1, round(height / step))
    x = (np.arange(w, dtype=np.float32)[None, :] + 0.5) / w - 0.5
    y = (np.arange(h, dtype=np.float32)[:, None] + 0.5) / h - 0.5
    depth = (1 + tilt_x * x + tilt_y * y) * period  # the surface leans away
    x, y = x * width / depth, y * height / depth
    u = np.cos(angle) * x + np.sin(angle) * y + phases[0]
    v = np.cos(angle) * y - np.sin(angle) * x + phases[1]
    u += bend * np.sin(1.7 * v + phases[2])
    relief = PATTERNS[name](u.astype(np.float32), v.astype(np.float32), rng)
    level = np.quantile(relief[::2, ::2], 1 - share)
    coverage_HW: Field = np.clip(0.5 + stretch(relief - level, width, height) * period, 0, 1)
    return coverage_HW


def picture(name: str, rng: Rng, width: int, height: int) -> npt.NDArray[np.uint8]:
    """One picture of class ``name``: uint8 YCbCr ``[height, width, 3]``.

    Everything but the pattern's shape is drawn first and from one distribution, so that it cannot depend on the class.
    """
    light, lean_x, lean_y = rng.uniform(70, 170), *rng.uniform(-0.35, 0.35, 2)
    contrast = rng.uniform(80, 140) * rng.choice((-1, 1))
    wall, ground, ink = rng.normal(0, 16, (3, 2))  # (Cb, Cr) of what is behind, of the surface and of what is on it
    grain, rough, bare = rng.lognormal(np.log(2.2), 0.7), rng.uniform(5, 16), rng.uniform(0, 0.2)
    noise, hue, place = photo_noise(rng, GRID), photo_noise(rng, GRID // 4), photo_noise(rng, GRID // 4)
    speckle = rng.standard_normal((height, width), np.float32)

    ink_HW = pattern_coverage(name, rng, width, height)
    level = np.quantile(place, bare)  # the surface fills all but this share of the picture
    surface_HW = np.clip(stretch((place - np.float32(level)) * 4, width, height), 0, 1)
    noise_HW, hue_HW = stretch(noise, width, height), stretch(hue, width, height)

    planes = np.empty((height, width, 3), np.float32)
    planes[..., 0] = light + contrast * (ink_HW - 0.5) * surface_HW + noise_HW * (45 + (rough - 45) * surface_HW)
    planes[..., 0] *= 1 + np.linspace(-lean_x, lean_x, width) + np.linspace(-lean_y, lean_y, height)[:, None]
    planes[..., 0] += grain * speckle
    for c in (0, 1):
        over_HW = ground[c] + (ink[c] - ground[c]) * ink_HW
        planes[..., 1 + c] = 128 + wall[c] + (over_HW - wall[c]) * surface_HW + 6 * hue_HW * (1 - 2 * c)
        planes[..., 1 + c] += 0.4 * grain * np.roll(speckle, 7 + 6 * c, axis=0)
    pixels: npt.NDArray[np.uint8] = np.clip(planes + 0.5, 0, 255).astype(np.uint8)
    return pixels


# --- a JPEG file --------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What a file looks like from outside: pixels, chroma sampling (or grey) and the JPEG quality setting."""

    width: int
    height: int
    sampling: str
    quality: int


def draw_shape(rng: Rng) -> Shape:
    """As in ImageNet: seven in ten have a long side of 500, one in twenty is above 750 and one below 250."""
    long, ratio = 500.0, rng.choice((0.75, 0.667, rng.uniform(0.55, 1)), p=(0.42, 0.3, 0.28))
    kind = rng.random()
    if kind < 0.15:
        long = rng.uniform(140, 499)
    elif kind < 0.29:
        long = 501 * np.exp(rng.exponential(0.27))
    long = min(long, 1400)
    width, height = round(long), round(long * ratio)
    if rng.random() < 0.25:
        width, height = height, width
    sampling = str(rng.choice(("4:4:4", "4:2:0", "4:2:2", "grey"), p=(0.76, 0.2, 0.02, 0.02)))
    return Shape(width, height, sampling, int(rng.choice((96, 90, 75, 60), p=(0.72, 0.12, 0.13, 0.03))))


def write_picture(path: Path, key: Sequence[int]) -> Shape:
    """Draw and write one JPEG; ``key`` alone decides its bytes."""
    rng = np.random.default_rng(key)
    shape = draw_shape(rng)
    planes = picture(path.parent.name, rng, shape.width, shape.height)
    if shape.sampling == "grey":
        Image.fromarray(planes[..., 0]).save(path, "JPEG", quality=shape.quality)
    else:
        bands = [Image.fromarray(np.ascontiguousarray(planes[..., c])) for c in range(3)]
        image = Image.merge("YCbCr", bands)  # what JPEG stores: no detour over RGB
        image.save(path, "JPEG", quality=shape.quality, subsampling=shape.sampling)
    return shape


class Written(NamedTuple):
    """A file on disk: pixels and bytes."""

    width: int
    height: int
    bytes: int


def _write(task: tuple[Path, tuple[int, ...]]) -> Written:
    path, key = task
    shape = write_picture(path, key)
    return Written(shape.width, shape.height, path.stat().st_size)


def make_sample_images(dst: Path, train: int, val: int, seed: int, workers: int) -> list[Written]:
    """Write ``train`` and ``val`` pictures a class below ``dst``, empty or absent before: all of them or none."""
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise FileExistsError(f"DST must be an empty or a new folder, was {dst}; remove it or name another")
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dst.name}-", dir=dst.parent) as scratch:
        root = Path(scratch, "data")
        tasks = []
        for s, (split, count) in enumerate(zip(SPLITS, (train, val), strict=True)):
            for c, name in enumerate(PATTERNS):
                folder = root / split / name
                folder.mkdir(parents=True)
                tasks += [(folder / f"{name}_{i:05d}.JPEG", (seed, s, c, i)) for i in range(count)]
        written = []
        shown = time.monotonic()
        # spawn: a fork of a process that has threads (a caller with torch in it) may hang
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for one in pool.imap_unordered(_write, tasks, chunksize=4):
                written.append(one)
                if time.monotonic() - shown > (0.1 if sys.stderr.isatty() else 5):
                    end = "\r" if sys.stderr.isatty() else "\n"
                    print(f"{len(written)} of {len(tasks)} pictures", end=end, file=sys.stderr, flush=True)
                    shown = time.monotonic()
        root.rename(dst)
    return written


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, was {text}")
        return int(text)

    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="make_sample_images",
        description="Make a small, photograph-like data set in ImageNet layout, ten classes to tell apart by shape.",
        epilog="example: python tools/make_sample_images.py /tmp/samples --train 100 --val 20",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make; must be empty or absent")
    parser.add_argument("--train", metavar="N", type=_at_least(1), default=100, help="training pictures a class (100)")
    parser.add_argument("--val", metavar="N", type=_at_least(1), default=20, help="validation pictures a class (20)")
    parser.add_argument("--seed", metavar="S", type=_at_least(0), default=0, help="same seed, same bytes (0)")
    parser.add_argument("--workers", metavar="N", type=_at_least(1), default=cores, help="processes (one a core)")
    args = parser.parse_args(argv)
    try:
        written = make_sample_images(args.dst, args.train, args.val, args.seed, args.workers)
    except OSError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    n = len(written)
    size = sum(one.bytes for one in written)
    width, height = sum(one.width for one in written) / n, sum(one.height for one in written) / n
    print(
        f"{args.dst}: {n} pictures ({args.train} train and {args.val} val of each of {len(PATTERNS)} classes), "
        f"{size / 1e6:.1f} MB; mean {width:.0f} x {height:.0f} pixels, {size / n / 1e3:.0f} KB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
