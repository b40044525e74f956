"""An ImageNet folder on disk: ``train/<class>/<picture>`` and ``val/<class>/<picture>``, or classes at the top."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .crop_jpeg import Excerpt, whole_picture
from .errors import ConfigError, DataError, PictureError
from .files import printable, read_regular
from .jpeg import MAX_PIXELS, read_header
from .pictures import I64, Pictures
from .watch import READ, UNWATCHED, Watch

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """One split of an ImageNet folder: the pictures' names and labels, and random access to their bytes.

    The names are held as one array of bytes (``path`` cuts one out), so that a million of them reach the decode
    workers without a copy.
    """

    root: str
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]  # [n]
    names: npt.NDArray[np.uint8]  # every name relative to root, one after the other
    ends: npt.NDArray[np.int64]  # [n] where each name ends

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def crop_addressed(self) -> bool:
        """Never: a folder's pictures are read and decoded whole."""
        return False

    @property
    def first(self) -> npt.NDArray[np.int64]:
        """All single files: one block."""
        return np.zeros(1, np.int64)

    @property
    def fingerprint(self) -> str:
        """Of the pictures' names and classes; what is in them is not looked at."""
        digest = hashlib.sha256(self.names.data)
        digest.update(self.labels.data)
        return digest.hexdigest()[:16]

    def name(self, index: int) -> str:
        """The picture's path relative to the folder."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.ends[index]].tobytes())

    def read(self, index: int) -> bytes:
        """The picture's bytes. Raises DataError where they cannot be had."""
        try:
            return read_regular(os.path.join(self.root, self.name(index)))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error

    def open(self, indices: I64, watch: Watch = UNWATCHED) -> FolderPictures:
        """The pictures of some samples, read whole: nothing else says their sizes. Raises PictureError."""
        return FolderPictures(self, indices, watch)

    def close(self) -> None:
        """Nothing is held."""


class FolderPictures(Pictures):
    """Pictures as they are on the disk."""

    def __init__(self, folder: Folder, indices: I64, watch: Watch):
        self._data: list[bytes] = []
        sizes = np.empty((len(indices), 2), np.int64)
        for row, index in enumerate(indices.tolist()):
            watch.begin(index)
            try:
                self._data.append(folder.read(index))
                sizes[row] = picture_size(self._data[row])
                watch.lap(READ, index)
            except DataError as error:
                raise PictureError(row, str(error)) from error
        labels = folder.labels[indices]
        super().__init__(indices, widths=sizes[:, 0], heights=sizes[:, 1], labels=labels, watch=watch)
        self.read_whole.update(range(len(indices)))

    def excerpt(self, row: int, region: Sequence[int]) -> Excerpt:
        self.begin(row)
        return self.whole(row)

    def whole(self, row: int) -> Excerpt:
        return whole_picture(self._data[row], int(self.widths[row]), int(self.heights[row]))


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels from a picture's header. Raises DataError where it is none, or absurdly large."""
    if header := read_header(data):
        if header.width * header.height > MAX_PIXELS:
            raise DataError(f"the header claims an absurd size: {header.width}x{header.height} pixels")
        return header.width, header.height
    from .backends.pillow import open_picture  # for PNG and the like: the few files that are no JPEG

    return open_picture(data).size


def folder_splits(root: Path, wanted: tuple[str, ...] | None = None) -> dict[str, Path]:
    """The splits of an ImageNet folder, by name; a folder of class folders is one split, ``train``.

    Raises ConfigError where the folder or a split that was asked for is missing.
    """
    if not root.is_dir():
        raise ConfigError(f"no such folder: {root} (an ImageNet folder holds train/<class>/<picture>)")
    present = {name: root / name for name in SPLITS if (root / name).is_dir()}
    if not present:
        present = {"train": root}
    if wanted is None:
        return present
    for name in wanted:
        if name not in present:
            raise ConfigError(f"{root} has no split {name!r}; it has {', '.join(present)}")
    return {name: present[name] for name in wanted}


def folder_classes(splits: dict[str, Path]) -> tuple[str, ...]:
    """The class names of all splits together, sorted: their places are the labels.

    Raises DataError for pictures that lie beside the class folders, so that nobody knows their class, and for what
    cannot be looked at: all of it is named.
    """
    names: set[str] = set()
    stray: list[str] = []
    unreadable: list[str] = []
    for path in splits.values():
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink() and not os.path.exists(entry.path):
                        unreadable.append(f"{entry.path}: a link that leads nowhere")
                    elif entry.is_dir():
                        names.add(entry.name)
                    elif entry.name.lower().endswith(EXTENSIONS):
                        stray.append(entry.path)
        except OSError as error:
            unreadable.append(f"{path}: {error.strerror}")
    _refuse_unreadable(unreadable)
    if stray:
        raise DataError(
            f"{len(stray)} picture{'s'[: len(stray) > 1]} beside the class folders {_have(stray)} no class: "
            f"{_some(sorted(stray))}: move each into the folder of its class, or away"
        )
    if not names:
        where = " or ".join(str(path) for path in splits.values())
        raise DataError(f"no class folder in {where}: pictures belong in <class>/<picture>")
    return tuple(sorted(names))


def _have(things: list[str]) -> str:
    return "have" if len(things) > 1 else "has"


def _some(things: list[str], most: int = 3) -> str:
    more = f" and {len(things) - most:,} more" if len(things) > most else ""
    return f"{', '.join(printable(thing) for thing in things[:most])}{more}"


def _refuse_unreadable(unreadable: list[str]) -> None:
    """Raises DataError with all folders that cannot be listed."""
    if unreadable:
        listed = "\n  ".join(printable(line) for line in unreadable)
        raise DataError(f"{len(unreadable)} folder{'s'[: len(unreadable) > 1]} cannot be read:\n  {listed}")


def open_folder(path: Path, classes: tuple[str, ...]) -> Folder:
    """List one split. Pictures are numbered by class, then by name; files that are no pictures by name are left out.

    Raises DataError where class folders are empty or unreadable.
    """
    names: list[bytes] = []
    labels: list[int] = []
    empty: list[str] = []
    unreadable: list[str] = []
    for label, name in enumerate(classes):
        try:
            pictures = sorted(f for f in os.listdir(path / name) if f.lower().endswith(EXTENSIONS) and f[0] != ".")
        except FileNotFoundError:
            continue  # a class of another split
        except OSError as error:
            unreadable.append(f"{path / name}: {error.strerror}")
            continue
        if not pictures:
            empty.append(name)
        names += [os.fsencode(os.path.join(name, picture)) for picture in pictures]
        labels += [label] * len(pictures)
    _refuse_unreadable(unreadable)
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise DataError(f"no picture in {path}/{{{','.join(empty[:3])}}}{more}: remove the empty class or fill it")
    if not names:
        raise DataError(f"no class folder in {path}: fill it, or remove it")
    return Folder(
        root=str(path),
        classes=classes,
        labels=np.array(labels, np.int64),
        names=np.frombuffer(b"".join(names), np.uint8),
        ends=np.cumsum([len(name) for name in names], dtype=np.int64),
    )
