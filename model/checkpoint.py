"""Training checkpoints, with the original's keys: read without running what is in them, compared before they are used.

Keys: ``epoch`` (the one to go on with), ``arch``, ``state_dict`` (fp32, without ``module.``), ``best_acc1``,
``optimizer``, ``amp``; and ours: ``blocks``, ``classes`` (names), ``image_size``, ``loader`` (its position, and of
which data), ``sums`` (of the epoch so far: samples, loss, correct at 1, at 5) and, with --ema, ``state_dict_ema`` and
``ema_steps``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .weights import WeightsError, read_file

ARCH = "inceptionv4"
# The number that a run's checkpoint has, and the first 16 digits of the file's SHA-256.
NUMBERED = re.compile(r"checkpoint-(\d{6})-([0-9a-f]{16})\.pth\.tar")


class CheckpointError(WeightsError):
    """A checkpoint that cannot be used. The message is one line: the file, what is wrong, what to do."""


def is_whole(path: Path) -> bool:
    """Whether a file's content has the hash that is in its name. True where there is none in it; links are followed."""
    numbered = NUMBERED.fullmatch(path.resolve().name)
    if numbered is None:
        return path.exists()
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest().startswith(numbered[2])
    except OSError:
        return False


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU. Raises WeightsError where it is missing, damaged, or holds code."""
    if path.exists() and not is_whole(path):
        raise CheckpointError(
            f"{path} is damaged: its content has not the hash that {path.resolve().name} says; "
            "--resume auto takes the newest one that is whole"
        )
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
    averages = state.get("state_dict_ema")
    loader, sums = state.get("loader"), state.get("sums")
    fits = {
        "epoch": isinstance(epoch, int) and 0 <= epoch < 1 << 31,
        "arch": isinstance(state["arch"], str) and len(state["arch"]) < 100,
        "state_dict": isinstance(weights, dict)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()),
        "state_dict_ema": averages is None
        or (
            isinstance(averages, dict)
            and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in averages.items())
            and isinstance(state.get("ema_steps"), int)
        ),
        "optimizer": isinstance(state["optimizer"], dict),
        "amp": isinstance(state.get("amp"), dict | None),
        # the original keeps the tensor that its accuracy is
        "best_acc1": isinstance(best, int | float)
        or (isinstance(best, Tensor) and best.numel() == 1 and not best.is_meta),
        "blocks": isinstance(state.get("blocks", []), list | tuple)
        and all(isinstance(n, int) and abs(n) < 1 << 31 for n in state.get("blocks", [])),
        "classes": isinstance(state.get("classes", []), list)
        and all(isinstance(name, str) for name in state.get("classes", [])),
        "loader": loader is None
        or (isinstance(loader, dict) and all(isinstance(value, int | str) for value in loader.values())),
        "position": not isinstance(loader, dict)
        or not loader
        or (isinstance(loader.get("position"), int) and loader["position"] >= 0),
        "sums": (sums is None and not loader)
        or (isinstance(sums, list | tuple) and len(sums) == 4 and all(isinstance(n, int | float) for n in sums)),
    }
    wrong = [key for key, fit in fits.items() if not fit]
    if wrong:
        raise CheckpointError(
            f"{path} is no training checkpoint, or a damaged one: its {', '.join(wrong)} cannot be used"
        )


def check_fit(
    state: dict[str, Any], path: Path, *, blocks: tuple[int, ...], classes: int, names: Sequence[str] | None
) -> None:
    """Raises CheckpointError where a checkpoint is of another network, or was trained to tell other classes apart.

    ``names`` are the data set's; None: whatever they are, it is to be used.
    """
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
    known = state.get("classes")
    if known is None or names is None or list(known) == list(names):
        return
    differ = next(
        (i for i, (a, b) in enumerate(zip(known, names, strict=False)) if a != b), min(len(known), len(names))
    )
    was, now = (repr(of[differ]) if differ < len(of) else "none" for of in (known, names))
    raise CheckpointError(
        f"{path} was trained on another data set: its class {differ} is {was}, here it is {now}; give the data that it "
        "was trained on, or --new-data to use it with these in spite of that"
    )
