"""Recipes: small TOML files of train.py's flags. What the command line says goes before what the recipe says."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """The recipes that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(name: str, flags: Collection[str]) -> dict[str, list[str]]:
    """The recipe called ``name``, or in the file of that name, by flags: ``{"amp": ["--amp"], "lr": ["--lr=0.1"]}``.

    ``flags``: what it may set, without dashes in front. A list becomes numbers with commas; ``true`` the bare flag,
    ``false`` nothing. Raises ValueError, naming the file, for what is none, or sets what is no flag.
    """
    path = FOLDER / f"{name}.toml" if name in recipe_names() else Path(name)
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        known = ", ".join(recipe_names())
        raise ValueError(f"--recipe {name}: {error.strerror}; give a file, or one of {known}") from None
    except ValueError as error:  # no TOML, or no text
        raise ValueError(f"--recipe {name}: not a TOML file: {error}") from None
    if unknown := sorted(values.keys() - flags):
        raise ValueError(f"--recipe {name}: {', '.join(unknown)}: no such flag; train.py --help lists them")
    return {key: _words(name, key, value) for key, value in values.items()}


def _words(name: str, key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}"] * value
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if not isinstance(value, str | int | float):
        raise ValueError(f"--recipe {name}: {key} must be a number, a text, true or a list, was {value!r}")
    return [f"--{key}={value}"]
