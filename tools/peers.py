"""Every loader that tools/bench_loaders.py measures, ours among them, each run in a process of its own.

``python tools/peers.py --list`` prints what there is. ``python tools/peers.py NAME FD`` builds one from the Inputs on
its standard input, then takes a turn for each line it reads there, and answers on FD, a line of JSON each time.

Peers are written as their own documentation advises for speed: random-resized crops (area 0.08 to 1, aspect 3/4 to
4/3), bilinear, antialiased, half of them mirrored, uint8 where the loader can. The beginning of an epoch is not what
is measured (an epoch of ImageNet takes minutes), so samplers are endless where the peer has such a thing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TextIO, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

import numpy as np

from pipeline.folder import folder_classes, folder_splits, open_folder
from pipeline.host import cores
from pipeline.pool import ENVIRONMENT

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_ENDLESS = 1 << 40  # samples: an epoch that nobody sees the end of
_LOOP_BLOCK = 8  # pictures that a bare loop counts at once: small against a turn, large against the counting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every loader is built from."""

    data: str  # an ImageNet folder; its train split is used
    shards: str | None  # a folder that tools/make_shards.py wrote; None: ours read ``data``
    scratch: str  # an empty folder, removed afterwards, for peers with a format of their own
    image_size: int  # pixels, square
    batch_size: int
    cores: int  # workers, threads or loops: one for each
    seed: int

    @property
    def train(self) -> str:
        """The folder of class folders."""
        return str(folder_splits(Path(self.data), ("train",))["train"])


Batches = Iterator[int]  # builds the loader at the first next(); then one number of pictures for each batch, for ever


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """One loader and how it is to be called in a table."""

    batches: Callable[[Inputs], Batches]
    packages: tuple[str, ...]  # distributions whose versions matter
    kind: str = "loader"  # or "loop": bare decode loops, one process for each core; nobody gets the pictures
    track: str = "original"  # of the pictures' bytes: original, lossless, recoded
    reads: str = "folder"  # "any": the folder or shards, whose track it then has


# The original, and torch's own


def torchvision_original(inputs: Inputs) -> Batches:
    """The recipe's own loader: float32 NCHW, normalised on the host."""
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(inputs.image_size, SCALE, RATIO),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    return _torch_batches(inputs, datasets.ImageFolder(inputs.train, transform))


def torchvision_v2(inputs: Inputs) -> Batches:
    """torchvision's own performance advice: tensors, not PIL; uint8; transforms.v2."""
    from torchvision import datasets

    return _torch_batches(inputs, datasets.ImageFolder(inputs.train, _v2_transform(inputs), loader=_decode_tensor))


def torchvision_v2_loop(inputs: Inputs) -> Batches:
    """The same without DataLoader."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(inputs.seed)
    transform = _v2_transform(inputs)
    for path in _photographs(inputs):
        transform(_decode_tensor(path))
        yield 1


def _v2_transform(inputs: Inputs) -> Any:
    from torchvision.transforms import v2

    return v2.Compose(
        [v2.RandomResizedCrop(inputs.image_size, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()]
    )


def _decode_tensor(path: str) -> Any:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)


def _torch_batches(inputs: Inputs, dataset: Any) -> Batches:
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    torch.manual_seed(inputs.seed)
    loader: Any = DataLoader(
        dataset,
        batch_size=inputs.batch_size,
        sampler=RandomSampler(dataset, num_samples=_ENDLESS),  # one permutation after the other
        num_workers=inputs.cores,
        pin_memory=False,
    )
    for images, _ in loader:
        yield len(images)


def timm(inputs: Inputs) -> Batches:
    """timm's training loader up to where its prefetcher would send uint8 batches to a GPU and normalise them there."""
    import torch
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=inputs.data, split="train", is_training=True, batch_size=inputs.batch_size),
        input_size=(3, inputs.image_size, inputs.image_size),
        batch_size=inputs.batch_size,
        is_training=True,
        scale=SCALE,
        ratio=RATIO,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=inputs.cores,
        use_multi_epochs_loader=True,
        device=torch.device("cpu"),
    ).loader
    while True:
        for images, _ in loader:
            yield len(images)


# Other formats and other decoders


def webdataset(inputs: Inputs) -> Batches:
    """WebDataset as documented for training: resampled shards, a shuffle buffer, batches made in the workers."""
    import torch
    import webdataset as wds
    from torchvision import transforms

    count = len(_paths(inputs))
    shards = 8 * inputs.cores
    os.makedirs(inputs.scratch, exist_ok=True)
    with wds.ShardWriter(f"{inputs.scratch}/%06d.tar", maxcount=-(-count // shards), verbose=0) as writer:
        for number, path in zip(range(count), _photographs(inputs), strict=False):
            writer.write({"__key__": f"{number:09d}", "jpg": Path(path).read_bytes(), "cls": 0})
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(inputs.image_size, SCALE, RATIO),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    torch.manual_seed(inputs.seed)
    dataset = (
        wds.WebDataset(
            sorted(str(tar) for tar in Path(inputs.scratch).glob("*.tar")), resampled=True, shardshuffle=False
        )
        .shuffle(1000, initial=1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform, int)
        .batched(inputs.batch_size)
    )
    for images, _ in wds.WebLoader(dataset, batch_size=None, num_workers=inputs.cores):
        yield len(images)


def dali_cpu(inputs: Inputs) -> Batches:
    """The operators of DALI's own ImageNet example on the CPU, with its resize filter; uint8 NHWC.

    Batches are taken as DALI hands them out, without its iterators' copy into torch tensors.
    """
    import nvidia.dali

    os.environ.setdefault("DALI_DISABLE_NVML", "1")  # there may be a driver, but this pipeline has no use for it
    dali: Any = nvidia.dali  # its type stubs know neither its operators nor its constants
    fn, types = dali.fn, dali.types
    # Prefetching and the executor stay at DALI's defaults, which is what it advises.
    pipe = dali.Pipeline(batch_size=inputs.batch_size, num_threads=inputs.cores, device_id=None, seed=inputs.seed)
    with pipe:
        jpegs, _ = fn.readers.file(file_root=inputs.train, random_shuffle=True)
        images = fn.decoders.image_random_crop(
            jpegs, device="cpu", output_type=types.RGB, random_area=SCALE, random_aspect_ratio=RATIO, num_attempts=10
        )
        images = fn.resize(
            images,
            resize_x=inputs.image_size,
            resize_y=inputs.image_size,
            interp_type=types.INTERP_TRIANGULAR,  # the example's: bilinear where it enlarges, antialiased where not
        )
        pipe.set_outputs(fn.flip(images, horizontal=fn.random.coin_flip()))
    pipe.build()
    while True:
        (pictures,) = pipe.run()
        yield len(pictures)


def ffcv(inputs: Inputs, *, max_resolution: int | None) -> Batches:
    """FFCV with the settings of its ImageNet example: JPEGs re-encoded at quality 90, everything in memory.

    Its only resize is OpenCV's area filter. An epoch's beginning costs it more than a hundred pictures, so the
    photographs are written several times where they are few.
    """
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    os.makedirs(inputs.scratch, exist_ok=True)
    beton = f"{inputs.scratch}/train.beton"
    dataset: Any = ImageFolder(inputs.train)
    image = RGBImageField(write_mode="jpg", max_resolution=max_resolution, jpeg_quality=90)
    writer = DatasetWriter(beton, {"image": image, "label": IntField()}, num_workers=inputs.cores)
    repeats = math.ceil(max(4096, 8 * inputs.batch_size) / len(dataset))
    writer.from_indexed_dataset(dataset, indices=np.tile(np.arange(len(dataset)), repeats), shuffle_indices=True)
    size = (inputs.image_size, inputs.image_size)
    loader = Loader(
        beton,
        batch_size=inputs.batch_size,
        num_workers=inputs.cores,
        order=OrderOption.QUASI_RANDOM,
        os_cache=True,
        drop_last=True,
        seed=inputs.seed,
        pipelines={
            "image": [RandomResizedCropRGBImageDecoder(size, SCALE, RATIO), RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    while True:
        for images, _ in loader:
            yield len(images)


# Bare loops


def pillow_loop(inputs: Inputs) -> Batches:
    """Pillow, or pillow-simd where it is installed."""
    from PIL import Image

    rng = random.Random(inputs.seed)  # noqa: S311 - which part of a picture is cut out
    for path in _photographs(inputs):
        with Image.open(path) as picture:
            _resize(inputs, picture.convert("RGB"), rng)
        yield 1


def simplejpeg_loop(inputs: Inputs) -> Batches:
    """libjpeg-turbo through simplejpeg, then Pillow's resize."""
    import simplejpeg
    from PIL import Image

    rng = random.Random(inputs.seed)  # noqa: S311 - which part of a picture is cut out
    for path in _photographs(inputs):
        with open(path, "rb", buffering=0) as file:
            pixels = simplejpeg.decode_jpeg(file.read(), "RGB")
        _resize(inputs, Image.fromarray(pixels), rng)
        yield 1


def headrace_loop(inputs: Inputs) -> Batches:
    """What our decode processes do, without the loader around them: what it could deliver at best.

    It fills as much memory as the loader does, and no less: that alone costs some of the time.
    """
    from pipeline.backends import BACKENDS, choose_backend
    from pipeline.order import epoch_order
    from pipeline.ring import Ring
    from pipeline.source import open_source
    from pipeline.worker import Job, fill

    name = choose_backend("auto")
    config = _config(inputs, name)
    source = open_source(config)
    job = Job(config=config, backend=name, rows=_LOOP_BLOCK, source=source, cores=cores())
    ring = Ring(slots=config.slots, batch_size=inputs.batch_size, image_size=inputs.image_size)
    places = itertools.cycle(
        (slot, first) for slot in ring.slots for first in range(0, inputs.batch_size - _LOOP_BLOCK + 1, _LOOP_BLOCK)
    )
    backend = BACKENDS[name]()(image_size=inputs.image_size, max_pictures=_LOOP_BLOCK)
    epoch = 0
    while True:
        order = epoch_order(len(source), seed=inputs.seed, epoch=epoch, shuffle=True)
        for start in range(0, len(order), _LOOP_BLOCK):
            indices = order[start : start + _LOOP_BLOCK]
            slot, first = next(places)
            slot.wanted[first : first + len(indices)] = indices
            fill(job, backend, slot, epoch, first, first + len(indices))
            yield len(indices)
        epoch += 1


def _resize(inputs: Inputs, image: Any, rng: random.Random) -> None:
    """Crop and resize in one step, mirror, and take the pixels out."""
    from PIL import Image

    size = (inputs.image_size, inputs.image_size)
    image = image.resize(size, Image.Resampling.BILINEAR, box=_random_box(rng, *image.size))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    np.asarray(image)


def _random_box(rng: random.Random, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random part, distributed as pipeline/augment.py's, for one picture alone."""
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    return left, top, left + w, top + h


def _paths(inputs: Inputs) -> list[str]:
    train = Path(inputs.train)
    folder = open_folder(train, folder_classes({"train": train}))
    return [os.path.join(folder.root, folder.name(number)) for number in range(len(folder))]


def _photographs(inputs: Inputs) -> Iterator[str]:
    """The photographs' paths in random order, again and again."""
    paths = _paths(inputs)
    rng = random.Random(inputs.seed)  # noqa: S311 - an order of pictures
    while True:
        rng.shuffle(paths)
        yield from paths


class _LoopError(Exception):
    """Why a loop ended, in one line."""


def in_loops(
    loop: Callable[[Inputs], Batches], inputs: Inputs, *, environment: dict[str, str] | None = None
) -> Batches:
    """Run one process for each core, and count what they do."""
    os.environ |= environment or {}
    context = multiprocessing.get_context("spawn")
    connections: list[Connection] = []
    for number in range(inputs.cores):
        ours, theirs = context.Pipe(duplex=False)
        own = dataclasses.replace(inputs, seed=inputs.seed + number)
        context.Process(target=_count, args=(loop, own, theirs), daemon=True).start()
        theirs.close()
        connections.append(ours)
    while True:
        for ready in wait(connections):
            try:
                done = cast(Connection, ready).recv()
            except EOFError:
                raise _LoopError("a decode loop died") from None
            if isinstance(done, str):
                raise _LoopError(done)
            yield done


def _count(loop: Callable[[Inputs], Batches], inputs: Inputs, connection: Connection) -> None:
    done = 0
    try:
        for pictures in loop(inputs):
            done += pictures
            if done >= _LOOP_BLOCK:
                connection.send(done)
                done = 0
    except BrokenPipeError:
        return  # the process that counts is gone
    except Exception as error:  # noqa: BLE001 - it becomes the row's reason
        connection.send(_why(error))


# Ours


def headrace(inputs: Inputs, *, backend: str) -> Batches:
    """Our loader; batches are valid until the next is asked for."""
    from pipeline import build_loader

    with build_loader(_config(inputs, backend)) as loader:
        while True:
            for batch in loader:
                yield len(batch.labels)


def _config(inputs: Inputs, backend: str) -> Any:
    from pipeline import PipelineConfig

    return PipelineConfig(
        shards=inputs.shards,
        data=None if inputs.shards else inputs.data,
        batch_size=inputs.batch_size,
        image_size=inputs.image_size,
        seed=inputs.seed,
        backend=backend,
        workers=inputs.cores,
    )


PEERS: dict[str, Peer] = {
    "headrace-pillow": Peer(
        batches=partial(headrace, backend="pillow"), packages=("pillow", "torch", "numpy", "numba"), reads="any"
    ),
    "headrace-dali": Peer(
        batches=partial(headrace, backend="dali"),
        packages=("nvidia-dali-cuda130", "torch", "numpy", "numba"),
        reads="any",
    ),
    "headrace-auto": Peer(
        batches=partial(headrace, backend="auto"), packages=("pillow", "torch", "numpy", "numba"), reads="any"
    ),
    "headrace-loop": Peer(
        batches=partial(in_loops, headrace_loop, environment=ENVIRONMENT),
        packages=("pillow", "numpy", "numba"),
        kind="loop",
        reads="any",
    ),
    "torchvision-original": Peer(batches=torchvision_original, packages=("torch", "torchvision", "pillow")),
    "torchvision-v2": Peer(batches=torchvision_v2, packages=("torch", "torchvision")),
    "torchvision-v2-loop": Peer(
        batches=partial(in_loops, torchvision_v2_loop), packages=("torch", "torchvision"), kind="loop"
    ),
    "timm": Peer(batches=timm, packages=("timm", "torch", "torchvision", "pillow")),
    "webdataset": Peer(batches=webdataset, packages=("webdataset", "torch", "torchvision", "pillow"), reads="tar"),
    "dali": Peer(batches=dali_cpu, packages=("nvidia-dali-cuda130",)),
    "ffcv": Peer(
        batches=partial(ffcv, max_resolution=400),
        packages=("ffcv", "numba", "opencv-python"),
        track="recoded",
        reads="beton",
    ),
    "ffcv-original-size": Peer(
        batches=partial(ffcv, max_resolution=None),
        packages=("ffcv", "numba", "opencv-python"),
        track="recoded",
        reads="beton",
    ),
    "pillow-loop": Peer(batches=partial(in_loops, pillow_loop), packages=("pillow",), kind="loop"),
    "simplejpeg-loop": Peer(batches=partial(in_loops, simplejpeg_loop), packages=("simplejpeg", "pillow"), kind="loop"),
}


# Turns


def group_cpu_s() -> float:
    """CPU seconds, user and system, of this process group: of those that live and of those they have reaped."""
    group, ticks = os.getpgrp(), 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[2]) == group:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def take_turn(batches: Batches, seconds: float, drain: int) -> dict[str, float]:
    """Throw ``drain`` batches away, which may have been prefetched for nothing, then measure for ``seconds``."""
    for _ in range(drain):
        next(batches)
    images = 0
    cpu_s, start = group_cpu_s(), time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += next(batches)
    return {"images": images, "seconds": time.perf_counter() - start, "cpu_s": group_cpu_s() - cpu_s}


def versions(peer: Peer) -> dict[str, str]:
    """What is installed of what matters. Pillow and pillow-simd own the same files: the module knows which it is."""
    import PIL

    found = {}
    for package in peer.packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if "pillow" in peer.packages:
        found.pop("pillow", None)
        found["pillow-simd" if ".post" in PIL.__version__ else "pillow"] = PIL.__version__
    return found


def serve(name: str, commands: TextIO, replies: TextIO) -> None:
    """Build the loader that the first line describes, and take a turn for each line that follows."""
    peer = PEERS[name]
    inputs = Inputs(**json.loads(commands.readline()))
    drain = 2 * inputs.cores + 4  # more than any of them prefetches
    try:
        batches = peer.batches(inputs)
        next(batches)  # shards are written, processes started, kernels compiled
        found = versions(peer)
        label = "pillow-simd-loop" if name == "pillow-loop" and "pillow-simd" in found else name
        print(json.dumps({"loader": label, "versions": found}), file=replies, flush=True)
        for line in commands:
            print(json.dumps(take_turn(batches, float(line), drain)), file=replies, flush=True)
    except BrokenPipeError:
        return  # nobody wants to know
    except Exception as error:  # noqa: BLE001 - it becomes the row's reason
        print(json.dumps({"error": _why(error)}), file=replies, flush=True)


def _why(error: Exception) -> str:
    """One line."""
    if isinstance(error, ImportError):
        return f"not installed: {error} (benchmarks/peers-requirements.txt)"
    if isinstance(error, _LoopError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def main() -> None:
    """List the loaders, or be one."""
    if sys.argv[1:] == ["--list"]:
        listed = {name: {"kind": p.kind, "track": p.track, "reads": p.reads} for name, p in PEERS.items()}
        print(json.dumps(listed, indent=1))
    else:
        with os.fdopen(int(sys.argv[2]), "w") as replies:
            serve(sys.argv[1], sys.stdin, replies)


if __name__ == "__main__":
    main()
