"""Claims: shards hold the pictures bit for bit, for three readers; both backends cut the same crops.

python benchmarks/exactness.py SRC DST     (an ImageNet folder, and the verbatim shards made from it)
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
import PIL
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import PipelineConfig
from pipeline.augment import Crops
from pipeline.backends import BACKENDS
from pipeline.shards import Shards, open_shards, read_manifest
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


def crops_of(source: Shards, config: PipelineConfig, epoch: int) -> tuple[list[bytes], Crops]:
    """Every picture of a split with the crop of one epoch."""
    indices = np.arange(len(source))
    pictures = [source.read(i) for i in indices.tolist()]
    return pictures, make_crops(config, epoch, indices, *source.sizes(indices, pictures))


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

    print(f"crops at 299 px against Pillow {PIL.__version__}:")
    for split in read_manifest(dst).splits:
        config = PipelineConfig(shards=dst, split=split)
        source = open_shards(dst, split)
        counts = np.zeros(256, np.int64)
        for epoch in range(3 if config.training else 1):
            pictures, crops = crops_of(source, config, epoch)
            filled = {}
            for name in ("pillow", "dali"):
                filled[name] = np.empty((len(pictures), 299, 299, 3), np.uint8)
                backend = BACKENDS[name]()(image_size=299, max_pictures=len(pictures), threads=2)
                backend.fill(pictures, crops, filled[name])
                backend.close()
            difference = np.abs(filled["dali"].astype(np.int16) - filled["pillow"])
            counts += np.bincount(difference.ravel(), minlength=256)
        share = counts.cumsum() / counts.sum()
        mean = (counts * np.arange(256)).sum() / counts.sum()
        print(
            f"{split:6s} DALI - Pillow  mean {mean:.3f}, p99.9 {np.searchsorted(share, 0.999)}, "
            f"max {np.flatnonzero(counts)[-1]}, above 2: {100 * counts[3:].sum() / counts.sum():.4f} % of the values"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
