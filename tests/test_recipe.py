"""Recipes: flags from a file, under those of the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model.options import parse_options
from model.recipe import recipe_names
from tests.conftest import ROOT


def test_a_recipe_is_what_its_flags_are() -> None:
    by_hand = parse_options(
        ["--shards", "x", "--amp", "--batch-size=155", "--lr=.060546875", "--lr-schedule=step", "--epochs=240",
         "--weight-decay=1e-4", "--label-smoothing=0.1", "--seed=49", "--loss-scale=1024"]
    )  # fmt: skip
    assert vars(parse_options(["--shards", "x", "--recipe", "original-1p"])) == vars(by_hand) | {
        "recipe": "original-1p"
    }


def test_the_originals_have_the_loss_scales_of_their_scripts() -> None:
    scales = re.findall(r"--loss-scale=(\d+)", (ROOT / "test/launch.sh").read_text())
    recipes = [parse_options(["--shards", "x", "--recipe", name]) for name in ("original-1p", "original-8p")]
    assert [options.loss_scale for options in recipes] == list(map(float, scales))


@pytest.mark.parametrize("name", recipe_names())
def test_those_of_the_project_can_be_read(name: str) -> None:
    options = parse_options(["--shards", "x", "--recipe", name])
    assert options.amp


def test_the_command_line_goes_before_it_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('lr = 0.25\nepochs = 7\namp = false\nblocks = [1, 1, 1]\ncheckpoint-every = "5m"\n')
    for words in (["--epochs", "3", "--recipe", str(file)], [f"--recipe={file}", "--epochs=3"]):
        options = parse_options(["--shards", "x", *words])
        assert (options.lr, options.epochs, options.amp, options.blocks) == (0.25, 3, False, (1, 1, 1))
        assert options.checkpoint_every.minutes == 5


@pytest.mark.parametrize(
    ("text", "words", "name", "want"),
    [
        ("gpu = 0", "--device cpu", "device_name", "cpu"),
        ("device = 'cuda'", "--npu 1", "device_name", "npu:1"),
        ("shards = 'theirs'", "--data mine", "shards", None),
        ("progressive = '96@0,128@2'", "--image-size 160", "progressive", ()),
        ("image-size = 160", "--progressive 96@0,128@2", "image_size", 299),
        ("opt-level = 'O2'", "--opt-level O1", "opt_level", "O1"),
        ("amp = true", "--no-amp", "opt_level", "O0"),
        ("amp = true\nopt-level = 'O2'", "--no-amp", "opt_level", "O0"),
        ("opt-level = 'O1'", "--amp", "opt_level", "O2"),
        ("tensorboard = true", "--no-tensorboard", "tensorboard", False),
    ],
)
def test_nor_does_it_speak_up_by_another_flag(text: str, words: str, name: str, want: object, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    place = [] if "--data" in words else ["--shards", "x"]
    options = parse_options([*place, *words.split(), "--recipe", str(tmp_path / "mine.toml")])
    assert getattr(options, name) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 9", "speed: no such flag"),
        ('recipe = "other"', "recipe: no such flag"),
        ("lr = [", "not a TOML file"),
        ("lr = 'fast'", "wrong.toml: argument --lr"),
        ("epochs = 90.0", "wrong.toml: argument --epochs"),
        ("lr = 2020-01-01", "lr must be a number, a text, true or a list"),
        ("epochs = 0", "--epochs must be at least 1"),
    ],
)
def test_a_wrong_one_is_one_clear_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse_options(["--shards", "x", "--recipe", str(tmp_path / "wrong.toml")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_one_that_is_not_there_names_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--shards", "x", "--recipe", "moderm"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert all(name in line for name in ["moderm", *recipe_names()])
