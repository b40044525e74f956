"""Weights from a file into an :class:`InceptionV4`: a file that fits is loaded whole, any other is refused whole.

What is read: Cadene's ``inceptionv4-8e4777a0.pth`` (1,001 classes), timm's ``inception_v4`` (the same names), our
own checkpoints and the original's (under ``state_dict``, with or without ``module.``), each as a torch file or
as ``.safetensors``. Nothing in a file is ever executed: torch files are read with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from .inceptionv4 import InceptionV4

_TEXT_MAX = 1000  # characters of a name in a file
_HEAD = ("last_linear.weight", "last_linear.bias")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
# The first branch's convolution tells the kind of a block (0: Inception-A, 1: -B, 2: -C) whatever its number.
_BLOCK_KINDS: dict[tuple[int, ...], int] = {(96, 384, 1, 1): 0, (384, 1024, 1, 1): 1, (256, 1536, 1, 1): 2}


class WeightsError(ValueError):
    """A weights file that cannot be used. The message is one line: the file, what is wrong, what to do."""


def load_pretrained(model: InceptionV4, path: str | os.PathLike[str], *, new_head: bool = False) -> str:
    """Copies the weights in ``path`` into ``model``, in place; its device, dtypes and memory format stay.

    1,001 classes go into a model of 1,001 as they are, and into one of 1,000 without class 0, the background of
    weights that come from TensorFlow. A training checkpoint gets no such cut: the original trains on the folders'
    own labels 0 to 999, so that there it is the *last* output that nothing uses, and cutting the first would move
    every class by one without a word.

    Args:
        model: any class count and any ``blocks``.
        path: a torch file, or a ``.safetensors`` file (needs the package of that name).
        new_head: takes the features only and leaves the classifier as it is, whatever the file has: fine-tuning.

    Returns:
        One line for the log: what was loaded, and what was left out.

    Raises:
        WeightsError: the file is missing, unreadable, not only tensors, of another architecture or another class
            count, or has values that are not finite. ``model`` is then as it was, to the last bit.
    """
    file = Path(path)
    contents = read_file(file)
    state, is_checkpoint = _state_dict(contents, file)
    wanted = model.state_dict()
    for name in wanted.keys() - state.keys():
        # Files older than torch 0.4.1, Cadene's among them, have no such counters. With a fixed momentum nothing
        # reads them.
        stem, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked" and f"{stem}.running_mean" in state:
            state[name] = torch.zeros((), dtype=torch.int64)
    if new_head:
        state = {name: value for name, value in state.items() if name not in _HEAD}
        wanted = {name: value for name, value in wanted.items() if name not in _HEAD}

    _check_names(model, state, wanted, file)
    note = "" if new_head else _fit_classes(state, wanted, is_checkpoint, file)
    _check_tensors(state, wanted, file)
    # Only now is the model touched, and by something that can no longer fail.
    model.load_state_dict(state, strict=not new_head)
    classes = f"{model.last_linear.out_features:,} classes"
    what = "averaged weights, " if _is_averaged(contents) else ""
    if new_head:
        return f"loaded {file.name}: {what}features only; the classifier of {classes} starts anew"
    return f"loaded {file.name}: {what}features and classifier of {classes}{note}"


def shape_of(contents: object, file: Path) -> tuple[int, tuple[int, int, int]]:
    """How many classes, and which blocks, the network has that a file's ``contents`` are of. Raises WeightsError."""
    state, _ = _state_dict(contents, file)
    bias = state.get(_HEAD[1])
    if bias is None or bias.ndim != 1 or not len(bias):
        raise WeightsError(f"{file}: these are no weights of a classifier: there is no {_HEAD[1]}")
    return len(bias), _blocks_of(state)


def _is_averaged(contents: object) -> bool:
    if not isinstance(contents, Mapping) or "state_dict" not in contents:
        return False
    averaged = contents.get("state_dict_ema")
    return isinstance(averaged, Mapping) and len(averaged) > 0


def read_file(file: Path) -> object:
    """What the file holds, unchecked. Runs nothing that the file says."""
    try:
        with file.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise WeightsError(f"{file}: cannot read these weights: {error.strerror}; check the path") from None
    if empty:
        raise WeightsError(f"{file}: an empty file, 0 bytes; copy or download the weights again")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    _check_names_of_code(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's age and TorchScript: nothing that a user can act on
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises whatever it trips over
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise WeightsError(
                f"{file}: refused, it holds more than tensors and plain values ({code[1]}) and reading that would run "
                "code from the file; nothing was run: save the bare state_dict, or .safetensors, where you trust it"
            ) from None
        raise WeightsError(
            f"{file}: not a torch weights file, or a damaged one ({type(error).__name__}); "
            "copy or download the weights again"
        ) from None


def _check_names_of_code(file: Path) -> None:
    """Raises WeightsError for the name of a class or function in the file's pickles that is too long to be one.

    torch may quote it in an error, and searches that for patterns in a time that grows with its square: hours for 1 MB.
    """
    longest = 0
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:  # what is no pickle is torch's to refuse
        stream: IO[bytes] = stack.enter_context(file.open("rb"))
        pickles = [stream] * 5  # a file from before torch 1.6 begins with so many
        if stream.read(4) == b"PK\x03\x04":
            archive = stack.enter_context(zipfile.ZipFile(file))
            pickles = [archive.open(name) for name in archive.namelist() if name.endswith("data.pkl")]
        stream.seek(0)
        for one in pickles:
            for opcode, argument, _ in pickletools.genops(one):
                longest = max(longest, len(str(argument)) if opcode.name == "GLOBAL" else 0)
    if longest > _TEXT_MAX:
        raise WeightsError(f"{file}: refused, {longest:,} characters are no name; save the bare state_dict")


def _read_safetensors(file: Path) -> object:
    try:
        safetensors = importlib.import_module("safetensors.torch")
    except ImportError:
        raise WeightsError(f"{file}: reading .safetensors needs a package: pip install safetensors") from None
    try:
        return safetensors.load_file(file, device="cpu")
    except Exception as error:  # noqa: BLE001 - its own SafetensorError, or torch's on a dtype that this version lacks
        raise WeightsError(
            f"{file}: not a .safetensors file, or a damaged one ({type(error).__name__}); "
            "copy or download the weights again"
        ) from None


def _state_dict(contents: object, file: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors by name, without DataParallel's prefix, and whether they came out of a training checkpoint.

    Of a checkpoint that has averaged weights, these.
    """
    is_checkpoint = isinstance(contents, Mapping) and "state_dict" in contents
    found = contents
    if isinstance(contents, Mapping) and is_checkpoint:
        found = contents["state_dict_ema" if _is_averaged(contents) else "state_dict"]
    if not isinstance(found, Mapping):
        raise WeightsError(f"{file}: wanted tensors by name, got one {type(found).__name__}; save model.state_dict()")
    state = {name: value for name, value in found.items() if isinstance(name, str) and _is_plain(value)}
    if not state or len(state) < len(found):
        others = [str(name) for name in found if name not in state]
        raise WeightsError(
            f"{file}: wanted plain float tensors by name, bare or under 'state_dict', "
            f"got {_some(others) or 'nothing at all'}; save model.state_dict()"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state, is_checkpoint


def _is_plain(value: object) -> bool:
    """Dense, with its data, of a dtype that converts: not quantised, sparse, complex, 8-bit or on the meta device."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and value.dtype in _DTYPES


def _check_names(model: InceptionV4, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    if not missing and not unknown:
        return
    if missing == list(_HEAD) and not unknown:
        raise WeightsError(f"{file}: features without a classifier; load it with new_head=True to start a new one")
    blocks = _blocks_of(state)
    if "features.3.conv.conv.weight" in state and blocks != model.blocks:
        raise WeightsError(
            f"{file}: blocks {model.blocks} in the model, the file looks like {blocks}; build the model with the file's"
        )
    faults = [f"{len(missing):,} names missing ({_some(missing)})"] if missing else []
    faults += [f"{len(unknown):,} unknown ({_some(unknown)})"] if unknown else []
    raise WeightsError(
        f"{file}: does not fit InceptionV4 with blocks {model.blocks}: {', '.join(faults)}; "
        "give weights of InceptionV4 with Cadene's or timm's names"
    )


def _blocks_of(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """How many Inception-A, -B and -C blocks have weights here."""
    blocks = [0, 0, 0]
    for name, value in state.items():
        if re.fullmatch(r"features\.\d+\.branch0\.conv\.weight", name) and tuple(value.shape) in _BLOCK_KINDS:
            blocks[_BLOCK_KINDS[tuple(value.shape)]] += 1
    return blocks[0], blocks[1], blocks[2]


def _fit_classes(state: dict[str, Tensor], wanted: Mapping[str, Tensor], is_checkpoint: bool, file: Path) -> str:
    """Cuts the background class out of ``state`` where that makes it fit; returns a remark for the log."""
    weight_KC, bias_K = (state[name] for name in _HEAD)
    ours = len(wanted[_HEAD[1]])
    if bias_K.ndim != 1 or weight_KC.ndim != 2 or len(weight_KC) == ours or len(weight_KC) != len(bias_K):
        return ""  # fits, or is no classifier at all: the check of the shapes says so
    theirs = len(bias_K)
    if (theirs, ours) == (1001, 1000) and not is_checkpoint:
        state.update({name: state[name][1:] for name in _HEAD})
        return " (class 0 of 1,001, the background, left out)"
    # To cut or not to cut, see load_pretrained: which of a checkpoint's 1,001 outputs is unused is not in the file.
    unsure = ", and the unused one may be the first or the last" if (theirs, ours) == (1001, 1000) else ""
    raise WeightsError(
        f"{file}: {theirs:,} classes in the file, {ours:,} in the model{unsure}; build the model with {theirs:,}, "
        "or load with new_head=True to keep the features and start a new classifier"
    )


def _check_tensors(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    shapes = [
        f"{name} is {tuple(value.shape)}, wanted {tuple(wanted[name].shape)}"
        for name, value in state.items()
        if value.shape != wanted[name].shape
    ]
    if shapes:
        raise WeightsError(f"{file}: {len(shapes):,} tensors of another shape ({_some(shapes)}); wrong architecture?")
    for name, value in state.items():
        if value.is_floating_point() != wanted[name].is_floating_point():
            raise WeightsError(f"{file}: {name} is {value.dtype}, wanted {wanted[name].dtype}; save it as that")
        if not bool(torch.isfinite(value.to(wanted[name].dtype)).all()):  # a float64 may overflow only here
            raise WeightsError(f"{file}: {name} is not all finite; take a checkpoint from before training diverged")


def _some(names: Iterable[str], most: int = 3) -> str:
    """The first few of ``names``, with dots for the rest; escaped, for a file's own names may hold anything."""
    listed = [name if name.isprintable() and len(name) < 200 else repr(name[:50]) for name in names]
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")
