from __future__ import annotations

import io

import pytest

from pipeline.jpeg import read_header
from tests.photos import KINDS, photo


def encode(width: int, height: int, mode: str, **options: object) -> bytes:
    file = io.BytesIO()
    photo(0, width, height, mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(("width", "height", "mode", "subsampling", "progressive"), KINDS)
def test_reads_what_was_written(width: int, height: int, mode: str, subsampling: int, progressive: bool) -> None:
    data = encode(width, height, mode, subsampling=subsampling, progressive=progressive, comment=b"x" * 3000)
    header = read_header(data)
    assert header is not None
    assert (header.width, header.height) == (width, height)
    assert header.components == {"L": 1, "RGB": 3}[mode]
    assert header.baseline is not progressive


def test_cmyk_has_four_components() -> None:
    header = read_header(encode(20, 10, "CMYK"))
    assert header is not None
    assert header.components == 4


def test_every_cut_and_every_changed_byte_is_survived() -> None:
    """A damaged header gives a header or None, never an exception or an endless loop."""
    data = encode(64, 48, "RGB", comment=b"note")[:700]
    for cut in range(len(data)):
        read_header(data[:cut])
    for at in range(len(data)):
        for value in (0, 1, 0xFF, data[at] ^ 0x10):
            read_header(data[:at] + bytes((value,)) + data[at + 1 :])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9", b"hello" * 100])
def test_other_files_are_none(data: bytes) -> None:
    assert read_header(data) is None
