"""The flags of train.py: one frozen dataclass whose fields are the flags, their defaults and their help."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from .inceptionv4 import MIN_IMAGE_SIZE
from .schedule import SCHEDULES

EXAMPLE = """examples:
  python train.py --shards /data/shards --batch-size 155 --lr .060546875 --epochs 240 --label-smoothing 0.1
  python train.py --data /data/imagenet --device cpu --image-size 96 --blocks 1,1,1 --epochs 1
  python train.py --shards /data/shards --evaluate --resume output/model_best.pth.tar
"""


def flag(default: Any, help: str, *names: str, **kwargs: Any) -> Any:
    """A field and its flag: ``names`` are further spellings, ``kwargs`` are argparse's."""
    return dataclasses.field(default=default, metadata={"help": help, "names": names, "kwargs": kwargs})


def _list_of(kind: type[int] | type[float], count: int, example: str) -> Callable[[str], tuple[float, ...]]:
    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"want {count} numbers such as {example}, got {text!r}")
        return values

    return parse


def _workers(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"want auto or a number, got {text!r}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What train.py was asked for. Raises ValueError, naming the flag, for what makes no sense."""

    shards: Path | None = flag(None, "a folder that tools/make_shards.py wrote", type=Path)
    data: Path | None = flag(None, "an ImageNet folder (or a folder of shards)", type=Path)
    output: Path = flag(Path("output"), "where checkpoints and metrics.jsonl go", "--save_path", type=Path)
    device: str = flag("auto", "auto, cuda, cuda:1, cpu")
    gpu: int | None = flag(None, "the same as --device cuda:N", type=int)
    backend: str = flag("auto", "what decodes: auto, pillow, dali")
    workers: int | Literal["auto"] = flag("auto", "cores that decode: auto or a number", "-j", type=_workers)
    epochs: int = flag(90, "epochs in all", type=int)
    start_epoch: int = flag(0, "first epoch (a checkpoint brings its own)", type=int)
    batch_size: int = flag(128, "pictures in a step", "-b", type=int)
    lr: float = flag(0.045, "learning rate", "--learning-rate", type=float)
    lr_schedule: str = flag("step", "step: a tenth every 30 epochs; cosine: down to 0", choices=SCHEDULES)
    warm_up_epochs: int = flag(0, "epochs of rising learning rate", "--warm_up_epochs", type=int)
    momentum: float = flag(0.9, "of SGD", type=float)
    weight_decay: float = flag(1e-4, "on every parameter", "--wd", "--weight_decay", type=float)
    label_smoothing: float = flag(0.0, "share of the target spread over all classes", type=float)
    clip_agc: float = flag(0.0, "adaptive gradient clipping: a gradient of at most this share of its weights "
                           "(try 0.05 with --lr 0.1; 0: off)", type=float)  # fmt: skip
    amp: bool = flag(False, "compute in bfloat16 where it is safe (autocast); weights stay fp32")
    num_classes: int | None = flag(None, "width of the classifier (default: the data set's)", type=int)
    blocks: tuple[int, int, int] = flag(
        (4, 7, 3), "Inception-A, -B, -C blocks; 4,7,3 is InceptionV4", type=_list_of(int, 3, "4,7,3")
    )
    arch: str = flag("inceptionv4", "the only one there is", "-a", type=str.lower, choices=("inceptionv4",))
    crop_scale: tuple[float, float] = flag(
        (0.08, 1.0), "least and largest share of a picture's area in a training crop", type=_list_of(float, 2, "0.08,1")
    )
    image_size: int = flag(299, f"pixels, at least {MIN_IMAGE_SIZE}", type=int)
    pretrained: Path | None = flag(
        None, "weights to begin with: Cadene's, timm's, ours (.pth or .safetensors)", type=Path
    )
    new_head: bool = flag(False, "with --pretrained: keep the features, begin a new classifier (fine-tuning)")
    resume: Path | None = flag(None, "go on from a checkpoint", type=Path)
    evaluate: bool = flag(False, "score the val split and stop", "-e")
    seed: int = flag(0, "of the order, the crops and the weights", type=int)
    print_freq: int = flag(10, "steps between two log lines", "-p", type=int)

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.data is None):
            raise ValueError("give --shards DST or --data FOLDER, one of the two")
        for name in ("epochs", "batch_size", "print_freq"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("start_epoch", "warm_up_epochs", "lr", "momentum", "weight_decay", "clip_agc", "seed"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        self._check("image_size", self.image_size >= MIN_IMAGE_SIZE, f"at least {MIN_IMAGE_SIZE}")
        self._check("blocks", min(self.blocks) >= 0, "three counts of at least 0")
        self._check("num_classes", self.num_classes is None or self.num_classes >= 1, "at least 1")
        if self.evaluate and not (self.resume or self.pretrained):
            raise ValueError("--evaluate needs weights: give --resume CHECKPOINT or --pretrained FILE")
        if self.new_head and not self.pretrained:
            raise ValueError("--new-head needs --pretrained FILE")

    def _check(self, name: str, good: bool, want: str) -> None:
        if not good:
            raise ValueError(f"--{name.replace('_', '-')} must be {want}, was {getattr(self, name)}")


def parse_options(argv: Sequence[str] | None = None) -> TrainOptions:
    """Flags -> options. Exits with code 2 and one line where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train InceptionV4 from shards (or from an ImageNet folder).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in dataclasses.fields(TrainOptions):
        names = (f"--{field.name.replace('_', '-')}", *field.metadata["names"])
        text, default = field.metadata["help"], field.default
        if default is False:
            parser.add_argument(*names, dest=field.name, action="store_true", help=text)
            continue
        if default is not None:
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            text = f"{text} (default: {shown})"
        metavar = None if "choices" in field.metadata["kwargs"] else field.name.split("_")[-1].upper()
        parser.add_argument(
            *names, dest=field.name, default=default, help=text, metavar=metavar, **field.metadata["kwargs"]
        )
    values = vars(parser.parse_args(argv))
    try:
        return TrainOptions(**values)
    except ValueError as error:
        parser.error(str(error))
