"""Small photograph-like pictures for the tests: every kind of JPEG that ImageNet has, in awkward sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.crop_jpeg import Excerpt, describe, read_layout, splice, whole_picture
from pipeline.pictures import Pictures

# width, height, PIL mode, chroma subsampling (0: 4:4:4, 1: 4:2:2, 2: 4:2:0), progressive
KINDS = (
    (240, 180, "RGB", 0, False),
    (181, 243, "RGB", 2, False),
    (160, 160, "L", 0, False),
    (333, 97, "RGB", 1, False),
    (75, 211, "RGB", 0, False),
    (200, 150, "RGB", 2, True),
    (31, 29, "RGB", 2, False),
)


def photo(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth shapes with some grain, so that resizing and chroma subsampling matter."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = np.asarray(coarse).astype(np.int64) + rng.integers(-24, 25, (height, width, 1))
    return Image.fromarray(fine.clip(0, 255).astype(np.uint8)).convert(mode)


def write_photos(root: Path, *, classes: int = 3, train: int = 14, val: int = 7) -> Path:
    """An ImageNet folder; class k's pictures are numbered through all kinds."""
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                width, height, mode, subsampling, progressive = KINDS[number % len(KINDS)]
                seed = 1000 * label + number + (500 if split == "val" else 0)
                photo(seed, width, height, mode).save(
                    folder / f"{split}_{label}_{number}.JPEG",
                    "JPEG",
                    quality=90,
                    subsampling=subsampling,
                    progressive=progressive,
                )
    return root


class PicturesInMemory(Pictures):
    """Files as a source would hand them to a backend; of crop-addressed ones only the tiles of the region."""

    def __init__(self, files: list[bytes], sizes: Sequence[tuple[int, int]]):
        widths, heights = np.array(sizes, np.int64).reshape(len(files), 2).T
        super().__init__(np.arange(len(files)), widths=widths, heights=heights, labels=np.zeros(len(files), np.int64))
        self.files = files

    def excerpt(self, row: int, region: Sequence[int]) -> Excerpt:
        length, crc = describe(self.files[row])
        if not length:
            return self.whole(row)
        layout = read_layout(self.files[row][:length], crc)
        tiles = layout.tiles(*region)
        begin, end = layout.span(tiles)
        return splice(layout, tiles, bytearray(self.files[row][begin:end]))

    def whole(self, row: int) -> Excerpt:
        self.read_whole.add(row)
        return whole_picture(self.files[row], int(self.widths[row]), int(self.heights[row]))
