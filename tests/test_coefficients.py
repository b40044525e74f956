"""The coefficients against two independent readers: jpeglib's (from PyPI) and libjpeg through tests/jpeg_tool.c."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.transcoder.coefficients import Coefficients, NotTranscodableError, read_coefficients
from tests.photos import photo

ROOT = Path(__file__).resolve().parents[1]

# Figure A.6: where the diagonals' coefficients lie in a block's rows, in zigzag order
ZIGZAG = np.array(
    [8 * y + x for y, x in sorted(np.ndindex(8, 8), key=lambda at: (sum(at), at[sum(at) % 2 == 0]))], np.intp
)
SIZES = ((1, 1), (7, 9), (8, 8), (17, 33), (100, 75))
COLOUR_SCANS = {
    "sequential": (),
    "progressive": ("progressive",),
    "one scan each": ("0,0,63,0,0", "1,0,63,0,0", "2,0,63,0,0"),
    "two and one": ("01,0,63,0,0", "2,0,63,0,0"),
    "fine bands": (
        *("012,0,0,0,2", "0,1,4,0,3", "0,5,63,0,3", "0,1,63,3,2", "1,1,63,0,1", "2,1,20,0,0", "2,21,63,0,0"),
        *("012,0,0,2,1", "0,1,63,2,1", "1,1,63,1,0", "0,1,63,1,0", "012,0,0,1,0"),
    ),
    "apart": ("0,0,0,0,1", "1,0,0,0,0", "2,0,0,0,0", "0,0,0,1,0", "0,1,63,0,0", "1,1,63,0,0", "2,1,63,0,0"),
}
Planes = list[npt.NDArray[np.int16]]
Tool = Callable[..., bytes]


def encode(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    photo(width + height, width, height, mode).save(file, "JPEG", **options)
    return file.getvalue()


def assert_equal(got: Coefficients, planes: Planes) -> None:
    assert len(got.components) == len(planes)
    for component, plane in zip(got.components, planes, strict=True):
        rows, columns = plane.shape[:2]
        np.testing.assert_array_equal(component.blocks[:rows, :columns], plane)
        # whole MCUs: padding, but less than one MCU of it
        assert 0 <= component.blocks.shape[0] - rows < component.v
        assert 0 <= component.blocks.shape[1] - columns < component.h


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """tests/jpeg_tool.c, compiled."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc, so libjpeg cannot be asked")
    program = tmp_path_factory.mktemp("jpeg_tool") / "jpeg_tool"
    source = Path(__file__).with_name("jpeg_tool.c")
    built = subprocess.run(
        [compiler, "-O1", "-o", program, source, "-ljpeg"], capture_output=True, text=True, check=False
    )
    if built.returncode and "jpeglib.h" in built.stderr:
        pytest.skip("no jpeglib.h, so libjpeg cannot be asked")
    assert not built.returncode, built.stderr

    def run(*arguments: object, data: bytes) -> bytes:
        done = subprocess.run([program, *map(str, arguments)], input=data, capture_output=True, check=True, timeout=120)
        return done.stdout

    return run


def read_by_libjpeg(tool: Tool, files: Sequence[bytes]) -> list[tuple[Planes, int] | None]:
    """Of each file the planes, in zigzag order, and the number of warnings; None where libjpeg refuses it."""
    answer = io.BytesIO(tool("read", data=b"".join(struct.pack("=I", len(file)) + file for file in files)))

    def number() -> int:
        return int(struct.unpack("=I", answer.read(4))[0])

    results: list[tuple[Planes, int] | None] = []
    for _ in files:
        if number():
            results.append(None)
            continue
        warnings, planes = number(), []
        for _ in range(number()):
            rows, columns = number(), number()
            blocks = np.frombuffer(answer.read(128 * rows * columns), np.int16).reshape(rows, columns, 64)
            planes.append(blocks[:, :, ZIGZAG])
        results.append((planes, warnings))
    assert not answer.read()
    return results


def check(tool: Tool, data: bytes, frame: int) -> Coefficients:
    """Read `data`, of the kind SOF`frame`, and compare with libjpeg."""
    assert bytes((0xFF, 0xC0 + frame, 0)) in data
    got = read_coefficients(data)
    result = read_by_libjpeg(tool, [data])[0]
    assert result is not None
    assert result[1] == 0
    assert_equal(got, result[0])
    return got


def seeds(tool: Tool) -> dict[int, bytes]:
    """One small file per kind, by the number of its SOF."""
    data = encode(41, 30, quality=85, subsampling=2)
    return {
        0: tool("recode", "huffman", 2, data=data),
        2: encode(41, 30, quality=85, subsampling=2, progressive=True),
        9: tool("recode", "arith", 2, data=data),
        10: tool("recode", "arith", 0, "progressive", data=data),
    }


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """One to three bytes changed, or some inserted, cut out or cut off; mostly in the second half: the picture."""
    changed = bytearray(data)
    at = int(rng.integers(0 if rng.random() < 0.3 else len(data) // 2, len(data)))
    kind = rng.integers(6)
    if kind == 0:
        changed[at:at] = rng.bytes(int(rng.integers(1, 4)))
    elif kind == 1:
        del changed[at : at + int(rng.integers(1, 4))]
    elif kind == 2 and rng.random() < 0.3:
        del changed[at:]
    else:
        for _ in range(rng.integers(1, 4)):
            choices = 0, 0xFF, 0xD0, changed[at] ^ 1 << int(rng.integers(8)), int(rng.integers(256))
            changed[at] = int(rng.choice(choices))
            at = min(at + int(rng.integers(1, 9)), len(changed) - 1)
    return bytes(changed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_equals_jpeglib(size: tuple[int, int], subsampling: int, progressive: bool, tmp_path: Path) -> None:
    jpeglib = pytest.importorskip("jpeglib", reason="no jpeglib to compare with: pip install jpeglib")
    for quality, options in ((30, {}), (75, {"optimize": True}), (98, {"restart_marker_blocks": 3})):
        data = encode(*size, quality=quality, subsampling=subsampling, progressive=progressive, **options)
        (tmp_path / "a.jpg").write_bytes(data)
        other = jpeglib.read_dct(tmp_path / "a.jpg")
        got = read_coefficients(data)
        assert (got.width, got.height) == size
        assert_equal(
            got, [plane.reshape(*plane.shape[:2], 64)[:, :, ZIGZAG] for plane in (other.Y, other.Cb, other.Cr)]
        )
        for component, table in zip(got.components, (other.qt[0], other.qt[1], other.qt[1]), strict=True):
            np.testing.assert_array_equal(got.quantisation[component.table], table.reshape(64)[ZIGZAG])


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("size", SIZES)
def test_grey_and_four_components(tool: Tool, mode: str, size: tuple[int, int]) -> None:
    for progressive in (False, True):
        got = check(tool, encode(*size, mode, quality=80, progressive=progressive), 2 * progressive)
        assert len(got.components) == {"L": 1, "CMYK": 4}[mode]
        assert (got.jfif is None, got.adobe is None) == {"L": (False, True), "CMYK": (True, False)}[mode]


@pytest.mark.parametrize("scans", COLOUR_SCANS.values(), ids=COLOUR_SCANS)
@pytest.mark.parametrize("coding", ["huffman", "arith"])
@pytest.mark.parametrize(
    "factors", ["11,11,11", "21,11,11", "12,11,11", "22,11,11", "41,11,11", "22,21,12", "31,11,11"]
)
def test_every_coding_holds_the_same_coefficients(
    tool: Tool, coding: str, scans: tuple[str, ...], factors: str
) -> None:
    frame = (9 if coding == "arith" else 0) + (scans[:1] == ("progressive",) or len(scans) > 3) * (
        1 if coding == "arith" else 2
    )
    for width, height in SIZES:
        pixels = np.asarray(photo(3, width, height)).tobytes()
        plain = tool("encode", width, height, factors, 90, data=pixels)
        expected = check(tool, plain, 0)
        for restart in (0, 1, 5):
            got = check(tool, tool("recode", coding, restart, *scans, data=plain), frame)
            for component, original in zip(got.components, expected.components, strict=True):
                rows, columns = (
                    -(-length * factor // (8 * max(int(both[axis]) for both in factors.split(","))))
                    for length, factor, axis in ((height, component.v, 1), (width, component.h, 0))
                )
                np.testing.assert_array_equal(component.blocks[:rows, :columns], original.blocks[:rows, :columns])


@pytest.mark.parametrize("coding", ["huffman", "arith"])
def test_grey_with_sampling_factors_has_no_padding(tool: Tool, coding: str) -> None:
    pixels = np.asarray(photo(4, 35, 20, "L")).tobytes()
    plain = tool("encode", 35, 20, "23", 80, data=pixels)
    for scans in ((), ("progressive",)):
        data = tool("recode", coding, 2, *scans, data=plain)
        got = check(
            tool, data, {("huffman", 0): 0, ("huffman", 1): 2, ("arith", 0): 9, ("arith", 1): 10}[coding, len(scans)]
        )
        assert got.components[0].blocks.shape == (3, 5, 64)


def test_the_extremes_of_a_coefficient_are_read(tool: Tool) -> None:
    """The signs of the cosines and noise at quality 100: the largest categories, and codes of 16 bits."""
    rng = np.random.default_rng(0)
    waves = np.cos(np.outer(np.arange(8), np.arange(1, 16, 2)) * np.pi / 16)
    signs = np.sign(waves[:, None, :, None] * waves[None, :, None, :]) * rng.choice([-1, 1], (8, 8, 1, 1))
    sharp = np.where(signs.transpose(0, 2, 1, 3).reshape(64, 64) > 0, 255, 0)
    noise = rng.choice([0, 255], (64, 64))
    pixels = np.concatenate((sharp, noise)).astype(np.uint8).tobytes()
    plain = tool("encode", 64, 128, "11", 100, data=pixels)
    blocks = check(tool, plain, 0).components[0].blocks
    assert abs(blocks[:, :, 0]).max() >= 1016
    assert abs(blocks[:, :, 1:]).max() > 900
    for coding, scans, frame in (("arith", (), 9), ("huffman", ("progressive",), 2), ("arith", ("progressive",), 10)):
        check(tool, tool("recode", coding, 7, *scans, data=plain), frame)
    coarse = tool("encode", 64, 128, "11", 1, data=pixels)  # 16-bit quantisation tables: SOF1
    assert check(tool, coarse, 1).quantisation[0].max() > 255


def test_padding_that_is_not_coded_repeats_the_block_before(tool: Tool) -> None:
    pixels = np.asarray(photo(5, 17, 17)).tobytes()
    plain = tool("encode", 17, 17, "22,11,11", 90, data=pixels)
    got = read_coefficients(tool("recode", "huffman", 0, *COLOUR_SCANS["one scan each"], data=plain))
    blocks = got.components[0].blocks
    assert blocks.shape == (4, 4, 64)
    assert not blocks[:, 3, 1:].any()
    assert not blocks[3, :, 1:].any()
    np.testing.assert_array_equal(blocks[:3, 3, 0], blocks[:3, 2, 0])
    np.testing.assert_array_equal(blocks[3, :, 0], blocks[2, :, 0])


def test_the_restart_interval_may_change_between_scans(tool: Tool) -> None:
    plain = encode(60, 50, quality=80, subsampling=2)
    scans = COLOUR_SCANS["one scan each"]
    often, seldom = (tool("recode", "huffman", interval, *scans, data=plain) for interval in (1, 5))
    heads = []  # where the Huffman tables of the second scan begin
    for data in (often, seldom):
        first = data.index(b"\xff\xda")
        heads.append(data.index(b"\xff\xc4", first))
    changed = often[: heads[0]] + segment(0xDD, b"\0\5") + seldom[heads[1] :]
    assert_equal(check(tool, changed, 0), [component.blocks for component in read_coefficients(often).components])


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(payload) + 2).to_bytes(2) + payload


def test_what_a_file_may_hold_beside_the_picture() -> None:
    data = encode(40, 30, quality=80)
    expected = read_coefficients(data)
    scan = data.index(b"\xff\xda")
    thumbnail = b"JFIF\0\x01\x02\0\0\x01\0\x01\x02\x01" + b"x" * 6
    adobe = b"Adobe\0\x64\0\0\0\0\1"
    head = b"\xff\xd8" + segment(0xE0, thumbnail) + segment(0xEE, adobe) + b"\xff\xff\xff" + segment(0xFE, b"note")[1:]
    got = read_coefficients(head + data[20:scan] + b"\xff\xff" + data[scan:-2] + b"\xff\xff\xff\xd9 and more \xff\xd8")
    assert got.jfif == thumbnail[:12] + b"\0\0"
    assert got.adobe == adobe
    assert expected.adobe is None
    assert_equal(got, [component.blocks for component in expected.components])


def test_a_quantisation_table_may_change_only_where_nobody_can_tell(tool: Tool) -> None:
    plain = encode(20, 20, quality=80, subsampling=0)
    data = tool("recode", "huffman", 0, *COLOUR_SCANS["one scan each"], data=plain)
    assert len(read_coefficients(data).quantisation) == 2
    table = data.index(b"\xff\xdb")
    old = data[table + 5 : table + 69]
    last = data.rindex(b"\xff\xda")  # Cr's scan; Cb and Cr share table 1, Y has table 0
    for number, values, fine in ((0, bytes(64 * [7]), True), (1, bytes(64 * [7]), False), (0, old, True)):
        changed = data[:last] + segment(0xDB, bytes((number,)) + values) + data[last:]
        if fine:
            np.testing.assert_array_equal(read_coefficients(changed).quantisation[0], np.frombuffer(old, np.uint8))
        else:
            with pytest.raises(NotTranscodableError, match="quantisation table changes"):
                read_coefficients(changed)


def refusals() -> dict[str, tuple[bytes, str]]:
    plain = encode(40, 30, quality=80, subsampling=0)
    progressive = encode(40, 30, quality=80, subsampling=0, progressive=True)
    restarts = encode(40, 30, quality=80, subsampling=0, restart_marker_blocks=4)
    frame, scan = plain.index(b"\xff\xc0"), plain.index(b"\xff\xda")
    second = progressive.index(b"\xff\xda", progressive.index(b"\xff\xda") + 2)
    tables = plain.index(b"\xff\xc4")

    def with_frame(marker: int, precision: int = 8, width: int = 40, height: int = 30) -> bytes:
        header = struct.pack(">BBHBHH", 0xFF, marker, 17, precision, height, width)
        return plain[:frame] + header + plain[frame + len(header) :]

    return {
        "empty": (b"", "SOI"),
        "png": (b"\x89PNG\r\n\x1a\n", "SOI"),
        "header only": (plain[:scan], "EOI"),
        "nothing": (b"\xff\xd8\xff\xd9", "no picture"),
        "12 bit": (with_frame(0xC1, precision=12), "12 bits"),
        "lossless": (with_frame(0xC3), "lossless"),
        "hierarchical": (with_frame(0xC5), "hierarchical"),
        "height 0": (with_frame(0xC0, height=0), "width or height"),
        "huge": (with_frame(0xC0, width=65535, height=65535), "pixels"),
        "large": (with_frame(0xC0, width=16000, height=16000), "too short"),
        "large arithmetic": (with_frame(0xC9, width=16000, height=16000), "too short"),
        "a little too high": (with_frame(0xC0, height=33), "ends before"),
        "a little too low": (with_frame(0xC0, height=24), "goes on"),
        "no EOI": (plain[:-2], "file ends"),
        "cut": (plain[: scan + 300], "file ends"),
        "cut, with EOI": (plain[: scan + 300] + b"\xff\xd9", "ends before"),
        "a byte more": (plain[:-2] + b"\x55\xff\xd9", "goes on"),
        "no tables": (plain[:tables] + plain[scan:], "Huffman table is missing"),
        "no quantisation": (plain[: plain.index(b"\xff\xdb")] + plain[frame:], "quantisation table is missing"),
        "twice": (plain[:-2] + plain[scan:], "twice"),
        "first scan only": (progressive[:second] + b"\xff\xd9", "lacks"),
        "no DC": (progressive[: progressive.index(b"\xff\xda")] + progressive[second:], "before the one"),
        "two frames": (plain[:frame] + plain[frame : frame + 19] + plain[frame:], "more than one"),
        "wrong restart": (restarts.replace(b"\xff\xd1", b"\xff\xd2", 1), "restart"),
        "lost restart": (restarts.replace(b"\xff\xd1", b"", 1), "restart"),
        "unannounced restart": (plain[:-2] + b"\xff\xd0\xff\xd9", "restart"),
        "DNL": (plain[:-2] + segment(0xDC, b"\0\x1e") + b"\xff\xd9", "DNL"),
        "all-ones code": (plain[:scan] + segment(0xC4, b"\0\2" + bytes(15) + b"\0\1") + plain[scan:], "prefix"),
    }


@pytest.mark.parametrize("name", refusals())
def test_refuses(name: str) -> None:
    data, reason = refusals()[name]
    with pytest.raises(NotTranscodableError, match=reason):
        read_coefficients(data)


@pytest.mark.parametrize("frame", [0, 2, 9, 10])
def test_damage_is_refused_or_read_as_libjpeg_reads_it_without_a_warning(tool: Tool, frame: int) -> None:
    rng = np.random.default_rng(frame)
    seed = seeds(tool)[frame]
    assert bytes((0xFF, 0xC0 + frame, 0)) in seed
    mutants = [mutate(rng, seed) for _ in range(1500)]
    taken, results, reasons = [], [], set()
    for mutant in mutants:
        try:
            results.append(read_coefficients(mutant))
            taken.append(mutant)
        except NotTranscodableError as error:
            reasons.add(str(error))
    assert 20 < len(taken) < len(mutants)
    assert len(reasons) > 5
    assert "" not in reasons
    for got, other in zip(results, read_by_libjpeg(tool, taken), strict=True):
        assert other is not None
        assert other[1] == 0
        assert_equal(got, other[0])


@pytest.mark.soak
def test_no_index_is_ever_outside_its_array(tool: Tool, tmp_path: Path) -> None:
    """The same damage with numba's bounds checks, which make an IndexError of what would be another's memory."""
    rng = np.random.default_rng(0)
    with (tmp_path / "mutants").open("wb") as file:
        for data in seeds(tool).values():
            for mutant in (data, *(mutate(rng, data) for _ in range(1000))):
                file.write(struct.pack("=I", len(mutant)) + mutant)
    script = """
import struct, sys
from pipeline.transcoder.coefficients import NotTranscodableError, read_coefficients
from pipeline.transcoder.entropy import window
import numpy as np
try:
    window(np.zeros(1, np.int64), 0)
    sys.exit("the bounds are not checked")
except IndexError:
    pass
taken = 0
with open(sys.argv[1], "rb") as file:
    while size := file.read(4):
        try:
            read_coefficients(file.read(struct.unpack("=I", size)[0]))
            taken += 1
        except NotTranscodableError:
            pass
print(taken)
"""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "mutants"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80


def test_every_cut_is_refused(tool: Tool) -> None:
    for data in seeds(tool).values():
        for end in range(0, len(data) - 1, 7):
            with pytest.raises(NotTranscodableError):
                read_coefficients(data[:end])
