"""A few hundred of the user's pictures, copied to where reading them is a copy in memory.

What they cost there is preparation without a disk; and made anew as other shards, they say what that would bring.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import numpy as np

from ..child import start_child
from ..errors import DataError
from ..folder import Folder
from ..shards import Shards, open_shards
from ..source import Source
from ..writer import WriterConfig, write_shards

PICTURES = 512  # enough that their mean cost is within 2 to 3 % of all pictures' (95 %, ImageNet), and made in seconds


class Nearby:
    """Some pictures of a source, drawn at random. Close it to remove the copies."""

    def __init__(self, source: Source, count: int = PICTURES, *, seed: int = 0):
        """Raises DataError where a picture cannot be read."""
        chosen = np.random.default_rng(seed).choice(len(source), min(count, len(source)), replace=False)
        self.numbers = np.sort(chosen)  # int64 [K], of the samples in the source
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-profile-")
        self.root = Path(self._folder.name)
        self.pictures = self.root / "pictures"  # an ImageNet folder of them
        home = self.pictures / "train" / "all"
        home.mkdir(parents=True)
        sizes = []
        for place, number in enumerate(self.numbers.tolist()):
            data = source.read(number)
            sizes.append(len(data))
            (home / f"{place:06d}{_suffix(source, number)}").write_bytes(data)
        self.bytes = np.array(sizes)  # int64 [K]
        self._like = source
        if isinstance(source, Shards):  # the index goes with its source
            self._records = np.array(source.records[self.numbers])
            self._records["offset"] = np.cumsum(self.bytes) - self.bytes
        elif isinstance(source, Folder):
            self._labels = source.labels[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def as_they_are(self) -> Source:
        """The copies, as a source of the same kind: its sample ``k`` is number ``numbers[k]`` of the other.

        Whoever takes it closes it.
        """
        files = sorted((self.pictures / "train" / "all").iterdir())
        like = self._like
        if isinstance(like, Folder):
            names = [os.fsencode(os.path.join("train", "all", file.name)) for file in files]
            return Folder(
                root=str(self.pictures),
                classes=like.classes,
                labels=self._labels,
                names=np.frombuffer(b"".join(names), np.uint8),
                ends=np.cumsum([len(name) for name in names], dtype=np.int64),
            )
        if not (self.root / "copies").exists():  # else somebody may be reading it
            with open(self.root / "copies", "wb") as shard:
                shard.writelines(file.read_bytes() for file in files)
        return Shards(
            root=str(self.root),
            classes=like.classes,
            shard_names=("copies",),
            first=np.zeros(1, np.int64),
            index=self.root / "none",
            records=self._records,
            fingerprint="",
            part=True,
        )

    def made_anew(self, jpeg: str, workers: int) -> Shards:
        """The same pictures as ``make_shards.py --jpeg`` makes them; what is damaged is left out."""
        root = self.root / jpeg
        if not root.exists():
            # In a process of its own: workers that are spawned import the caller's script, which may be anybody's.
            child = start_child("profiler.nearby", str(self.pictures), str(root), jpeg, workers, fds=())
            try:
                if child.wait():
                    raise DataError(f"no shards could be made of {len(self)} of the pictures: the lines above say why")
            finally:
                child.kill()
                child.wait()
        return open_shards(root, "train")

    def close(self) -> None:
        """Remove the copies."""
        self._folder.cleanup()

    def __enter__(self) -> Nearby:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(source: str, destination: str, jpeg: str, workers: int) -> None:
    """The process that makes shards."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))  # with it this process ends its own
    config = WriterConfig(
        source=Path(source), destination=Path(destination), jpeg=jpeg, workers=workers, on_error="skip"
    )
    write_shards(config)


def _suffix(source: Source, number: int) -> str:
    """The picture's own extension: by it make_shards knows what is a picture."""
    if isinstance(source, Folder):
        return os.path.splitext(source.name(number))[1]
    return ".JPEG"
