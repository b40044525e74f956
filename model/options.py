"""The flags of train.py: one frozen dataclass whose fields are the flags, their defaults and their help."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from .compiled import MODES
from .inceptionv4 import MIN_IMAGE_SIZE
from .initialisation import INITIALISATIONS
from .interruptions import Every
from .precision import LEVELS
from .ranks import Ranks
from .recipe import read_recipe, recipe_names
from .schedule import SCHEDULES
from .tensorboard import find_writer

SHUFFLES = ("auto", "global", "block")  # pipeline/config.py says what they are

EXAMPLE = """examples:
  python train.py --shards /data/shards --recipe original-1p
  python train.py --shards /data/shards --recipe original-8p --multiprocessing-distributed
  torchrun --nproc-per-node 8 train.py --shards /data/shards --amp --batch-size 1024 --lr .484375
  python train.py --data /data/imagenet --device cpu --image-size 96 --blocks 1,1,1 --epochs 1
  python train.py --shards /data/shards --evaluate --resume output/model_best.pth.tar
"""


# Flags that say one thing: where the command line gives one of them, a recipe's other ones do not count.
_RIVALS = (
    ("shards", "data"),
    ("device", "npu", "gpu"),
    ("image_size", "progressive"),
    ("amp", "opt_level"),
    ("addr", "dist_url"),
)


class _Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def leave(self, message: str) -> NoReturn:
        """End the process, with code 2 and a line that says why."""
        super().error(message)


class _Switch(argparse.BooleanOptionalAction):
    """--flag, and --no-flag for what a recipe has switched on, which the line of usage leaves out."""

    def format_usage(self) -> str:
        return self.option_strings[0]


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


def _number_or(word: str, kind: type[int] | type[float]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if text == word:
            return text
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"want {word} or a number, got {text!r}") from None

    return parse


def _every(text: str) -> Every:
    try:
        return Every.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [part.split("@") for part in text.split(",")]
        return tuple((int(epoch), int(size)) for size, epoch in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(f"want sizes and epochs such as 160@0,224@30, got {text!r}") from None


def _resume(text: str) -> Path | str:
    return text if text == "auto" else Path(text)


def _cards(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"want numbers such as 0,1,2,3, got {text!r}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What train.py was asked for. Raises ValueError, naming the flag, for what makes no sense."""

    shards: str | None = flag(None, "a folder that tools/make_shards.py wrote; its URL (s3://, gs://, https:// ...); "
                              "some of its tars: /data/train-{000000..000146}.tar")  # fmt: skip
    data: Path | None = flag(None, "an ImageNet folder (or a folder of shards)", type=Path)
    recipe: str | None = flag(
        None,
        f"a TOML file of these flags, or one of {', '.join(recipe_names())}; flags given here go before it, and "
        "--no-amp and the like switch off what it switches on",
    )
    verify_shards: bool = flag(False, "read all shards through and compare their hashes first (from a URL: always)")
    cache_dir: Path | None = flag(None, "where shards from a URL are kept (default: ~/.cache/headrace)", type=Path)
    cache_gb: float = flag(100.0, "how much that may be, of all URLs, in 10^9 bytes", type=float)
    output: Path = flag(Path("output"), "where checkpoints and metrics.jsonl go", "--save_path", type=Path)
    device: str = flag("auto", "auto, npu, npu:1, cuda, cuda:1, cpu; sim:474.6x8 takes pictures as 8 such cards would")
    npu: int | None = flag(None, "the same as --device npu:N", type=int)
    gpu: int | None = flag(None, "the same as --device cuda:N", type=int)
    backend: str = flag("auto", "what decodes: auto, pillow, dali")
    on_error: Literal["fail", "replace"] = flag(
        "fail",
        "of a picture that cannot be decoded: fail ends the run, replace takes the next",
        choices=("fail", "replace"),
    )
    workers: int | Literal["auto"] = flag(
        "auto", "cores that decode, of the node: auto or a number", "-j", type=_number_or("auto", int)
    )
    epochs: int = flag(90, "epochs in all", type=int)
    start_epoch: int = flag(0, "first epoch (a checkpoint brings its own)", type=int)
    batch_size: int = flag(
        None, "pictures in a step, of all cards of the node together (default: 128; with several cards 512)", "-b",
        type=int,
    )  # fmt: skip
    lr: float = flag(None, "learning rate (default: 0.045; with several cards 0.1)", "--learning-rate", type=float)
    lr_schedule: str = flag(
        None, "step: a tenth every 30 epochs; cosine: down to 0, by the epoch; cosine-step: by the step "
        "(default: step; with several cards cosine)",
        choices=SCHEDULES,
    )  # fmt: skip
    warm_up_epochs: int = flag(0, "epochs of rising learning rate", "--warm_up_epochs", type=int)
    momentum: float = flag(0.9, "of SGD", type=float)
    weight_decay: float = flag(1e-4, "on every parameter", "--wd", "--weight_decay", type=float)
    label_smoothing: float = flag(0.0, "share of the target spread over all classes", type=float)
    clip_agc: float = flag(0.0, "adaptive gradient clipping: a gradient of at most this share of its weights "
                           "(try 0.05 with --lr 0.1; 0: off)", type=float)  # fmt: skip
    amp: bool = flag(False, "compute in low precision, as --opt-level says")
    opt_level: str = flag(
        None, "O0: fp32; O1: autocast; O2: half weights but batch norm, fp32 master weights; O3: all half "
        "(default: O2 with --amp, else O0)", choices=LEVELS,
    )  # fmt: skip
    amp_dtype: str | None = flag(
        None, "what is low precision (default: float16; on a CPU bfloat16)", choices=("float16", "bfloat16")
    )
    loss_scale: float | Literal["dynamic"] | None = flag(
        None,
        "dynamic, or a fixed factor (default: dynamic at O1 and O2 in float16, else 1)",
        type=_number_or("dynamic", float),
    )
    accumulate: int = flag(
        1, "take each step's pictures through the model in so many parts: the memory of one", type=int
    )
    compile: str | None = flag(
        None, "compile the model first: default; reduce-overhead (CUDA graphs); max-autotune (minutes of trying)",
        choices=MODES,
    )  # fmt: skip
    ema: float = flag(
        0.0, "average the weights over the steps: that is scored, both are saved (try 0.9999; 0: off)", type=float
    )
    mixup: float = flag(0.0, "blend pairs of pictures: alpha (try 0.2; 0: off)", type=float)
    cutmix: float = flag(0.0, "cut one picture into another: alpha (try 1; 0: off)", type=float)
    erase: float = flag(0.0, "share of pictures in which a rectangle is erased (try 0.25; 0: off)", type=float)
    multiprocessing_distributed: bool = flag(False, "train on all cards of --device-list, a process each")
    device_list: tuple[int, ...] | None = flag(None, "cards such as 0,1,2,3 (default: all there are)", type=_cards)
    world_size: int = flag(1, "nodes, each of which runs this command", type=int)
    rank: int = flag(0, "number of this node", type=int)
    addr: str | None = flag(None, "address of node 0, where there are several")
    dist_url: str | None = flag(None, "the same with a port: tcp://ADDRESS:PORT")
    dist_backend: str | None = flag(None, "collectives (default: hccl on npu, nccl on cuda, gloo on cpu)")
    num_classes: int | None = flag(None, "width of the classifier (default: the data set's)", type=int)
    blocks: tuple[int, int, int] = flag(
        (4, 7, 3), "Inception-A, -B, -C blocks; 4,7,3 is InceptionV4", type=_list_of(int, 3, "4,7,3")
    )
    arch: str = flag("inceptionv4", "the only one there is", "-a", type=str.lower, choices=("inceptionv4",))
    crop_scale: tuple[float, float] = flag(
        (0.08, 1.0), "least and largest share of a picture's area in a training crop", type=_list_of(float, 2, "0.08,1")
    )
    image_size: int = flag(299, f"pixels, at least {MIN_IMAGE_SIZE}", type=int)
    progressive: tuple[tuple[int, int], ...] = flag(
        (), "train on pictures of other sizes: 160@0,224@30,299@60 is 160 pixels from epoch 0 on, and so forth; scored "
        "at --image-size", type=_sizes,
    )  # fmt: skip
    init: str = flag("original", "how weights begin: original: as torch has it; even: full depth learns from the first "
                     "steps", choices=INITIALISATIONS)  # fmt: skip
    pretrained: Path | None = flag(
        None, "weights to begin with: Cadene's, timm's, ours (.pth or .safetensors)", type=Path
    )
    new_head: bool = flag(False, "with --pretrained: keep the features, begin a new classifier (fine-tuning)")
    checkpoint_every: Every = flag(
        Every(minutes=10), "besides the end of each epoch: a number of steps, or minutes such as 10m (0: never)",
        type=_every,
    )  # fmt: skip
    keep_checkpoints: int = flag(3, "how many of the last ones stay, besides the best", type=int)
    resume: Path | Literal["auto"] | None = flag(
        None, "go on from a checkpoint; auto: from the newest whole one in --output, if there is one", type=_resume
    )
    new_data: bool = flag(
        False, "with --resume: begin the epoch anew with data, or an order, that are not the checkpoint's"
    )
    evaluate: bool = flag(False, "score the val split and stop", "-e")
    shuffle: str = flag(
        "auto",
        "global; block: whole shards in random order, of which a few are mixed; auto: block from a URL, else global",
        choices=SHUFFLES,
    )
    shuffle_window: int = flag(32, "block: how many shards are mixed", type=int)
    seed: int = flag(0, "of the order, the crops and the weights", type=int)
    print_freq: int = flag(10, "steps between two log lines", "-p", type=int)
    tensorboard: bool = flag(False, "write what goes to metrics.jsonl for TensorBoard too, to --output/tensorboard")

    def __post_init__(self) -> None:
        self._fill_in()
        self._check_together()
        for name in ("epochs", "batch_size", "print_freq", "keep_checkpoints", "shuffle_window", "accumulate"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("start_epoch", "warm_up_epochs", "lr", "momentum", "weight_decay", "clip_agc", "seed"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("mixup", "cutmix"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "a number of at least 0")
        self._check("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        self._check("ema", 0 <= self.ema < 1, "in [0, 1)")
        self._check("erase", 0 <= self.erase <= 1, "in [0, 1]")
        self._check("image_size", self.image_size >= MIN_IMAGE_SIZE, f"at least {MIN_IMAGE_SIZE}")
        self._check_sizes()
        self._check("blocks", min(self.blocks) >= 0, "three counts of at least 0")
        self._check("num_classes", self.num_classes is None or self.num_classes >= 1, "at least 1")
        self._check("loss_scale", self.loss_scale is None or self.loss_scale == "dynamic" or self.loss_scale > 0,
                    "dynamic or above 0")  # fmt: skip
        self._check("world_size", self.world_size >= 1, "at least 1")
        self._check("rank", 0 <= self.rank < self.world_size, f"in [0, {self.world_size - 1}]")
        if self.device_list is not None:
            good = len(set(self.device_list)) == len(self.device_list) and min(self.device_list) >= 0
            self._check("device_list", good, "different numbers of at least 0")
        if self.tensorboard:
            find_writer()

    def _check_together(self) -> None:
        """What one flag asks of another."""
        if (self.shards is None) == (self.data is None):
            raise ValueError("give --shards DST or --data FOLDER, one of the two")
        if self.evaluate and not (self.resume or self.pretrained):
            raise ValueError("--evaluate needs weights: give --resume CHECKPOINT or --pretrained FILE")
        for name, needs in (("new_head", "pretrained"), ("new_data", "resume")):
            if getattr(self, name) and not getattr(self, needs):
                raise ValueError(f"--{name.replace('_', '-')} needs --{needs} FILE")
        if self.multiprocessing_distributed and self.world_size > 1 and not (self.addr or self.dist_url):
            raise ValueError(f"--world-size {self.world_size} needs --addr, the address of node 0")
        if self.accumulate > 1 and self.compile not in (None, "default"):
            raise ValueError(
                f"--compile {self.compile} keeps gradients in CUDA graphs, where the next part of a step would write "
                f"over them: with --accumulate {self.accumulate} give --compile default"
            )

    def _check_sizes(self) -> None:
        epochs, sizes = [epoch for epoch, _ in self.progressive], [size for _, size in self.progressive]
        if sizes and (epochs[0] != 0 or epochs != sorted(set(epochs)) or min(sizes) < MIN_IMAGE_SIZE):
            raise ValueError(
                f"--progressive must begin at epoch 0, with rising epochs and at least {MIN_IMAGE_SIZE} pixels, was "
                + ",".join(f"{size}@{epoch}" for size, epoch in zip(sizes, epochs, strict=True))
            )

    def _fill_in(self) -> None:
        """Defaults that hang on something else: the original has one script for one card and another for eight."""
        several = self.multiprocessing_distributed or Ranks.from_environment().many
        self._default("batch_size", 512 if several else 128)
        self._default("lr", 0.1 if several else 0.045)
        self._default("lr_schedule", "cosine" if several else "step")
        self._default("opt_level", "O2" if self.amp else "O0")
        for name in ("world_size", "rank"):  # the original's -1: only this node
            if getattr(self, name) == -1:
                object.__setattr__(self, name, int(name == "world_size"))

    @property
    def device_name(self) -> str:
        """What was asked for, in one word."""
        if self.npu is not None:
            return f"npu:{self.npu}"
        return f"cuda:{self.gpu}" if self.gpu is not None else self.device

    @property
    def meeting_place(self) -> tuple[str | None, int]:
        """Address and port of node 0. The port is the original's, unless --dist-url names one."""
        url = urllib.parse.urlsplit(self.dist_url or "")
        return self.addr or url.hostname, url.port or 29688

    def _default(self, name: str, value: Any) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _check(self, name: str, good: bool, want: str) -> None:
        if not good:
            raise ValueError(f"--{name.replace('_', '-')} must be {want}, was {getattr(self, name)}")


def parse_options(argv: Sequence[str] | None = None) -> TrainOptions:
    """Flags -> options. Exits with code 2 and one line where they are wrong."""
    parser = _Parser(
        prog="train.py",
        description="Train InceptionV4 from shards (or from an ImageNet folder).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in dataclasses.fields(TrainOptions):
        names = (f"--{field.name.replace('_', '-')}", *field.metadata["names"])
        text, default = field.metadata["help"], field.default
        if default is False:
            parser.add_argument(*names, dest=field.name, default=False, action=_Switch, help=text)
            continue
        if default is not None:
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            text = f"{text} (default: {shown})"
        metavar = None if "choices" in field.metadata["kwargs"] else field.name.split("_")[-1].upper()
        parser.add_argument(
            *names, dest=field.name, default=default, help=text, metavar=metavar, **field.metadata["kwargs"]
        )
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return TrainOptions(**vars(parser.parse_args([*_recipe_words(parser, words), *words])))
    except ValueError as error:
        parser.leave(str(error))


def _recipe_words(parser: _Parser, words: Sequence[str]) -> list[str]:
    """What the recipe that ``words`` name says, but for what they say something else about. Raises ValueError."""
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    absent = object()
    given = vars(parser.parse_known_args(words, argparse.Namespace(**dict.fromkeys(names, absent)))[0])
    recipe = given.pop("recipe")
    if recipe is absent:
        return []
    chosen = {name for name, value in given.items() if value is not absent}
    rivals = {name for group in _RIVALS if chosen.intersection(group) for name in group}
    found = read_recipe(recipe, {name.replace("_", "-") for name in given})
    try:
        parser.parse_args(list(itertools.chain(*found.values())))
    except ValueError as error:
        raise ValueError(f"--recipe {recipe}: {error}") from None
    return list(itertools.chain(*(said for name, said in found.items() if name.replace("-", "_") not in rivals)))
