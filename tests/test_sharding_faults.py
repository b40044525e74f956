"""Bad input and bad luck while shards are made and checked: a test for each fault, by its number."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, features

from pipeline.errors import ConfigError, DataError
from pipeline.exif import read_orientation
from pipeline.folder import folder_classes, folder_splits, open_folder
from pipeline.manifest import read_manifest
from pipeline.outcome import Outcome, read_outcome
from pipeline.plan import plan_shards, sample_keys
from pipeline.prepare import JPEG_MODES, Prepared, Recode, prepare
from pipeline.scan import scan_shard
from pipeline.shard_writer import Policy, ShardWriter
from pipeline.shards import open_shards
from pipeline.transcoder.survey import MAX_SCANS
from pipeline.verify import verify_shards
from pipeline.writer import WriterConfig, write_shards
from tests.conftest import ROOT, Run
from tests.jpegs import decoded, jpeg
from tests.photos import photo, write_photos
from tests.test_coefficients import Tool, segment
from tests.test_coefficients import tool as tool
from tests.test_shards import content

RECODE = Recode(max_side=100, quality=90)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def said(picture: Prepared, kind: str) -> list[str]:
    return [remark.text for remark in picture.remarks if remark.kind == kind]


def damage(data: bytes, mode: str = "crop") -> str:
    """Why a picture is refused."""
    with pytest.raises(DataError) as error:
        prepare(mode, data, RECODE)
    return str(error.value)


def nearly(data: bytes, want: np.ndarray, tolerance: float = 1.5) -> None:
    """A picture that was encoded at quality 98 is still the same to the eye."""
    got = decoded(data).astype(int)
    assert got.shape == want.shape
    assert abs(got - want).mean() < tolerance


def a_class(root: Path, **files: bytes) -> Path:
    """A data set of one class: a good picture, and these files."""
    folder = root / "train" / "a"
    folder.mkdir(parents=True)
    for name, data in {"good": jpeg(1, 40, 30), **files}.items():
        (folder / f"{name}.JPEG").write_bytes(data)
    return root


def one_shard(source: Path, destination: Path, on_error: str = "fail", on_warning: str = "keep") -> Outcome:
    """What becomes of all training pictures, without a process to be started."""
    splits = folder_splits(source)
    folder = open_folder(splits["train"], folder_classes(splits))
    writer = ShardWriter(
        folder=folder,
        source=str(source),
        destination=destination,
        jpeg="crop",
        recode=RECODE,
        policy=Policy(on_error=on_error, on_warning=on_warning),
        run="",
        before=None,
    )
    return writer(plan_shards(folder, "train", seed=0, shard_bytes=1e9)[0], lambda: None)


# 1 - 13: pictures


@pytest.mark.parametrize("mode", JPEG_MODES)
@pytest.mark.parametrize("progressive", [False, True])
def test_fault_01_truncated_jpeg(mode: str, progressive: bool) -> None:
    data = jpeg(1, 90, 70, progressive=progressive)
    assert "truncated (no end-of-image marker)" in damage(data[:-200], mode)
    assert "truncated" in damage(data[:20], mode)
    # Cut in the middle and given an end: libjpeg would show grey, and only warn.
    assert "truncated: the entropy-coded data ends before" in damage(data[: len(data) // 2] + b"\xff\xd9", mode)
    restarts = encoded(photo(1, 90, 70), "JPEG", restart_marker_blocks=2)
    assert "truncated: restart markers are missing" in damage(restarts[: len(restarts) // 2] + b"\xff\xd9", mode)


@pytest.mark.parametrize("transform", [0, 2])
def test_fault_02_cmyk_jpeg(transform: int) -> None:
    """Adobe's marker says whether it is CMYK or YCCK; Adobe writes both inverted."""
    data = bytearray(jpeg(3, 90, 70, "CMYK"))
    marker = data.index(b"\xff\xee")
    assert data[marker + 4 : marker + 9] == b"Adobe"
    data[marker + 15] = transform
    c, m, y, k = np.moveaxis(simplejpeg.decode_jpeg(bytes(data), "CMYK").astype(float), 2, 0)
    picture = prepare("crop", bytes(data), RECODE)
    nearly(picture.data, np.stack([c * k, m * k, y * k], axis=2) / 255)
    assert picture.header
    kind = "YCCK" if transform else "CMYK"
    assert said(picture, "normalised") == [f"a JPEG, {kind} converted to RGB, encoded as JPEG (quality 98, 4:4:4)"]
    assert prepare("verbatim", bytes(data), RECODE).data == data
    assert said(prepare("verbatim", bytes(data), RECODE), "kept") == [
        f"a JPEG, {kind} converted to RGB, when it is decoded"
    ]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP"])
def test_fault_03_another_kind_named_jpeg(kind: str) -> None:
    if not features.check("webp") and kind == "WEBP":
        assert "WebP, which this build of Pillow cannot read" in damage(b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40))
        return
    data = encoded(photo(2, 61, 47), kind)
    picture = prepare("crop", data, RECODE)
    nearly(picture.data, decoded(data), 3)
    assert picture.header
    palette = ", palette expanded" if kind == "GIF" else ""
    assert said(picture, "normalised") == [f"a {kind}{palette}, encoded as JPEG (quality 98, 4:4:4)"]
    assert prepare("verbatim", data, RECODE).data == data
    assert prepare("recode", data, RECODE).header


def test_fault_03_is_in_the_manifest_and_said(tmp_path: Path) -> None:
    source = a_class(tmp_path / "src", other=encoded(photo(2, 61, 47), "PNG"))
    process = make_shards(source, tmp_path / "dst", "--workers", 1)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "\n1 picture: no grey or colour JPEG" in out
    made = read_manifest(tmp_path / "dst").made
    assert made["normalised"] == ["train/a/other.JPEG: a PNG, encoded as JPEG (quality 98, 4:4:4)"]
    assert made["not_crop_addressed"] == 0
    shards = open_shards(tmp_path / "dst", "train")
    assert shards.records["header"].all()
    shards.close()


@pytest.mark.parametrize("mode", JPEG_MODES)
def test_fault_04_exif_orientation(mode: str) -> None:
    """Ignored, as in the original recipe, and counted."""
    image, exif = photo(4, 90, 70), Image.Exif()
    for orientation in (1, 6):
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG"):
            picture = prepare(mode, encoded(image, kind, exif=exif), RECODE)
            assert (picture.width, picture.height) == image.size
            assert len(said(picture, "exif_orientation")) == (orientation != 1)
    written = exif.tobytes()
    assert read_orientation(b"Exif\0\0" * (not written.startswith(b"Exif")) + written) == 6
    big = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0"
    assert read_orientation(big) == 8
    assert all(read_orientation(big[:end]) == 1 for end in range(len(big) - 2))


@pytest.mark.parametrize("mode", JPEG_MODES)
def test_fault_05_empty_file(mode: str) -> None:
    assert damage(b"", mode) == "the file is empty"
    assert "not a picture" in damage(b"hello", mode)
    assert "%!PS" not in damage(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", mode)  # nothing is run


def test_fault_06_more_than_8_bits() -> None:
    ramp = np.linspace(0, 0xFFFF, 64 * 48).reshape(48, 64)
    for kind in ("PNG", "TIFF", "PPM"):
        picture = prepare("crop", encoded(Image.fromarray(ramp.astype(np.uint16)), kind), RECODE)
        nearly(picture.data, np.repeat(ramp[..., None] / 257, 3, axis=2))  # not clipped at 255
        assert said(picture, "normalised")[0].startswith(f"a {kind}, 16 bits scaled to 8")
    for samples, reason in ((ramp.astype(np.float32), "floating point"), (ramp.astype(np.int32) * 999, "16 bits")):
        assert reason in damage(encoded(Image.fromarray(samples), "TIFF"))
    data = bytearray(jpeg(1, 40, 30))
    data[data.index(b"\xff\xc0") + 4] = 12
    assert damage(bytes(data)) == "a JPEG of 12 bits per sample, where only 8 can be read"


def test_fault_07_grey() -> None:
    """A grey JPEG stays one, of any other kind becomes one; both decode to RGB."""
    grey = photo(7, 64, 48, "L")
    for data in (encoded(grey, "JPEG"), encoded(grey, "PNG"), encoded(grey.convert("LA"), "PNG")):
        picture = prepare("crop", data, RECODE)
        nearly(picture.data, decoded(data))
        assert Image.open(io.BytesIO(picture.data)).mode == "L"
        assert picture.header


def test_fault_08_alpha_and_palette() -> None:
    image = photo(8, 64, 48)
    veiled = image.copy()
    veiled.putalpha(Image.new("L", image.size, 7))
    picture = prepare("crop", encoded(veiled, "PNG"), RECODE)
    nearly(picture.data, np.asarray(image))  # dropped, not blended
    assert said(picture, "normalised") == ["a PNG, alpha dropped, encoded as JPEG (quality 98, 4:4:4)"]
    indexed = image.quantize(64)
    for options, also in (({}, ""), ({"transparency": 3}, ", alpha dropped")):
        picture = prepare("crop", encoded(indexed, "PNG", **options), RECODE)
        nearly(picture.data, np.asarray(indexed.convert("RGB")), 3)
        assert f"palette expanded{also}, encoded" in said(picture, "normalised")[0]
    film = encoded(indexed, "GIF", save_all=True, append_images=[photo(9, 64, 48).quantize(64)])
    assert "first frame taken" in said(prepare("crop", film, RECODE), "normalised")[0]


def chunk(content: bytes) -> bytes:
    """A chunk of a PNG."""
    return (len(content) - 4).to_bytes(4) + content + zlib.crc32(content).to_bytes(4)


def with_size(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2) + width.to_bytes(2) + data[at + 4 :]


def test_fault_09_decompression_bomb_is_refused_before_allocation(tmp_path: Path) -> None:
    """With room for 200 MB: a claim of 65500 x 65500 pixels would take 26 GB of coefficients, 16000 x 16000 1.5 GB."""
    small = with_size(jpeg(1, 8, 8, "grey"), 16, 16)
    bombs = {
        "absurd": with_size(small, 65500, 65500),
        "within the limit": with_size(small, 16000, 16000),
        "png": b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR" + b"\0\1\0\0" * 2 + b"\1\0\0\0\0")  # 65536 x 65536 in black and white
        + chunk(b"IDAT" + zlib.compress(bytes(99))),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    script = """
        import resource, sys
        from pathlib import Path
        from pipeline.errors import DataError
        from pipeline.prepare import JPEG_MODES, Recode, prepare
        from pipeline.transcoder import NotTranscodableError, compile_kernels, to_crop_addressed
        compile_kernels()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
        for path in sorted(Path(sys.argv[1]).iterdir()):
            for mode in JPEG_MODES:
                try:
                    prepare(mode, path.read_bytes(), Recode(max_side=100, quality=90))
                except DataError as error:
                    print(error)
            try:
                to_crop_addressed(path.read_bytes())
            except NotTranscodableError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * (len(JPEG_MODES) + 1)
    assert lines[0] == "the header claims an absurd size: 65500x65500 pixels, 268435456 are allowed"
    assert lines[-1] == "the file is too short for the size that it states: 16000x16000 pixels"
    assert sum("absurd size" in line for line in lines) == 2 * len(JPEG_MODES)


def test_fault_10_progressive_with_too_many_scans() -> None:
    data = jpeg(1, 64, 48, progressive=True)
    picture = prepare("crop", data, RECODE)
    assert np.array_equal(decoded(picture.data), decoded(data))
    assert (len(said(picture, "progressive")), said(picture, "normalised")) == (1, [])
    last = data.rindex(b"\xff\xda")
    many = data[:-2] + data[last:-2] * 5000 + b"\xff\xd9"
    for mode in JPEG_MODES:
        assert damage(many, mode) == f"a JPEG of more than {MAX_SCANS} scans, which would take too long"
    # Metadata may hold what looks like scans.
    note = segment(0xFE, b"\xff\xda\0\x02" * 300)
    assert prepare("crop", data[:2] + note + data[2:], RECODE).data == picture.data
    assert prepare("crop", data + b"\xff\xda" * 300 + b"\xff\xd9", RECODE).data == picture.data


def test_fault_11_arithmetic_coded(tool: Tool) -> None:
    plain = jpeg(1, 64, 48)
    for scans in ((), ("progressive",)):
        picture = prepare("crop", tool("recode", "arith", 0, *scans, data=plain), RECODE)
        assert np.array_equal(decoded(picture.data), decoded(plain))
        assert (len(said(picture, "arithmetic")), len(said(picture, "progressive"))) == (1, len(scans))


@pytest.mark.parametrize("mode", JPEG_MODES)
def test_fault_12_bad_huffman_table(mode: str) -> None:
    data = jpeg(1, 64, 48)
    at = data.index(b"\xff\xc4") + 5
    assert data[at : at + 3] == b"\0\1\5"
    full = data[:at] + b"\3\1\2" + data[at + 3 :]  # three codes of one bit
    long = data[:at] + b"\xff" + data[at + 1 :]  # more symbols than the segment has
    assert damage(full, mode) == "a Huffman table holds no prefix code"
    assert damage(long, mode) == "a Huffman table is damaged"


def test_fault_13_corrupt_data_that_decodes_with_warnings(tmp_path: Path) -> None:
    data = jpeg(1, 64, 48)
    extra = data[:-2] + b"\x12\x34\x56\xff\xd9"
    warning = "Corrupt JPEG data: 1 extraneous bytes before marker 0xd9"
    picture = prepare("crop", extra, RECODE)
    assert picture.header
    assert said(picture, "warnings") == [warning]
    nearly(picture.data, decoded(data))  # what libjpeg shows
    assert prepare("verbatim", extra, RECODE).data == extra
    for mode in JPEG_MODES:
        assert said(prepare(mode, extra, RECODE), "warnings") == [warning]
        assert not said(prepare(mode, data, RECODE), "warnings")

    source = a_class(tmp_path / "src", extra=extra)
    line = f"train/a/extra.JPEG: it decodes with a warning: {warning}"
    kept = one_shard(source, tmp_path)
    assert kept.lines["warnings"] == [f"train/a/extra.JPEG: {warning}"]
    assert len(kept.records) == 2
    assert one_shard(source, tmp_path, on_warning="fail").damaged == [line]
    left = one_shard(source, tmp_path, on_warning="skip")
    assert left.lines == {"skipped": [line]}
    assert len(left.records) == 1


def test_fault_01_and_05_are_all_listed_and_skipped_on_request(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "src", classes=2, train=8, val=2)
    (source / "train/class0/empty.jpg").write_bytes(b"")
    (source / "train/class1/text.jpg").write_bytes(b"hello")
    whole = next((source / "train/class0").glob("*_0.JPEG"))
    whole.write_bytes(whole.read_bytes()[:-200])
    names = {"train/class0/empty.jpg", "train/class1/text.jpg", f"train/class0/{whole.name}"}

    config = WriterConfig(source=source, destination=tmp_path / "dst", shard_mb=0.05)
    with pytest.raises(DataError) as error:
        write_shards(config)
    assert all(name in str(error.value) for name in names)
    assert not (tmp_path / "dst/manifest.json").exists()

    skip = WriterConfig(source=source, destination=tmp_path / "dst", shard_mb=0.05, on_error="skip", resume=True)
    manifest, skipped = write_shards(skip)
    assert {line.split(":")[0] for line in skipped} == names
    assert sum(info.samples for info in manifest.splits["train"]) == 16 + 2 - 3
    assert read_manifest(tmp_path / "dst").made["skipped"] == skipped


# 15 - 19: shards


def test_fault_15_a_shard_that_does_not_begin_as_a_tar(shards: Path, tmp_path: Path) -> None:
    """Of the right size, so that only a look inside tells; a hash tells the rest."""
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    path, manifest = broken / "train-000001.tar", read_manifest(broken)
    good = path.read_bytes()
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("readme.txt"))
    for head in (bytes(512), good[:100] + b"x" + good[101:512], other.getvalue()[:512]):
        path.write_bytes(head + good[512:])
        with pytest.raises(DataError, match=r"shard .*train-000001\.tar (does not begin|begins with 'readme)"):
            open_shards(broken, "train")
    open_shards(broken, "val").close()
    path.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    open_shards(broken, "train").close()
    (broken / "train-000000.tar").unlink()
    with pytest.raises(DataError) as error:
        verify_shards(manifest, "train", workers=1)
    assert "train-000001.tar: want sha256" in str(error.value)
    assert "train-000000.tar cannot be read: No such file" in str(error.value)
    verify_shards(manifest, "val", workers=1)


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    data = jpeg(1, 8, 8)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            text = b"0" if member.name.endswith(".cls") else data
            member.size = len(text) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(text))
    return path


def a_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def test_fault_16_tar_members_that_lead_out_are_named_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.jpg").write_bytes(jpeg(1, 8, 8))
    odd = (
        (a_member("../escaped.jpg"), "../escaped.jpg (a name that leads out)"),
        (a_member("a/../../escaped.jpg"), "a/../../escaped.jpg (a name that leads out)"),
        (a_member(f"{tmp_path}/absolute.jpg"), f"{tmp_path}/absolute.jpg (an absolute name)"),
        (a_member("link.jpg", tarfile.SYMTYPE, "../secret.jpg"), "link.jpg (a symbolic link)"),
        (a_member("hard.jpg", tarfile.LNKTYPE, "../secret.jpg"), "hard.jpg (a hard link)"),
        (a_member("null.jpg", tarfile.CHRTYPE), "null.jpg (a device)"),
        (a_member("pipe.jpg", tarfile.FIFOTYPE), "pipe.jpg (a pipe)"),
        (a_member("folder.jpg", tarfile.DIRTYPE), "folder.jpg (a folder)"),
    )
    tar = tar_of(tmp_path / "in" / "train-000000.tar", a_member("a.jpg"), a_member("a.cls"), *(m for m, _ in odd))
    with pytest.raises(DataError) as error:
        scan_shard(tar)
    assert all(line in str(error.value) for _, line in odd)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "secret.jpg"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["train-000000.tar"]


def test_fault_17_duplicate_keys(shards: Path, tmp_path: Path, run_here: Run) -> None:
    twice = [a_member(name) for name in ("a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls")]
    with pytest.raises(DataError, match=r"train-000000\.tar holds a key twice: a"):
        scan_shard(tar_of(tmp_path / "train-000000.tar", *twice))
    # Over shards: one is there twice, and the manifest says so.
    both = tmp_path / "both"
    shutil.copytree(shards, both)
    shutil.copy(both / "val-000000.tar", both / "val-000001.tar")
    shutil.copy(both / "val-000000.idx", both / "val-000001.idx")
    manifest = json.loads((both / "manifest.json").read_text())
    infos = manifest["splits"]["val"]["shards"]
    infos[1] = infos[0] | {"name": infos[1]["name"]}
    (both / "manifest.json").write_text(json.dumps(manifest))
    checked = run_here("tools/check_shards.py", both, "--workers", 1)
    assert checked.returncode == 1
    assert "val-000001.tar and val-000000.tar both hold the key" in checked.stdout


def test_fault_18_a_picture_without_a_class_is_an_error(tmp_path: Path) -> None:
    source = a_class(tmp_path / "src")
    for number in range(5):
        (source / f"train/stray{number}.JPEG").write_bytes(jpeg(number, 8, 8))
    (source / "train/notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"5 pictures beside the class folders have no class: .*stray0.* and 2 more"):
        write_shards(WriterConfig(source=source, destination=tmp_path / "dst"))
    assert not list((tmp_path / "dst").iterdir())


@pytest.mark.parametrize("names", [("a.jpg",), ("a.jpg", "b.jpg", "b.cls"), ("a.cls", "a.jpg"), ("a.jpg", "b.cls")])
def test_fault_18_a_missing_label_is_named(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg has no label: want a\.cls|got a\.cls, which belongs to no picture"):
        scan_shard(tar_of(tmp_path / "train-000000.tar", *map(a_member, names)))


def test_fault_19_a_label_beyond_the_classes(shards: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(shards, wrong)
    index = np.load(wrong / "train.index.npy")
    index["label"][3] = 3
    np.save(wrong / "train.index.npy", index)
    with pytest.raises(DataError, match=r"train\.index\.npy: a label is outside 0 \.\.\. 2, the classes there are"):
        open_shards(wrong, "train")


# 20 - 23: files, disks and processes


def test_fault_20_odd_names_are_kept_unique_and_reversible(tmp_path: Path) -> None:
    """Dots would end a key for webdataset, blanks would end a name in an .idx, twins would be merged."""
    folder = tmp_path / "folder" / "train" / "a class.v1"
    folder.mkdir(parents=True)
    names = ["a.b.c.jpg", "a b.jpg", "twin.jpg", "twin.png", "ünï.jpg", "%41.jpg"]
    names += ["x" * 200 + ".jpg", "x" * 201 + ".jpg"]
    names += ["third.jpg", "third.png", "third.jpg.png"]  # the first one's key with extension is the last one's stem
    names.append(os.fsdecode(b"not-utf8-\xff.jpg"))
    for name in names:
        (folder / name).write_bytes(jpeg(1, 8, 8))
    splits = folder_splits(tmp_path / "folder")
    keys = sample_keys(open_folder(splits["train"], folder_classes(splits)))
    assert len(set(keys)) == len(names)
    assert all(key.isascii() and "." not in key and " " not in key and len(key) <= 88 for key in keys)
    assert {"a%20class%2Ev1/a%2Eb%2Ec", "a%20class%2Ev1/twin%2Ejpg", "a%20class%2Ev1/twin%2Epng"} <= set(keys)
    assert "a%20class%2Ev1/%2541" in keys
    # Where a picture is named, its name can be printed.
    (folder / names[-1]).write_bytes(b"damaged")
    outcome = one_shard(tmp_path / "folder", tmp_path, on_error="skip")
    assert outcome.lines["skipped"][0].startswith(r"train/a class.v1/not-utf8-\xff.jpg: not a picture")
    assert len(outcome.records) == len(names) - 1
    assert read_outcome(tmp_path, "train-000000.tar") is not None


def test_fault_21_unreadable_files_are_all_listed(tmp_path: Path) -> None:
    folder = a_class(tmp_path / "src") / "train" / "a"
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")  # nobody writes into it: who waits, waits for ever
    (folder / "device.jpg").symlink_to("/dev/null")
    (folder / "secret.jpg").write_bytes(jpeg(1, 8, 8))
    (folder / "secret.jpg").chmod(0)
    reasons = {
        "gone.jpg": "cannot be read: No such file or directory",
        "folder.jpg": "cannot be read: Is a directory",
        "pipe.jpg": "cannot be read: not a regular file",
        "device.jpg": "cannot be read: not a regular file",
    }
    if os.geteuid():
        reasons["secret.jpg"] = "cannot be read: Permission denied"
    else:
        print("root reads a file of mode 000: that one is not looked for")
    outcome = one_shard(tmp_path / "src", tmp_path)
    assert sorted(outcome.damaged) == sorted(f"train/a/{name}: {reason}" for name, reason in reasons.items())


def test_fault_21_unreadable_folders_are_all_listed(tmp_path: Path) -> None:
    train = a_class(tmp_path / "src") / "train"
    for name in ("b", "c"):
        (train / name).symlink_to("nowhere")
    with pytest.raises(
        DataError, match=r"2 folders cannot be read:\n.*train/[bc]: a link that leads nowhere\n.*train/[bc]"
    ):
        write_shards(WriterConfig(source=tmp_path / "src", destination=tmp_path / "dst"))
    for name in ("b", "c"):
        (train / name).unlink()
        (train / name).mkdir(mode=0)
    if not os.geteuid():
        pytest.skip("root lists a folder of mode 000")
    with pytest.raises(DataError, match=r"2 folders cannot be read:\n.*train/b: Permission denied\n.*train/c"):
        write_shards(WriterConfig(source=tmp_path / "src", destination=tmp_path / "dst"))


def make_shards(source: Path, destination: Path, *args: object, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools/make_shards.py"), str(source), str(destination), *map(str, args)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"} | env,
    )


@pytest.mark.soak
def test_fault_22_disk_full_while_sharding(folder: Path, shards: Path, tmp_path: Path) -> None:
    """A limit on a file's size stands for the disk: the second write of a long tar fails just so."""
    destination = tmp_path / "dst"
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    script += "from pipeline.make_shards import main; main()"
    command = [sys.executable, "-c", script, str(folder), str(destination), "--shard-mb", "0.1", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("error") == 1, done.stderr
    assert f"error: cannot write {destination}/train-0000" in done.stderr
    assert done.stderr.endswith(".tar: File too large; make room, then go on with --resume\n")
    assert not list(destination.glob(".*.partial"))
    assert not list(destination.glob("*.tar"))
    write_shards(WriterConfig(source=folder, destination=destination, shard_mb=0.1, resume=True))
    assert content(destination) == content(shards)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Forty pictures of all kinds, of which one is damaged and some are remarkable."""
    source = write_photos(tmp_path / "src", classes=2, train=20, val=1)
    plain = jpeg(1, 64, 48)
    (source / "train/class0/cut.jpg").write_bytes(plain[:-100])
    (source / "train/class1/extra.jpg").write_bytes(plain[:-2] + b"\x12\x34\x56\xff\xd9")
    for number in range(6):
        photo(number, 50, 40).save(source / f"train/class{number % 2}/other{number}.jpg", "PNG")
    return source


@pytest.mark.soak
def test_fault_23_resuming_remembers_what_the_tars_do_not_hold(damaged: Path, tmp_path: Path) -> None:
    """Killed after half of the shards, with pictures left out: the same manifest, and no shard is written anew."""
    config = {"source": damaged, "shard_mb": 0.1, "on_error": "skip", "workers": 1}
    manifest, skipped = write_shards(WriterConfig(destination=tmp_path / "whole", **config))  # type: ignore[arg-type]
    assert (len(skipped), len(manifest.made["normalised"]), len(manifest.made["warnings"])) == (1, 7, 1)
    assert manifest.made["progressive"] == 6
    half = tmp_path / "half"
    process = make_shards(damaged, half, "--shard-mb", 0.1, "--on-error", "skip", "--workers", 1)
    deadline = time.monotonic() + 60
    while len(list(half.glob(".train-*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not (half / "manifest.json").exists()
    before = {tar.name: tar.stat().st_mtime_ns for tar in half.glob("*.tar") if (half / f".{tar.stem}.json").exists()}
    assert before
    for tar in half.glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / "whole" / tar.name).read_bytes()
    write_shards(WriterConfig(destination=half, resume=True, **config))  # type: ignore[arg-type]
    assert content(half) == content(tmp_path / "whole")
    assert before == {name: (half / name).stat().st_mtime_ns for name in before}
    # And a finished folder that lost a tar.
    (half / "train-000001.tar").unlink()
    write_shards(WriterConfig(destination=half, resume=True, **config))  # type: ignore[arg-type]
    assert content(half) == content(tmp_path / "whole")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "many", classes=2, train=120, val=2)


@pytest.mark.soak
def test_fault_23_sigkill_while_sharding_leaves_nothing_half_and_resumes(many: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_shards(WriterConfig(source=many, destination=whole, shard_mb=0.2, workers=2))
    killed = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "tools/make_shards.py"), str(many), str(killed), "--shard-mb", "0.2"]
    for _ in range(2):
        process = subprocess.Popen([*command, "--workers", "2", "--resume"], stderr=subprocess.DEVNULL)
        before = len(list(killed.glob("*.tar")))
        deadline = time.monotonic() + 60
        while len(list(killed.glob("*.tar"))) < before + 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for tar in killed.glob("*.tar"):  # whatever is visible is whole
            assert tar.read_bytes() == (whole / tar.name).read_bytes()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert content(killed) == content(whole)


# Several machines


def ranks(world: int, source: Path, destination: Path, *args: object) -> list[tuple[int, str, str]]:
    """Exit code and output of each of ``world`` processes that share the work."""
    processes = [
        make_shards(source, destination, "--workers", 1, *args, RANK=str(rank), WORLD_SIZE=str(world))
        for rank in reversed(range(world))
    ][::-1]
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.soak
def test_three_ranks_write_what_one_does(damaged: Path, tmp_path: Path) -> None:
    config = {"source": damaged, "shard_mb": 0.1, "on_error": "skip"}
    write_shards(WriterConfig(destination=tmp_path / "one", **config))  # type: ignore[arg-type]
    three, rest = tmp_path / "three", ("--shard-mb", 0.1, "--on-error", "skip")
    done = ranks(3, damaged, three, *rest)
    assert [code for code, _, _ in done] == [0, 0, 0], done
    assert content(three) == content(tmp_path / "one")
    assert "is complete" in done[0][1]
    assert "rank 2 of 3 writes the shards n with n % 3 == 2" in done[2][1]
    assert "rank 2 is done" in done[2][1]


@pytest.mark.soak
def test_three_ranks_list_all_damaged_pictures_and_go_on(damaged: Path, tmp_path: Path) -> None:
    """Each lists its own, rank 0 all. What that run left does not confuse the next."""
    for number in range(8):
        (damaged / f"train/class0/bad{number}.jpg").write_bytes(b"bad")
    destination = tmp_path / "dst"
    done = ranks(3, damaged, destination, "--shard-mb", 0.1)
    assert done[0][0] == 1
    assert "9 damaged pictures" in done[0][2]
    assert not (destination / "manifest.json").exists()
    done = ranks(3, damaged, destination, "--shard-mb", 0.1, "--on-error", "skip", "--resume")
    assert [code for code, _, _ in done] == [0, 0, 0], done
    write_shards(WriterConfig(source=damaged, destination=tmp_path / "one", shard_mb=0.1, on_error="skip"))
    assert content(destination) == content(tmp_path / "one")


def test_a_rank_that_fails_ends_the_others(folder: Path, tmp_path: Path) -> None:
    """Rank 1 sees a source with a class that cannot be read; the others say so and end."""
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "train/class9").symlink_to("nowhere")
    destination = tmp_path / "dst"
    processes = [
        make_shards(broken if rank == 1 else folder, destination, "--workers", 1, RANK=str(rank), WORLD_SIZE="3")
        for rank in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert processes[0].returncode == processes[1].returncode == 1
    assert "1 folder cannot be read" in outputs[1][1]
    assert "rank 1 has failed, so rank 0 ends: 1 folder cannot be read" in outputs[0][1]
    assert not (destination / "manifest.json").exists()
    assert "Traceback" not in "".join(error for _, error in outputs)


@pytest.mark.parametrize(("rank", "world"), [(3, 3), (-1, 2), (0, 0)])
def test_a_rank_outside_its_world_is_a_wrong_call(rank: int, world: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RANK must be in"):
        WriterConfig(source=tmp_path, destination=tmp_path, rank=rank, world_size=world)
