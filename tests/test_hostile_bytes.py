"""What the fuzzer has found: files that somebody damaged or made up, each with the fewest bytes that show it."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import CheckpointError, check_fit, load_checkpoint
from model.weights import WeightsError, read_file
from pipeline.backends.pillow import decode_rgb
from pipeline.crop_jpeg import PREFIX, ROW, describe, read_layout, whole_picture
from pipeline.errors import DataError
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.scan import scan_shard
from pipeline.shards import RECORD, open_shards
from pipeline.transcoder import NotTranscodableError, to_crop_addressed
from tests.fuzz.crops import forged
from tests.jpegs import jpeg


def test_colours_that_libjpeg_does_not_know_are_not_guessed() -> None:
    """It decodes them with a warning, so what was written of them would have one too."""
    three = jpeg(1, 16, 16, "444")
    without_jfif = three[:2] + three[2 + 2 + int.from_bytes(three[4:6]) :]
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x02"
    with pytest.raises(NotTranscodableError, match="Adobe's transform 2 of 3 components"):
        to_crop_addressed(without_jfif[:2] + adobe + without_jfif[2:])
    assert describe(to_crop_addressed(three[:2] + adobe + three[2:]))[0]  # JFIF overrules it
    four = jpeg(1, 16, 16, "CMYK")
    at = four.index(b"Adobe") + 11
    with pytest.raises(NotTranscodableError, match="Adobe's transform 1 of 4 components"):
        to_crop_addressed(four[:at] + b"\x01" + four[at + 1 :])


def test_a_huffman_table_that_libjpeg_refuses_is_refused() -> None:
    data = bytearray(jpeg(1, 16, 16, "grey"))
    at = data.index(b"\xff\xc4")
    assert data[at + 4] == 0  # a DC table: its last symbol is that of a difference that no picture has
    data[at + 1 + int.from_bytes(data[at + 2 : at + 4])] = 16
    with pytest.raises(NotTranscodableError, match="a Huffman table is damaged"):
        to_crop_addressed(bytes(data))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\xff\xdd\x00\x04\x00\x02", b"\xff\xdd\x00\x04\x00\x01"),  # DRI is not the tiles' width
        (b"\xff\xdd\x00\x04\x00\x02", b""),
        (b"\x01\x22\x00", b"\x01\x12\x00"),  # the sampling factors are not the MCU's size
        (b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        (b"\xff\xda", b"\xff\x01\xff\xda"),
        (b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x0c\x02"),
    ],
)
def test_a_header_that_was_made_to_lie_is_not_indexed(old: bytes, new: bytes) -> None:
    """Its CRCs are right, and its crops would be other pixels than the whole's."""
    data = to_crop_addressed(jpeg(1, 64, 32))
    length, _ = describe(data)
    own = PREFIX.size + ROW.size * (read_layout(data[:length]).rows + 1)
    assert describe(forged(data[:length], data[length:])) == describe(data)
    assert old in data[own:length]
    lying = data[:own] + data[own:length].replace(old, new, 1)
    assert describe(forged(lying, data[length:])) == (0, 0)


def test_no_program_is_run_for_a_picture() -> None:
    """Pillow knows PostScript, for which it starts Ghostscript."""
    ran: list[str] = []
    sys.addaudithook(lambda event, _: ran.append(event) if event.startswith("subprocess.") else None)
    with pytest.raises(DataError, match="not a picture"):
        decode_rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert not ran


def tar(*members: tuple[str, bytes], **first: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in first.items():
                setattr(info, field, value)
            first = {}
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


GREY = jpeg(1, 8, 8, "grey")
PAIR = ("0.jpg", GREY), ("0.cls", b"1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            tar(*PAIR, pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "999999999999"}),
            "0.jpg .a file with holes.",
        ),
        (tar(*PAIR, pax_headers={"GNU.sparse.map": "0,x", "GNU.sparse.size": "1"}), "cannot be read"),
        (tar(*PAIR, type=b"x").replace(b"%011o" % len(GREY), b"7" * 11), "cannot be read|no plain file"),
        (tar(*PAIR, pax_headers={"size": "9" * 30}), "cannot be read"),
        (tar(("a\nb.jpg", GREY), ("0.cls", b"1")), r"'a\\nb.jpg' has no label: want 'a\\nb'.cls after it, got 0.cls"),
        (tar(PAIR[0], ("0.cls", b"9" * 5000)), "must hold a class number"),
        (tar(("0.jpg", b"text"), PAIR[1]), "0.jpg: not a picture"),
        (tar(*PAIR, PAIR[0]), "0.jpg has no label: want 0.cls after it, got the end"),
        (tar(*PAIR)[:-8000], "does not end as a tar does"),
        (tar(*PAIR, *PAIR).replace(b"0.jpg\0", b"1.jpg\0", 2).replace(b"1.jpg\0", b"0.jpg\0", 1), "damaged from byte"),
    ],
)
def test_a_tar_that_is_no_shard_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        scan_shard(tmp_path / "x.tar")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def set_in(path: str, value: object) -> Callable[[Any], None]:
    """Sets a value deep in a JSON document: "splits.train.shards.0.name"."""

    def change(content: Any) -> None:
        *way, key = (int(step) if step.isdigit() else step for step in path.split("."))
        for step in way:
            content = content[step]
        content[key] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", "a\nb" * 1000),
        ("splits", []),
        ("splits.train", 1),
        ("splits.train.shards", {}),
        *(
            ("splits.train.shards.0.name", name)
            for name in ("../x.tar", "/etc/passwd", "a/b", "", "..", "\0", "\ud800", 1)
        ),
        *(("splits.train.shards.0.samples", count) for count in (-1, 1.5, "1", True, float("inf"), 1 << 70)),
        ("splits.train.shards.0.sha256", None),
        ("splits.../x", {"shards": [], "index_sha256": ""}),
        ("classes", "abc"),
        ("made", []),
    ],
)
def test_a_manifest_that_leads_elsewhere_or_says_nonsense_is_refused(
    shards: Path, tmp_path: Path, path: str, value: object
) -> None:
    content = json.loads((shards / MANIFEST).read_text())
    if path.startswith("splits..."):
        content["splits"]["../x"] = value
    else:
        set_in(path, value)(content)
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("text", [b"[" * 100_000, b"9" * 5000, b"null", b"\xff"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(DataError):
        read_manifest(tmp_path)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("field", "value"),
    [("offset", 1 << 63), ("offset", 0), ("bytes", (1 << 32) - 1), ("width", 0), ("height", 0), ("header", 1 << 31)],
)
def test_an_index_that_points_outside_its_shard_is_refused(
    verbatim_shards: Path, tmp_path: Path, field: str, value: int
) -> None:
    """Before a buffer of four gigabytes is made for a picture."""
    for file in verbatim_shards.iterdir():
        (tmp_path / file.name).symlink_to(file)
    index = tmp_path / "train.index.npy"
    records = np.load(index)
    index.unlink()
    records[field][5] = value
    index.write_bytes(npy(records))
    with pytest.raises(DataError, match="sample 5 does not lie in train-"):
        open_shards(tmp_path, "train")


def test_no_room_is_made_for_a_size_that_only_the_index_claims() -> None:
    excerpt = whole_picture(GREY, 65535, 60000)  # 15.7 GB of pixels; what is no JPEG of this size is decoded by itself
    assert excerpt.components == 0
    assert whole_picture(GREY, 8, 8).components == 1


@pytest.mark.parametrize("number", range(6))
def test_an_index_that_is_none_is_refused(verbatim_shards: Path, tmp_path: Path, number: int) -> None:
    zipped = io.BytesIO()
    np.savez(zipped, np.zeros(42, RECORD))
    good = npy(np.zeros(42, RECORD))
    data = (zipped.getvalue(), b"", good[:-1], good.replace(b"(42,)", b"((42)"), npy(np.zeros(42)), good[:300])[number]
    for file in verbatim_shards.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "train.index.npy").unlink()
    (tmp_path / "train.index.npy").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        open_shards(tmp_path, "train")


VALUES: list[tuple[str, object]] = [
    *(("epoch", value) for value in (-1, "3", None, torch.ones(2), 1 << 40)),
    ("state_dict", None),
    ("state_dict", []),
    ("state_dict", {1: torch.ones(1)}),
    ("state_dict", {"a": 1}),
    *(("arch", value) for value in (None, "a\n" * 1000)),
    ("blocks", 1),
    ("blocks", ["1"]),
    ("blocks", [1 << 40]),
    ("optimizer", []),
    ("amp", 1),
    ("best_acc1", "1"),
    ("best_acc1", torch.ones(2)),
    ("classes", [1, 2]),
    ("loader", [1]),
    ("loader", {"position": torch.ones(2)}),
    ("position", {"position": -1}),
    ("sums", [1, 2, 3]),
    ("sums", None),
]


@pytest.mark.parametrize(("key", "value"), VALUES)
def test_a_checkpoint_of_other_kinds_of_values_is_refused(tmp_path: Path, key: str, value: object) -> None:
    weights = {"last_linear.weight": torch.ones(2, 1)}
    state = {"epoch": 1, "arch": "inceptionv4", "state_dict": weights, "optimizer": {}, "best_acc1": torch.tensor(1.5)}
    state |= {"loader": {"epoch": 1, "position": 3}, "sums": [3, 0.5, 1.0, 2.0]}
    path = tmp_path / "c.pth.tar"
    torch.save(state, path)
    check_fit(load_checkpoint(path), path, blocks=(1, 1, 1), classes=2, names=None)
    torch.save(state | {"loader" if key == "position" else key: value}, path)
    with pytest.raises(CheckpointError, match=rf"its [\w, ]*{key}[\w, ]* cannot be used"):
        load_checkpoint(path)


def test_a_classifier_that_is_one_number_is_none(tmp_path: Path) -> None:
    state = {"arch": "inceptionv4", "state_dict": {"last_linear.weight": torch.tensor(1.0)}}
    with pytest.raises(CheckpointError, match="no classifier"):
        check_fit(state, tmp_path / "c.pth.tar", blocks=(1, 1, 1), classes=2, names=None)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_name_as_long_as_a_book_is_refused_before_torch_searches_it(tmp_path: Path, zipped: bool) -> None:
    """torch 2.13 looks for patterns in its own error in quadratic time: 70 s for this file."""
    path, text = tmp_path / "w.pth", b"\x80\x02ctorch\n" + b"x" * 40_000 + b"\n."
    path.write_bytes(text)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", text)
    with pytest.raises(WeightsError, match="40,006 characters are no name"):
        read_file(path)
