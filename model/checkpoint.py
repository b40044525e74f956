"""Training checkpoints, with the original's keys: written whole or not at all, read without running what is in them.

Keys: ``epoch`` (the next one), ``arch``, ``state_dict`` (fp32, without ``module.``), ``best_acc1``, ``optimizer``,
``amp``; and ours: ``blocks``, ``classes`` (names), ``loader`` (its position).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .weights import WeightsError, read_file

ARCH = "inceptionv4"
LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"


class CheckpointError(WeightsError):
    """A checkpoint that cannot be used. The message is one line: the file, what is wrong, what to do."""


def save_checkpoint(state: dict[str, Any], directory: Path, *, is_best: bool) -> Path:
    """Write ``checkpoint.pth.tar``, and its copy ``model_best.pth.tar`` where it is the best so far.

    Each is written under another name, flushed to the disk and renamed: a kill leaves the old one or the new one.
    """
    last = directory / LAST
    with _whole_file(last) as file:
        torch.save(state, file)
    if is_best:
        with _whole_file(directory / BEST) as file, open(last, "rb") as saved:
            shutil.copyfileobj(saved, file)
    return last


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_suffix(".partial")
    with open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def set_aside(directory: Path, *names: str) -> Path | None:
    """Move what an earlier run left in ``directory`` to a folder ``earlier-N`` in it; returns it, if need was."""
    left = [directory / name for name in (LAST, BEST, *names) if (directory / name).exists()]
    if not left:
        return None
    number = 1
    while (directory / f"earlier-{number}").exists():
        number += 1
    earlier = directory / f"earlier-{number}"
    earlier.mkdir()
    for path in left:
        os.replace(path, earlier / path.name)
    return earlier


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU. Raises WeightsError where it is missing, damaged, or holds code."""
    state = read_file(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no training checkpoint: it holds a {type(state).__name__}")
    missing = {"epoch", "arch", "state_dict", "optimizer"} - state.keys()
    if missing:
        raise CheckpointError(f"{path} is no training checkpoint: it has no {', '.join(sorted(missing))}")
    _check_kinds(state, path)
    state["state_dict"] = {name.removeprefix("module."): value for name, value in state["state_dict"].items()}
    return dict(state)


def _check_kinds(state: dict[str, Any], path: Path) -> None:
    """Raises CheckpointError where a value is of another kind than the one that training goes on with."""
    weights, epoch, best = state["state_dict"], state["epoch"], state.get("best_acc1", 0.0)
    fits = {
        "epoch": isinstance(epoch, int) and 0 <= epoch < 1 << 31,
        "arch": isinstance(state["arch"], str) and len(state["arch"]) < 100,
        "state_dict": isinstance(weights, dict)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()),
        "optimizer": isinstance(state["optimizer"], dict),
        "amp": isinstance(state.get("amp"), dict | None),
        # the original keeps the tensor that its accuracy is
        "best_acc1": isinstance(best, int | float)
        or (isinstance(best, Tensor) and best.numel() == 1 and not best.is_meta),
        "blocks": isinstance(state.get("blocks", []), list | tuple)
        and all(isinstance(n, int) and abs(n) < 1 << 31 for n in state.get("blocks", [])),
    }
    wrong = [key for key, fit in fits.items() if not fit]
    if wrong:
        raise CheckpointError(
            f"{path} is no training checkpoint, or a damaged one: its {', '.join(wrong)} cannot be used"
        )


def check_fit(state: dict[str, Any], path: Path, *, blocks: tuple[int, ...], classes: int) -> None:
    """Raises CheckpointError where a checkpoint is of another network than the one to be trained or evaluated."""
    arch = str(state["arch"])
    if arch.lower() != ARCH:
        raise CheckpointError(f"{path} holds arch {arch!r}, this trainer is {ARCH!r}")
    theirs = state.get("blocks")
    if theirs is not None and tuple(theirs) != tuple(blocks):
        want = ",".join(str(n) for n in theirs)
        raise CheckpointError(f"{path} has blocks {want}, the model {','.join(map(str, blocks))}: give --blocks {want}")
    head = state["state_dict"].get("last_linear.weight")
    if head is None or head.ndim == 0 or len(head) != classes:
        got = "no classifier" if head is None or head.ndim == 0 else f"{len(head)} classes"
        raise CheckpointError(f"{path} has {got}, the model {classes}: the data set is another, or --num-classes is")
