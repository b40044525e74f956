"""Claims: shards hold every pixel, for three readers; a crop that is cut out before it is decoded has the pixels of the
whole; both backends deliver the same.

python benchmarks/exactness.py SRC DST     (an ImageNet folder, and the crop-addressed shards made from it)
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import PipelineConfig
from pipeline.augment import random_resized_crops
from pipeline.backends import BACKENDS
from pipeline.manifest import read_manifest
from pipeline.shards import Shards, open_shards
from pipeline.worker import make_crops

Pixels = npt.NDArray[np.uint8]


def decoded(data: bytes) -> Pixels:
    """The reference: plain Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def read_by_headrace(source: Shards) -> Iterator[tuple[str, bytes]]:
    """Key and bytes through our random access."""
    for index in range(len(source)):
        yield source.name(index).rpartition(": ")[2].removesuffix(".jpg"), source.read(index)


def read_by_webdataset(tars: list[str]) -> Iterator[tuple[str, bytes]]:
    """Key and bytes through webdataset's own reader."""
    import webdataset

    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        yield sample["__key__"], sample["jpg"]


def read_by_dali(tars: list[str], keys: list[str]) -> Iterator[tuple[str, Pixels]]:
    """Key and pixels: DALI's own reader with our .idx, and its own decoder."""
    import nvidia.dali

    dali: Any = nvidia.dali
    pipe = dali.Pipeline(batch_size=len(keys), num_threads=2, device_id=None, prefetch_queue_depth=1)
    with pipe:
        jpegs, _ = dali.fn.readers.webdataset(
            paths=tars, index_paths=[tar.replace(".tar", ".idx") for tar in tars], ext=["jpg", "cls"]
        )
        pipe.set_outputs(dali.fn.decoders.image(jpegs, adjust_orientation=False))
    pipe.build()
    (pictures,) = pipe.run()
    for i, key in enumerate(keys):
        yield key, pictures.at(i)


def count_wrong_crops(source: Shards, wanted: dict[str, Pixels], crops_each: int) -> tuple[int, int, float]:
    """Crops decoded from their tiles alone against the whole picture's: how many, how many differ, and what share of
    the bytes was read."""
    indices = np.arange(len(source))
    pictures = source.open(indices)
    keys = [unquote(source.name(i).rpartition(": ")[2].removesuffix(".jpg")) for i in indices.tolist()]
    wrong = read = total = 0
    for epoch in range(crops_each):
        regions = random_resized_crops(indices, pictures.widths, pictures.heights, seed=0, epoch=epoch).region
        for row, (x, y, w, h) in enumerate(regions.tolist()):
            excerpt = pictures.excerpt(row, (x, y, w, h))
            small = decoded(bytes(excerpt.data))
            x0, y0 = x - excerpt.x, y - excerpt.y
            wrong += not np.array_equal(small[y0 : y0 + h, x0 : x0 + w], wanted[keys[row]][y : y + h, x : x + w])
            read += len(excerpt.data)
            total += int(source.records["bytes"][row])
    assert not pictures.damaged
    assert not pictures.read_whole
    return crops_each * len(source), wrong, read / total


def backends_agree(source: Shards, config: PipelineConfig, epoch: int) -> bool:
    """Whether Pillow's and DALI's rows are the same, bit for bit."""
    indices = np.arange(len(source))
    filled = []
    for name in ("pillow", "dali"):
        pictures = source.open(indices)
        crops = make_crops(config, epoch, indices, pictures.widths, pictures.heights)
        out = np.empty((len(indices), config.image_size, config.image_size, 3), np.uint8)
        backend = BACKENDS[name]()(image_size=config.image_size, max_pictures=len(indices))
        backend.fill(pictures, crops, out)
        backend.close()
        filled.append(out)
    return np.array_equal(*filled)


def main(src: Path, dst: Path) -> None:
    """Print the figures."""
    for split in read_manifest(dst).splits:
        # A key is the name with what is special in it written %XX.
        want = {f"{path.parent.name}/{path.stem}": decoded(path.read_bytes()) for path in (src / split).glob("*/*")}
        source = open_shards(dst, split)
        tars = sorted(str(path) for path in dst.glob(f"{split}-*.tar"))
        ours = list(read_by_headrace(source))
        readers: dict[str, list[tuple[str, Pixels]]] = {
            "headrace": [(key, decoded(data)) for key, data in ours],
            "webdataset": [(key, decoded(data)) for key, data in read_by_webdataset(tars)],
            "DALI reader": list(read_by_dali(tars, [key for key, _ in ours])),
        }
        for name, got in readers.items():
            same = sum(np.array_equal(pixels, want[unquote(key)]) for key, pixels in got)
            print(f"{split:6s} {name:12s} {len(got)} read, {same} of {len(want)} pictures equal bit for bit")

        crops, wrong, share = count_wrong_crops(source, {unquote(key): pixels for key, pixels in want.items()}, 20)
        print(f"{split:6s} {crops} random crops from their tiles: {wrong} differ; {share:.3f} of the bytes are decoded")
        same = all(backends_agree(source, PipelineConfig(shards=dst, split=split), epoch) for epoch in range(2))
        print(f"{split:6s} DALI and Pillow at 299 px: {'every value equal' if same else 'NOT EQUAL'}")
        before = sum(path.stat().st_size for path in (src / split).glob("*/*"))
        print(f"{split:6s} bytes against the original's: {source.records['bytes'].sum() / before:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
