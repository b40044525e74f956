"""Where shards are: a folder or a URL, and which of its tars are meant."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from .errors import ConfigError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000  # names of one pattern


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder that holds a manifest, here or behind a URL."""

    root: str
    names: frozenset[str] | None = None  # the tars that a pattern names; None: all there are

    @property
    def remote(self) -> bool:
        return is_url(self.root)


def is_url(where: str | os.PathLike[str]) -> bool:
    """Whether it is ``scheme://...`` rather than a path."""
    return "://" in os.fspath(where)


def parse_place(where: str | os.PathLike[str]) -> Place:
    """A folder, a URL, or a pattern such as ``/data/train-{000000..000146}.tar``, which names tars of one folder.

    Raises ConfigError for a pattern that makes no sense. Nothing is looked up but whether a path is a folder.
    """
    text = os.fspath(where)
    pattern = "{" in text or text.endswith(".tar")
    if not pattern or (not is_url(text) and os.path.isdir(text)):
        return Place(text.rstrip("/") if is_url(text) else text)
    paths = expand_braces(text)
    folders = {path.rpartition("/")[0] for path in paths}
    names = frozenset(path.rpartition("/")[2] for path in paths)
    if len(folders) > 1:
        raise ConfigError(f"{text} names tars of {len(folders)} folders, want one folder, which holds their manifest")
    if other := sorted(name for name in names if not name.endswith(".tar")):
        raise ConfigError(f"{text} is no folder, and {other[0]!r} no tar: give a folder, a URL or a pattern of tars")
    return Place(folders.pop() or ".", names)


def local_folder(where: str | os.PathLike[str], tool: str) -> Path:
    """The folder as a path, for a tool that reads it itself. Raises ConfigError where it is a URL."""
    if is_url(where):
        raise ConfigError(f"{tool} reads a local folder of shards, got {where}: copy the folder here first")
    return Path(where)


def expand_braces(pattern: str) -> list[str]:
    """``a-{00..02}.tar`` and ``{a,b}`` written out, nested too, as webdataset and the shell do. Raises ConfigError."""
    done, todo = [], [pattern]
    while todo:
        text = todo.pop()
        found = _BRACES.search(text)
        if not found:
            done.append(text)
            continue
        todo += [text[: found.start()] + part + text[found.end() :] for part in reversed(_parts(found[1], pattern))]
        if len(done) + len(todo) > _MOST:
            raise ConfigError(f"{pattern} names more than {_MOST:,} tars")
    return list(dict.fromkeys(done))  # {a,b{1,2}}: innermost first names a twice


def _parts(inside: str, pattern: str) -> list[str]:
    if bounds := _RANGE.fullmatch(inside):
        first, last = int(bounds[1]), int(bounds[2])
        if 0 <= last - first < _MOST:
            return [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]
    elif "," in inside:
        return inside.split(",")
    raise ConfigError(f"{pattern}: want {{000000..000146}} or {{a,b}} in braces, got {{{inside[:40]}}}")
