"""A folder of shards of which one file is damaged: its manifest, an index, or a tar."""

from __future__ import annotations

import copy
import io
import json
import random
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.augment import Crops
from pipeline.backends.pillow import PillowBackend
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.shards import RECORD, open_shards
from pipeline.writer import WriterConfig, write_shards
from tests.fuzz.engine import Target
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.tars import mutate_tar
from tests.jpegs import jpeg

_INDEX, _TAR = "train.index.npy", "train-000000.tar"
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, 10**30, 1.5, 1e308, float("inf"), float("nan")),
    *("", "a", "../x", "/etc/passwd", "train-000000.tar", "1", "\0", "\ud800", "x" * 5000, "a/b", "..", "a\nb"),
    *([], {}, [[]], [1], ["a"], {"a": 1}, {"name": "x"}),
)
_TEXTS = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"1" * 5000,
    b"1e999",
    b"NaN",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"[1" * 3000,
)


@cache
def good() -> dict[str, bytes]:
    """Every file of a small folder of shards."""
    with tempfile.TemporaryDirectory() as name:
        source, destination = Path(name) / "source", Path(name) / "destination"
        for number, size in enumerate(((40, 24), (17, 33), (16, 16), (64, 20), (9, 8))):
            picture = source / "train" / f"class{number % 2}" / f"{number}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(jpeg(number, *size, quality=50))
        write_shards(WriterConfig(source=source, destination=destination, shard_mb=0.003, workers=1))
        return {path.name: path.read_bytes() for path in destination.iterdir() if path.suffix != ".idx"}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in _places(child, (*path, key)))]


def _mutate_manifest(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One to three values replaced, removed or doubled; now and then the text changed."""
    content = json.loads(seeds[0])
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *way, key = rng.choice(_places(content)[1:] or [("format",)])
        parent = content
        for step in way:
            parent = parent[step]
        match rng.randrange(5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case 2 if isinstance(parent, dict):
                parent[rng.choice(("", "../x", "val", "a/b", "\0", "\ud800", "classes"))] = parent.pop(key)
            case 3 if isinstance(parent[key], int):
                parent[key] += rng.choice((-1, 1, 512, -parent[key] - 1, 2**40))
            case _:
                parent[key] = copy.deepcopy(rng.choice(_VALUES))
        if not isinstance(content, dict) or not content:
            break
    text = json.dumps(content).encode()
    if rng.random() < 0.1:
        text = mutate_bytes(rng, text, [])
    if rng.random() < 0.02:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(_TEXTS) + text[at:]
    return rng.choice(_TEXTS) if rng.random() < 0.01 else text


def _npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def _index_seeds() -> list[bytes]:
    records = np.load(io.BytesIO(good()[_INDEX]))
    zipped = io.BytesIO()
    np.savez(zipped, records)
    others = (records[:0], records[:1], np.concatenate([records, records]), records["label"], records.reshape(1, -1))
    more = [_npy(array) for array in others]
    return [good()[_INDEX]] * 6 + [*more, zipped.getvalue(), _npy(np.array([{}, None]), pickled=True), b""]


def _mutate_index(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Fields of records set to what they may not be, or the bytes changed: the header is text, and is read as such."""
    data = rng.choice(seeds)
    if data != seeds[0] or rng.random() < 0.3:
        head = data[:128] if rng.random() < 0.7 else data
        return mutate_bytes(rng, head, seeds) + data[len(head) :]
    if rng.random() < 0.2:
        text = rng.choice((b"(5,)", b"<u4", b"False", b"'label'", b"'descr'"))
        other = rng.choice(
            (b"(-1,)", b"(9e9,)", b"(1<<40,)", b"(99999999999,)", b"|O", b"(5,5)", b"None", b"<f8", b"'a'", b"[]")
        )
        return data.replace(text, other, 1)
    records = np.load(io.BytesIO(data)).copy()
    for _ in range(rng.choice((1, 1, 2))):
        record, name = rng.randrange(len(records)), rng.choice(RECORD.names or ())
        most = 2 ** (8 * RECORD[name].itemsize) - 1
        near = (int(records[name][record]) + rng.choice((-1, 1, 512))) % (most + 1)
        records[name][record] = rng.choice((0, 1, near, most, most // 2, rng.randint(0, most)))
    return _npy(records)


def _check(name: str, data: bytes, rng: random.Random, folder: Path) -> str:
    """Open the folder with one file changed, and read every sample of it."""
    for other, content in good().items():
        (folder / other).write_bytes(data if other == name else content)
    manifest = read_manifest(folder)
    for infos in manifest.splits.values():
        for info in infos:
            assert Path(info.name).name == info.name
            assert min(info.samples, info.bytes) >= 0
    split = "train" if "train" in manifest.splits else next(iter(manifest.splits), "train")
    shards = open_shards(folder, split)
    backend = PillowBackend(image_size=8, max_pictures=1)
    try:
        shards.labels.tolist()
        for index in range(len(shards)):
            shards.name(index)
            pictures = shards.open(np.array([index]))
            size = int(pictures.widths[0]), int(pictures.heights[0])
            crops = Crops(region=np.array([[0, 0, *size]]), box=np.array([[0.0, 0.0, *size]]), flip=np.array([False]))
            backend.fill(pictures, crops, np.zeros((1, 8, 8, 3), np.uint8))
    finally:
        shards.close()
    return "read"


def _mutate_shard(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A tar of the size that the manifest says, or of another."""
    data = mutate_tar(rng, seeds)
    return data[: len(seeds[0])].ljust(len(seeds[0]), b"\0") if rng.random() < 0.8 else data


TARGETS = (
    Target(
        name="manifest",
        share=10,
        seeds=lambda: [good()[MANIFEST]],
        mutate=_mutate_manifest,
        check=partial(_check, MANIFEST),
    ),
    Target(name="index", share=10, seeds=_index_seeds, mutate=_mutate_index, check=partial(_check, _INDEX)),
    Target(name="shard", share=5, seeds=lambda: [good()[_TAR]], mutate=_mutate_shard, check=partial(_check, _TAR)),
)
