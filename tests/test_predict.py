"""tools/predict.py as its user runs it: what train.py's --evaluate computes for the same pictures, one by one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.inceptionv4 import InceptionV4
from pipeline import PipelineConfig, build_loader
from pipeline.transfer import normalise
from tests.conftest import Run

CLASSES = ["class0", "class1", "class2"]


@pytest.fixture(scope="module")
def network(folder: Path) -> InceptionV4:
    """One that tells these pictures apart: its running statistics are theirs, and no logit leads in all of them."""
    torch.manual_seed(0)
    model = InceptionV4(3, blocks=(0, 0, 1))
    with build_loader(PipelineConfig(data=folder, split="val", image_size=96, batch_size=21, workers=1)) as loader:
        images = normalise(next(iter(loader)).images, torch.float32, torch.contiguous_format)
    with torch.no_grad():
        for _ in range(20):
            model(images)
        model.eval().last_linear.weight.mul_(20)
        model.last_linear.bias.sub_(model(images).mean(0))
    return model


@pytest.fixture(scope="module")
def checkpoint(network: InceptionV4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth.tar"
    torch.save({"state_dict": network.state_dict(), "classes": CLASSES, "image_size": 96}, path)
    return path


def expected(network: InceptionV4, folder: Path) -> dict[str, list[float]]:
    """By file: probabilities that the val split's batches give."""
    found = {}
    config = PipelineConfig(data=folder, split="val", image_size=96, batch_size=8, workers=1)
    with build_loader(config) as loader, torch.inference_mode():
        for batch in loader:
            rows = network(normalise(batch.images, torch.float32, torch.contiguous_format)).softmax(1)
            for index, row in zip(batch.indices.tolist(), rows.tolist(), strict=True):
                found[str(folder / "val" / loader.source.name(index))] = row
    return found


def test_each_picture_gets_what_the_val_split_gives_it(
    network: InceptionV4, checkpoint: Path, folder: Path, run_here: Run
) -> None:
    """In another batch size, and in the order in which the files were given."""
    want = expected(network, folder)
    files = [*sorted(want, reverse=True)[:5], folder / "val"]
    done = run_here(
        "tools/predict.py", *files, "--weights", checkpoint, "--json", "--top", 9, "--device", "cpu", "-b", 7
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [*sorted(want, reverse=True)[:5], *sorted(want)]
    for line in lines:
        assert [one["class"] for one in line["top"]] == [CLASSES[one["index"]] for one in line["top"]]
        got = {one["index"]: one["probability"] for one in line["top"]}
        assert list(got.values()) == sorted(got.values(), reverse=True)
        assert [got[n] for n in range(3)] == pytest.approx(want[line["file"]], abs=1e-5)
    assert len({line["top"][0]["index"] for line in lines}) > 1, "a network that says one thing tells nothing"


def test_processes_decode_many_in_order(checkpoint: Path, folder: Path, run: Run) -> None:
    command = ("tools/predict.py", folder, "--weights", checkpoint, "--json", "--device", "cpu", "-b", 10)
    alone, several = run(*command, "-j", 1), run(*command, "-j", 2)
    assert (alone.returncode, several.returncode) == (0, 0), several.stderr
    assert len(alone.stdout.splitlines()) == 63
    assert several.stdout == alone.stdout


def test_a_damaged_picture_is_named_and_the_others_are_predicted(
    checkpoint: Path, folder: Path, tmp_path: Path, run_here: Run
) -> None:
    good = sorted((folder / "val/class0").iterdir())[:2]
    shutil.copy(good[0], tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "deep/er").mkdir(parents=True)
    shutil.copy(good[1], tmp_path / "deep/er/c.jpeg")
    (tmp_path / "notes.txt").write_text("not looked at")
    done = run_here("tools/predict.py", tmp_path, "--weights", checkpoint, "--device", "cpu", "--top", 1)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / "a.jpg"), str(tmp_path / "deep/er/c.jpeg")
    ]  # fmt: skip
    assert f"{tmp_path / 'b.jpg'}: not a picture" in done.stderr
    assert "1 of 3 pictures could not be decoded" in done.stderr


def test_each_folder_is_read_once_whatever_links_to_it(tmp_path: Path) -> None:
    from pipeline.evaluation import find_pictures

    (tmp_path / "deep/er").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.jpg", "deep/er/c.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "deep/er/round").symlink_to(tmp_path)
    (tmp_path / "deep/er/again").symlink_to(tmp_path / "deep")
    assert find_pictures([str(tmp_path)]) == [str(tmp_path / name) for name in ("a.jpg", "deep/b.jpg", "deep/er/c.jpg")]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import DataError
    from pipeline.evaluation import find_pictures

    (tmp_path / "locked").mkdir()
    (tmp_path / "a.jpg").touch()
    real = os.scandir

    def scandir(path: str) -> Any:  # root may list anything
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="locked cannot be listed: Permission denied"):
        find_pictures([str(tmp_path)])


def test_a_checkpoint_of_somebody_elses_is_read_as_far_as_it_goes(network: InceptionV4, tmp_path: Path) -> None:
    from model.trained import load_trained

    odd = {"state_dict": network.state_dict(), "classes": 1000, "state_dict_ema": torch.zeros(3)}
    torch.save(odd, tmp_path / "odd.pth")
    trained = load_trained(tmp_path / "odd.pth")
    assert trained.classes == ("0", "1", "2")
    assert "averaged" not in trained.note


def test_averaged_weights_and_names_of_ones_own(
    network: InceptionV4, folder: Path, tmp_path: Path, run_here: Run
) -> None:
    other = {name: value.clone() for name, value in network.state_dict().items()}
    other["last_linear.bias"] = torch.tensor([0.0, 1e4, 0.0])
    torch.save({"state_dict": network.state_dict(), "state_dict_ema": other, "ema_steps": 1}, tmp_path / "both.pth")
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    picture = next((folder / "val/class0").iterdir())
    common = ("tools/predict.py", picture, "--device", "cpu", "--top", 1, "--image-size", 96)
    done = run_here(*common, "--weights", tmp_path / "both.pth")
    assert "averaged weights" in done.stderr
    assert done.stdout == f"{picture}: 1 100.0 %\n", "without names, numbers"
    named = run_here(
        *common, "--weights", tmp_path / "plain.safetensors", "--classes", tmp_path / "names.txt", "--json"
    )
    assert json.loads(named.stdout)["top"][0]["class"] in ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{missing}"], 2, "no such picture or folder: {missing}"),
        (["{empty}"], 1, "no picture in {empty}"),
        (["{picture}", "--weights", "{missing}"], 1, "cannot read these weights"),
        (["{picture}", "--weights", "{text}"], 1, "not a torch weights file"),
        (["{picture}", "--classes", "{two}"], 1, "tells 3 classes apart, there are 2 names"),
        (["{picture}", "--classes", "{missing}"], 1, "--classes {missing} cannot be read"),
        (["{picture}", "--image-size", "74"], 1, "at least 75 pixels, was 74"),
        (["{picture}", "--device", "tpu"], 2, "device must be"),
        (["{picture}", "--device", "sim:10x1"], 2, "computes nothing"),
        (["{picture}", "--top", "0"], 2, "at least 1"),
    ],
)
def test_a_wrong_call_is_one_clear_line(
    arguments: list[str], code: int, message: str, checkpoint: Path, folder: Path, tmp_path: Path, run_here: Run
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("not weights")
    (tmp_path / "two").write_text("ant\nbee\n")
    names = {name: str(tmp_path / name) for name in ("missing", "empty", "text", "two")}
    names["picture"] = str(next((folder / "val/class0").iterdir()))
    argv = [argument.format(**names) for argument in arguments]
    weights = [] if "--weights" in argv else ["--weights", checkpoint]
    done = run_here("tools/predict.py", *argv, *weights)
    assert done.returncode == code, done.stderr
    assert message.format(**names) in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_what_it_decodes_is_what_the_val_split_decodes(folder: Path) -> None:
    """Bit for bit."""
    from pipeline.evaluation import Transform

    config = PipelineConfig(data=folder, split="val", image_size=96, batch_size=21, workers=1)
    with build_loader(config) as loader:
        batch = next(iter(loader))
        files = [str(folder / "val" / loader.source.name(index)) for index in batch.indices.tolist()]
        assert np.array_equal(Transform(image_size=96)(files, lambda: None).images, batch.images.numpy())
