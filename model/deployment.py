"""The trained network in the forms that others run: ONNX, torch.export's program, timm's weights. Each is tried first.

What is exported takes pictures as they are decoded, uint8 ``[N, S, S, 3]`` in RGB, and normalises them itself: the step
that everybody gets wrong once. N is free. It returns logits ``[N, K]``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .trained import Trained
from .weights import WeightsError, load_pretrained

INPUT, OUTPUT = "images", "logits"
_TOLERANCE = 1e-3  # of the largest logit: two libraries sum in different orders
_CHUNK = 16  # pictures
Run = Callable[[Tensor], Tensor]


class ExportError(RuntimeError):
    """An export that cannot be made, or that computes something else. The message is one line."""


class Deployed(nn.Module):
    """The network with the normalisation in front: uint8 ``[N, S, S, 3]`` -> logits ``[N, K]``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits_NK: Tensor = self.model(images.permute(0, 3, 1, 2).to(torch.float32).sub(127.5).div(127.5))
        return logits_NK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """An export beside the network that it was made from."""

    pictures: int
    agree: int  # have the same best class
    classes: int  # how many different ones these are
    difference: float  # the largest, of any logit
    scale: float  # the largest logit

    def __str__(self) -> str:
        return (
            f"the same best class for {self.agree:,} of {self.pictures:,} pictures ({self.classes:,} different ones), "
            f"logits within {self.difference:.1e} of at most {self.scale:.3g}"
        )

    @property
    def good(self) -> bool:
        """Whether the two are one network."""
        return self.difference <= _TOLERANCE * self.scale


def export_onnx(trained: Trained, path: Path, images: Tensor) -> Comparison:
    """Write an ONNX file, run it in onnxruntime on ``images`` (uint8 ``[N, S, S, 3]``, N of at least 2), and compare.

    Class names, picture size and the input's form are in its metadata. Raises ExportError, and leaves ``path`` as it
    was, where the package for it is missing and where the file computes something else.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _need(package, "pip install onnx onnxscript onnxruntime")
    import onnxruntime

    with _quiet():
        program = torch.onnx.export(
            _program(trained, images), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
        )
    assert program is not None
    program.model.metadata_props.update(_about(trained))

    def load(file: Path) -> Run:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return _written(trained, path, images, write=lambda file: program.save(str(file)), load=load)


def export_pt2(trained: Trained, path: Path, images: Tensor) -> Comparison:
    """Write what ``torch.export.load`` reads, and compare as :func:`export_onnx` does. Raises ExportError."""
    program = _program(trained, images)

    def write(file: Path) -> None:
        torch.export.save(program, file, extra_files={"headrace.json": json.dumps(_about(trained))})

    def load(file: Path) -> Run:
        module: Run = torch.export.load(file).module()
        return module

    with _quiet():
        return _written(trained, path, images, write=write, load=load)


def export_timm(trained: Trained, path: Path, images: Tensor) -> Comparison:
    """Write weights that timm's ``inception_v4`` loads, by their ending as .safetensors or a torch file, and compare.

    timm's names are ours; what it gets is fp32, without a training's state. It is read back by our own reader. Raises
    ExportError.
    """
    state = {name: value.contiguous() for name, value in trained.model.state_dict().items()}

    def write(file: Path) -> None:
        if path.suffix == ".safetensors":
            file.write_bytes(_need("safetensors", "pip install safetensors").save(state, metadata=_about(trained)))
        else:
            torch.save(state, file)

    def load(file: Path) -> Run:
        fresh = type(trained.model)(trained.model.num_classes, blocks=trained.model.blocks).eval()
        load_pretrained(fresh, file)
        return Deployed(fresh)

    return _written(trained, path, images, write=write, load=load)


def _program(trained: Trained, images: Tensor) -> torch.export.ExportedProgram:
    with _quiet():
        free = {INPUT: {0: torch.export.Dim.DYNAMIC}}
        two = images[:2].clone()  # the program keeps them: of a view, all that it is a view of
        return torch.export.export(Deployed(trained.model), (two,), dynamic_shapes=free)


def _about(trained: Trained) -> dict[str, str]:
    size = trained.image_size
    return {
        "classes": json.dumps(trained.classes),
        "image_size": str(size),
        "input": f"{INPUT}: uint8 [N, {size}, {size}, 3], RGB, not normalised",
        "output": f"{OUTPUT}: float32 [N, {len(trained.classes)}]",
    }


def _written(
    trained: Trained, path: Path, images: Tensor, *, write: Callable[[Path], None], load: Callable[[Path], Run]
) -> Comparison:
    """Write a file beside ``path``, compare what is in it, and only then give it its name."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        try:
            write(partial)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as the latter
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise ExportError(f"{path} cannot be written: {reason}") from error
        with torch.inference_mode():
            found = _compare(Deployed(trained.model), load(partial), images)
        if not found.good:
            raise ExportError(f"{path} was not written: it computes something else: {found}")
        os.replace(partial, path)
    except WeightsError as error:
        raise ExportError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)
    return found


def _compare(network: Run, other: Run, images: Tensor) -> Comparison:
    mine, theirs = (torch.cat([run(chunk) for chunk in torch.split(images, _CHUNK)]) for run in (network, other))
    best = mine.argmax(1)
    return Comparison(
        pictures=len(images),
        agree=int((best == theirs.argmax(1)).sum()),
        classes=len(torch.unique(best)),
        difference=float((mine - theirs).abs().max()),
        scale=float(mine.abs().max()),
    )


def _need(package: str, install: str) -> Any:
    try:
        return importlib.import_module("safetensors.torch" if package == "safetensors" else package)
    except ImportError:
        raise ExportError(f"{package} is not installed: {install}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporters say about themselves to themselves."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
