"""Recipes: flags from a file, under those of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.options import parse_options
from model.recipe import recipe_names


def test_a_recipe_is_what_its_flags_are() -> None:
    by_hand = parse_options(
        ["--shards", "x", "--amp", "--batch-size=155", "--lr=.060546875", "--lr-schedule=step", "--epochs=240",
         "--weight-decay=1e-4", "--label-smoothing=0.1", "--seed=49"]
    )  # fmt: skip
    assert vars(parse_options(["--shards", "x", "--recipe", "original-1p"])) == vars(by_hand) | {
        "recipe": "original-1p"
    }


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
    ("text", "message"),
    [
        ("speed = 9", "speed: no such flag"),
        ('recipe = "other"', "recipe: no such flag"),
        ("lr = [", "not a TOML file"),
        ("lr = 'fast'", "argument --lr"),
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
