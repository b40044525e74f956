from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.backends import is_installed
from pipeline.errors import ConfigError, DataError
from pipeline.manifest import read_manifest
from pipeline.shards import open_shards
from pipeline.writer import WriterConfig, write_shards
from tests.photos import write_photos


def content(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


def originals(folder: Path, split: str) -> dict[str, tuple[int, bytes]]:
    """Key -> class number and bytes, straight from the folder."""
    classes = sorted(path.name for path in (folder / split).iterdir())
    return {
        f"{path.parent.name}/{path.stem}": (classes.index(path.parent.name), path.read_bytes())
        for path in (folder / split).glob("*/*")
    }


@pytest.mark.parametrize("split", ["train", "val"])
def test_our_reader_gives_the_original_bytes(folder: Path, verbatim_shards: Path, split: str) -> None:
    want = originals(folder, split)
    source = open_shards(verbatim_shards, split)
    got = {}
    for i in range(len(source)):
        key = source.name(i).split(": ")[1].removesuffix(".jpg")
        got[key] = (int(source.labels[i]), source.read(i))
    assert got == want
    pictures = source.open(np.arange(len(source)))
    sizes = set(zip(pictures.widths.tolist(), pictures.heights.tolist(), strict=True))
    assert {(240, 180), (181, 243), (31, 29)} <= sizes
    source.close()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.filterwarnings("ignore")  # the library's own
def test_webdataset_reads_them(folder: Path, verbatim_shards: Path, split: str) -> None:
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed: pip install webdataset")
    files = sorted(str(path) for path in verbatim_shards.glob(f"{split}-*.tar"))
    assert len(files) > 1
    read = wds.WebDataset(files, shardshuffle=False)
    assert {s["__key__"]: (int(s["cls"]), s["jpg"]) for s in read} == originals(folder, split)


@pytest.mark.parametrize("with_idx", [True, False])
def test_dali_reads_them(folder: Path, verbatim_shards: Path, with_idx: bool) -> None:
    if not is_installed("dali"):
        pytest.skip("DALI is not installed: pip install nvidia-dali-cuda130")
    import nvidia.dali

    dali: Any = nvidia.dali
    tars = sorted(str(path) for path in verbatim_shards.glob("train-*.tar"))
    want = originals(folder, "train")
    pipe = dali.Pipeline(batch_size=len(want), num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipe:
        options = {"index_paths": [tar.replace(".tar", ".idx") for tar in tars]} if with_idx else {}
        pipe.set_outputs(*dali.fn.readers.webdataset(paths=tars, ext=["jpg", "cls"], **options))
    pipe.build()
    pictures, labels = pipe.run()
    got = sorted((int(labels.at(i).tobytes()), pictures.at(i).tobytes()) for i in range(len(want)))
    assert got == sorted(want.values())


def test_the_default_keeps_every_pixel(folder: Path, shards: Path) -> None:
    """Crop-addressed shards, decoded whole with plain Pillow, are the pictures they were made from."""
    for split in ("train", "val"):
        source = open_shards(shards, split)
        got = {source.name(i).split(": ")[1].removesuffix(".jpg"): source.read(i) for i in range(len(source))}
        want = originals(folder, split)
        assert got.keys() == want.keys()
        assert source.records["header"].all()
        for key, (_, data) in want.items():
            assert got[key] != data
            assert np.array_equal(decoded(got[key]), decoded(data))


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_bytes_do_not_depend_on_the_number_of_workers(folder: Path, shards: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        destination = tmp_path / str(workers)
        write_shards(WriterConfig(source=folder, destination=destination, shard_mb=0.1, workers=workers))
        assert content(destination) == content(shards)


def test_every_shard_is_a_mixture_and_the_seed_matters(shards: Path, folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(shards)
    sizes = [info.samples for info in manifest.splits["train"]]
    assert max(sizes) - min(sizes) <= 1
    labels = open_shards(shards, "train").labels
    assert (np.diff(labels) != 0).sum() > len(labels) / 3  # sorted by class there would be two changes
    write_shards(WriterConfig(source=folder, destination=tmp_path / "other", shard_mb=0.1, seed=1))
    assert not np.array_equal(open_shards(tmp_path / "other", "train").labels, labels)


def test_the_manifest_is_true(shards: Path) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["classes"] == ["class0", "class1", "class2"]
    for split in manifest["splits"].values():
        for info in split["shards"]:
            data = (shards / info["name"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (info["bytes"], info["sha256"])
    assert manifest["splits"]["train"]["samples"] == 42
    assert manifest["splits"]["val"]["samples"] == 21


def test_a_folder_of_classes_is_all_train(folder: Path, tmp_path: Path) -> None:
    manifest, _ = write_shards(WriterConfig(source=folder / "val", destination=tmp_path / "dst"))
    assert list(manifest.splits) == ["train"]
    assert sum(info.samples for info in manifest.splits["train"]) == 21


def test_an_empty_split_is_an_error_not_a_crash(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "train", tmp_path / "src/train")
    (tmp_path / "src/val").mkdir()
    with pytest.raises(DataError, match=r"no class folder in .*/val"):
        write_shards(WriterConfig(source=tmp_path / "src", destination=tmp_path / "dst"))
    (tmp_path / "src/val").rmdir()
    manifest, _ = write_shards(WriterConfig(source=tmp_path / "src", destination=tmp_path / "dst"))
    assert list(manifest.splits) == ["train"]


def test_resume_mends_a_finished_folder(folder: Path, shards: Path, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    shutil.copytree(shards, mended)
    (mended / "train-000001.tar").unlink()
    data = bytearray((mended / "train-000000.tar").read_bytes())
    data[3000] ^= 1  # within a picture: the tar's structure stays
    (mended / "train-000000.tar").write_bytes(data)
    (mended / "val-000000.idx").unlink()
    write_shards(WriterConfig(source=folder, destination=mended, shard_mb=0.1, resume=True))
    assert content(mended) == content(shards)


@pytest.mark.soak
def test_resume_after_pictures_were_removed_leaves_no_stale_shard(tmp_path: Path) -> None:
    source = write_photos(tmp_path / "src", classes=2, train=21, val=1)
    config = WriterConfig(source=source, destination=tmp_path / "dst", shard_mb=0.1, resume=True)
    write_shards(config)
    before = len(list((tmp_path / "dst").glob("train-*.tar")))
    for number in range(14):
        (source / f"train/class0/train_0_{number}.JPEG").unlink()
    write_shards(config)
    assert len(list((tmp_path / "dst").glob("train-*.tar"))) < before
    write_shards(WriterConfig(source=source, destination=tmp_path / "new", shard_mb=0.1))
    assert content(tmp_path / "dst") == content(tmp_path / "new")
    with pytest.raises(ConfigError, match="begun with splits"):
        write_shards(
            WriterConfig(source=source, destination=tmp_path / "dst", splits=("val",), shard_mb=0.1, resume=True)
        )


def test_another_folder_is_never_overwritten(folder: Path, shards: Path, tmp_path: Path) -> None:
    before = content(shards)
    with pytest.raises(ConfigError, match="finished folder of shards"):
        write_shards(WriterConfig(source=folder, destination=shards))
    with pytest.raises(ConfigError, match="begun with seed 0, now it is 5"):
        write_shards(WriterConfig(source=folder, destination=shards, shard_mb=0.1, seed=5, resume=True))
    assert content(shards) == before
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write_shards(WriterConfig(source=folder, destination=tmp_path))
    with pytest.raises(ConfigError, match="no shards that were begun"):
        write_shards(WriterConfig(source=folder, destination=tmp_path, resume=True))


def test_a_shard_that_is_missing_or_cut_is_noticed_at_open(shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    path = broken / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-000001\.tar: want \d+ bytes, got \d+"):
        open_shards(broken, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar is missing"):
        open_shards(broken, "train")
    open_shards(broken, "val").close()


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"format": "x", "version": 1}', "\x00", '{"format": "headrace-shards"}']
)
def test_a_damaged_manifest_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_check_shards_names_what_is_wrong(shards: Path, tmp_path: Path, run: Any) -> None:
    good = run("tools/check_shards.py", shards, "--deep")
    assert good.returncode == 0, good.stderr
    assert "63 samples, decoded and all good" in good.stdout

    bad = tmp_path / "bad"
    shutil.copytree(shards, bad)
    data = bytearray((bad / "train-000000.tar").read_bytes())
    data[3000] ^= 1
    (bad / "train-000000.tar").write_bytes(data)
    (bad / "val-000000.idx").write_text("v1.2 0\n")
    (bad / "train-000002.tar").unlink()
    index = np.load(bad / "val.index.npy")
    index["label"] = (index["label"] + 1) % 3
    np.save(bad / "val.index.npy", index)
    checked = run("tools/check_shards.py", bad)
    assert checked.returncode == 1
    for expected in (
        "train-000000.tar: the manifest says sha256",
        "val-000000.idx does not describe",
        "train-000002.tar is missing",
        "val.index.npy is not the file",
        "val.index.npy does not describe this shard",
    ):
        assert expected in checked.stdout
    assert "Traceback" not in checked.stderr
