"""The val split's transform on any files: what predicts, and what is checked, sees them as scoring would."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .backends.pillow import PillowBackend
from .config import PipelineConfig
from .errors import ConfigError, DataError, PictureError
from .files import printable
from .folder import EXTENSIONS, Folder
from .processes import map_in_processes
from .worker import make_crops

ALONE_BELOW = 33  # pictures: fewer are decoded here, sooner than another process has started


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """Some files' pictures."""

    images: npt.NDArray[np.uint8]  # [n, S, S, 3], of those that could be decoded
    failures: list[str | None]  # of each file: None, or why it could not


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """The val split's transform on some files, in any process."""

    image_size: int

    def __call__(self, files: Sequence[str], count: Callable[[], None]) -> Decoded:
        config = PipelineConfig(data=".", split="val", image_size=self.image_size)
        backend = PillowBackend(image_size=self.image_size, max_pictures=1)
        images = np.empty((len(files), self.image_size, self.image_size, 3), np.uint8)
        failures: list[str | None] = []
        for file in files:
            row = failures.count(None)
            name = os.fsencode(file)
            one = Folder(root="", classes=("",), labels=np.zeros(1, np.int64), names=np.frombuffer(name, np.uint8),
                         ends=np.array([len(name)]))  # fmt: skip
            try:
                pictures = one.open(np.zeros(1, np.int64))
                crops = make_crops(config, 0, np.zeros(1, np.int64), pictures.widths, pictures.heights)
                backend.fill(pictures, crops, images[row : row + 1])
                failures.append(None)
            except PictureError as error:
                failures.append(error.reason)
            count()
        return Decoded(images=images[: failures.count(None)], failures=failures)


def find_pictures(names: Sequence[str]) -> list[str]:
    """Files as they are; folders as the pictures in them, at any depth, sorted. Raises ConfigError or DataError."""
    found: list[str] = []
    for name in names:
        if not os.path.isdir(name):
            if not os.path.exists(name):
                raise ConfigError(f"no such picture or folder: {printable(name)}")
            found.append(name)
            continue
        inside = [
            os.path.join(folder, file)
            for folder, files in _folders(name)
            for file in files
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
        if not inside:
            raise DataError(
                f"no picture in {printable(name)}: files that end in {', '.join(EXTENSIONS)} are looked for"
            )
        found += sorted(inside)
    return found


def _folders(top: str) -> Iterator[tuple[str, list[str]]]:
    """``top`` and all folders in it, each once, whatever the links; with their files. Raises DataError."""

    def fail(error: OSError) -> None:
        raise DataError(f"{printable(str(error.filename))} cannot be listed: {error.strerror}") from error

    seen = set()
    for folder, inside, files in os.walk(top, followlinks=True, onerror=fail):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            inside.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        yield folder, files


def decoded(files: Sequence[str], *, image_size: int, batch_size: int, workers: int) -> Iterator[Decoded]:
    """``files`` batch by batch. Raises DataError where a process dies."""
    transform = Transform(image_size=image_size)
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    if len(files) < ALONE_BELOW or workers == 1:
        yield from (transform(batch, lambda: None) for batch in batches)
        return
    for result in map_in_processes(transform, batches, workers=workers, progress=lambda _: None):
        if isinstance(result, Exception):
            raise result
        yield result
