"""Which picture goes to which shard, in which order, and under which key: pure functions of the folder and the seed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .folder import Folder
from .manifest import shard_name
from .order import epoch_order

_KEY_BYTES = 88  # a tar header holds a name of 100 bytes; ".jpg" and room for a numbered twin
_PLAIN = re.compile(rb"[A-Za-z0-9_+=,@~^-]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One tar to be written: which pictures, in which order, under which keys."""

    name: str
    samples: npt.NDArray[np.int64]
    keys: tuple[str, ...]
    digest: str  # of the keys, labels and files' sizes: what tells this plan from that of a folder that has changed


def plan_shards(folder: Folder, split: str, *, seed: int, shard_bytes: float) -> list[ShardPlan]:
    """Deal the pictures of a split, in a seeded shuffle, to shards that differ by one sample at most.

    Classes are mixed by the shuffle, so a shard looks like the data set. The number of shards follows from the
    files' sizes alone.
    """
    sizes = [_size(os.path.join(folder.root, folder.name(i))) for i in range(len(folder))]
    count = min(len(folder), max(1, round(sum(sizes) / shard_bytes)))
    order = epoch_order(len(folder), seed=seed, epoch=0, shuffle=True)
    keys = sample_keys(folder)
    plans = []
    for number, samples in enumerate(np.array_split(order, count)):
        content = "".join(f"{keys[i]} {folder.labels[i]} {sizes[i]}\n" for i in samples.tolist())
        plans.append(
            ShardPlan(
                name=shard_name(split, number),
                samples=samples,
                keys=tuple(keys[i] for i in samples.tolist()),
                digest=hashlib.sha256(content.encode()).hexdigest()[:16],
            )
        )
    return plans


def _size(path: str) -> int:
    """In bytes; 0 of what cannot be looked at: whoever reads it will say why."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def sample_keys(folder: Folder) -> list[str]:
    """A key for each picture: ``<class>/<name without extension>``, unique, and safe in a tar, an .idx and webdataset.

    Bytes outside ``A-Z a-z 0-9 _ + = , @ ~ ^ -`` are written %XX (a dot would end the key for webdataset, a blank
    would end the name in DALI's .idx), so the name of the file can be had back. Where two pictures differ in their
    extension only, it stays in the key. What is too long for a tar header is cut and told apart by its hash.
    """
    names = [os.fsencode(folder.name(i)) for i in range(len(folder))]
    keys = [_key(os.path.splitext(name)[0]) for name in names]
    whole: set[int] = set()
    while True:  # a key with its extension may be the stem of a third picture: a.jpg, a.png, a.jpg.png
        counts = Counter(keys)
        clash = {i for i, key in enumerate(keys) if counts[key] > 1} - whole
        if not clash:
            break
        whole |= clash
        for i in clash:
            keys[i] = _key(names[i])
    twice = [key for key, number in counts.items() if number > 1]
    if twice:
        raise DataError(f"{folder.root}: several pictures would have the key {twice[0]}: rename all but one of them")
    return keys


def _key(name: bytes) -> str:
    parts = (
        "".join(chr(c) if _PLAIN.match(bytes((c,))) else f"%{c:02X}" for c in part)
        for part in name.split(os.sep.encode())
    )
    key = "/".join(parts)
    if len(key) > _KEY_BYTES:
        key = f"{key[: _KEY_BYTES - 17]}~{hashlib.sha256(name).hexdigest()[:16]}"
    return key
