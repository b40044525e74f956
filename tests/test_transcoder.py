"""The writer of crop-addressed JPEGs: what goes in comes out, and what it cannot write it says so of."""

from __future__ import annotations

import heapq
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.crop_jpeg import describe, read_layout
from pipeline.errors import ConfigError
from pipeline.manifest import read_manifest
from pipeline.prepare import Recode, prepare
from pipeline.shards import open_shards
from pipeline.transcoder import NotTranscodableError, to_crop_addressed
from pipeline.transcoder.coefficients import read_coefficients
from pipeline.transcoder.crop_addressed import CODE_BITS, restart_interval
from pipeline.transcoder.huffman import canonical_codes, code_lengths
from pipeline.writer import WriterConfig, write_shards
from tests.jpegs import SAMPLINGS, decoded, jpeg
from tests.photos import photo

RECODE = Recode(max_side=100, quality=90)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (17, 33), (200, 75), (149, 151)])
def test_coefficients_are_kept(size: tuple[int, int], sampling: str, progressive: bool) -> None:
    original = jpeg(3, *size, sampling, progressive=progressive)
    written = to_crop_addressed(original)
    before, after = read_coefficients(original), read_coefficients(written)
    assert (before.width, before.height) == (after.width, after.height) == size
    for a, b in zip(before.components, after.components, strict=True):
        assert np.array_equal(a.blocks, b.blocks)
        assert np.array_equal(before.quantisation[a.table], after.quantisation[b.table])
    assert to_crop_addressed(written) == written
    assert describe(written)[0]


@pytest.mark.parametrize(
    ("columns", "mcu_width", "interval"),
    [(60, 8, 4), (25, 16, 1), (30, 16, 2), (59, 8, 59), (1, 8, 1), (47, 16, 1), (63, 8, 3), (4, 8, 4), (6, 32, 1)],
)
def test_tiles_are_near_32_pixels_wide(columns: int, mcu_width: int, interval: int) -> None:
    assert restart_interval(columns, mcu_width) == interval
    assert columns % interval == 0


def test_what_is_dropped_and_what_is_kept() -> None:
    """Metadata goes; what decides the colours stays, also where only JFIF's marker has said it."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    photo(1, 64, 48).save(file, "JPEG", exif=exif, comment=b"hello", icc_profile=b"profile" * 20)
    written = to_crop_addressed(file.getvalue())
    for name in (b"Exif", b"hello", b"profile", b"JFIF"):
        assert name in file.getvalue()
        assert name not in written
    assert np.array_equal(decoded(written), decoded(file.getvalue()))
    # Components named R, G, B would be taken for RGB, if JFIF did not say that they are not.
    renamed = bytearray(jpeg(1, 64, 48))
    frame, scan = renamed.index(b"\xff\xc0") + 10, renamed.index(b"\xff\xda") + 5
    for number, letter in enumerate(b"RGB"):
        renamed[frame + 3 * number] = renamed[scan + 2 * number] = letter
    assert np.array_equal(decoded(to_crop_addressed(bytes(renamed))), decoded(bytes(renamed)))
    assert b"Adobe" in to_crop_addressed(jpeg(1, 64, 48, "CMYK"))


def test_damage_is_not_rewritten() -> None:
    good = jpeg(4, 120, 90)
    for bad in (good[:-2], good[:-200], good[:200], good.replace(b"\xff\xda", b"\xff\xdb", 1), b"", b"text"):
        with pytest.raises(NotTranscodableError):
            to_crop_addressed(bad)


def test_recode_makes_pictures_smaller_and_crop_addressed(folder: Path, tmp_path: Path) -> None:
    assert prepare("recode", jpeg(1, 60, 30), RECODE).width == 60  # never larger
    assert read_coefficients(prepare("recode", jpeg(1, 150, 30, "grey"), RECODE).data).components[1:] == ()
    config = {"source": folder, "jpeg": "recode", "max_side": 100}
    manifest, _ = write_shards(WriterConfig(destination=tmp_path / "a", quality=90, **config))  # type: ignore[arg-type]
    write_shards(WriterConfig(destination=tmp_path / "b", quality=30, **config))  # type: ignore[arg-type]
    assert (manifest.made["max_side"], manifest.made["quality"]) == (100, 90)
    a, b = open_shards(tmp_path / "a", "train"), open_shards(tmp_path / "b", "train")
    pictures = a.open(np.arange(len(a)))
    assert max(pictures.widths.max(), pictures.heights.max()) == 100
    assert (240, 180) not in zip(pictures.widths, pictures.heights, strict=True)
    assert a.records["header"].all()
    assert a.records["bytes"].sum() > 1.5 * b.records["bytes"].sum()
    assert read_manifest(tmp_path / "a").made["not_crop_addressed"] == 0
    with pytest.raises(ConfigError, match="quality 90, now it is 80"):
        write_shards(WriterConfig(destination=tmp_path / "a", quality=80, resume=True, **config))  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=256, max_size=256), st.integers(9, 16))
def test_codes_are_the_shortest_that_the_limit_allows(counts: list[int], limit: int) -> None:
    lengths = code_lengths(np.array(counts), limit)
    used = np.array(counts) > 0
    assert ((lengths > 0) == used).all()
    assert lengths.max(initial=0) <= limit
    assert (0.5 ** lengths[used]).sum() < 1  # a prefix code, and all ones is nobody's
    bits, values, codes = canonical_codes(lengths, np.array(counts))
    assert bits.sum() == len(values) == used.sum()
    words = {f"{codes[s]:0{lengths[s]}b}" for s in np.flatnonzero(used)}
    assert len(words) == used.sum()
    assert not any("0" not in word for word in words)
    # Without a limit, Huffman's own; the reserved symbol is the rarest.
    heap, total = [0, *(count for count in counts if count)], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    assert (code_lengths(np.array(counts), 60) * counts).sum() == total <= (lengths * counts).sum()


def test_no_long_codes_in_a_file() -> None:
    written = to_crop_addressed(jpeg(2, 256, 192, "444", quality=100))
    at = written.index(b"\xff\xc4") + 5
    assert not any(written[at + CODE_BITS : at + 16])
    layout = read_layout(written[: describe(written)[0]])
    assert (layout.columns, layout.rows, layout.tile_width, layout.tile_height) == (8, 24, 32, 8)
