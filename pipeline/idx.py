"""The .idx beside a tar: where DALI's ``fn.readers.webdataset`` finds each member without parsing the tar."""

from __future__ import annotations

from collections.abc import Sequence


def idx_name(shard: str) -> str:
    """The name of the .idx beside a tar."""
    return f"{shard.removesuffix('.tar')}.idx"


def idx_line(key: str, jpg_at: int, jpg_bytes: int, cls_at: int, cls_bytes: int) -> str:
    """One sample: extension, offset, size and name of each of its two members."""
    return f"jpg {jpg_at} {jpg_bytes} {key}.jpg cls {cls_at} {cls_bytes} {key}.cls\n"


def idx_text(lines: Sequence[str]) -> str:
    """The whole file."""
    return f"v1.2 {len(lines)}\n{''.join(lines)}"
