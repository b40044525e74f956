"""Claims: the fast way trains as well as the slow one, and full depth learns from the first steps.

    python benchmarks/curves.py CIFAR10 WORK [--device cuda --image-size 299 --a-class 5000 --epochs 20 ...]

CIFAR10 has train/<class>/<picture> and test/<class>/<picture>. Each curve is a run of train.py on the same pictures by
the same recipe but for what its name says: crop-addressed shards against verbatim ones, O2 against O0, three seeds of
either, so that a difference between two curves can be held against that between two seeds; then the beginnings of the
network. Runs that are finished in WORK are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# name -> shards, further flags
CURVES: dict[str, tuple[str, str]] = {
    "O0": ("crop", ""),
    "O0 verbatim": ("verbatim", ""),
    "O2": ("crop", "--amp"),
    "O0 seed 1": ("crop", "--seed 1"),
    "O2 seed 1": ("crop", "--amp --seed 1"),
    "O0 seed 2": ("crop", "--seed 2"),
    "O2 seed 2": ("crop", "--amp --seed 2"),
}
RECIPE = "--init even --clip-agc 0.05 --lr 0.1 --lr-schedule cosine-step --crop-scale 0.35,1 --label-smoothing 0.1"
# The first epoch alone, at one rate all the way: what each of the two does for full depth.
BEGINNINGS: dict[str, tuple[str, str]] = {
    "torch's beginning, lr 0.045": ("crop", "--lr 0.045"),
    "torch's beginning, --clip-agc 0.05 --lr 0.1": ("crop", "--clip-agc 0.05 --lr 0.1"),
    "--init even, lr 0.045": ("crop", "--init even --lr 0.045"),
    "--init even --clip-agc 0.05 --lr 0.1": ("crop", "--init even --clip-agc 0.05 --lr 0.1"),
}


def python(*words: object) -> None:
    """A tool of ours, quietly; what it says on stderr is shown."""
    subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def make_shards(args: argparse.Namespace) -> None:
    """The first pictures of each class, as crop-addressed and as verbatim shards."""
    folder = args.work / "pictures"
    for split, source, count in (("train", "train", args.a_class), ("val", "test", args.val_a_class)):
        for one in sorted((args.cifar10 / source).iterdir()):
            (folder / split / one.name).mkdir(parents=True, exist_ok=True)
            for picture in sorted(one.iterdir())[:count]:
                link = folder / split / one.name / picture.name
                if not link.is_symlink():
                    link.symlink_to(picture.resolve())
    for kind in ("crop", "verbatim"):
        if not (args.work / kind / "manifest.json").exists():
            python("tools/make_shards.py", folder, args.work / kind, "--split", "train,val", "--jpeg", kind)


def curve(args: argparse.Namespace, name: str, shards: str, flags: str, epochs: int) -> list[dict[str, float]]:
    """Train, unless that is done; one dict of figures an epoch."""
    output = args.work / name.replace(" ", "_").replace("'", "")
    metrics = output / "metrics.jsonl"
    if not (output / "done").exists():
        python(
            "train.py", "--shards", args.work / shards, "--output", output, "--device", args.device,
            "--image-size", args.image_size, "--batch-size", args.batch_size, "--blocks", args.blocks,
            "--epochs", epochs, *flags.split(), *args.flags.split(),
        )  # fmt: skip
        (output / "done").touch()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    scores = [line for line in lines if line["kind"] == "val"]
    trained = [line for line in lines if line["kind"] == "epoch"]
    return [{"loss": a["loss"], "fps": a["fps_all"], "acc1": b["acc1"]} for a, b in zip(trained, scores, strict=True)]


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("work", type=Path, help="shards and runs go there")
    parser.add_argument("--a-class", type=int, default=500, help="training pictures of each class (default: 500)")
    parser.add_argument("--val-a-class", type=int, default=200, help="of val, from test/ (default: 200)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--image-size", type=int, default=75)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--blocks", default="4,7,3")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--flags", default="", help="further flags for train.py")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(CURVES | BEGINNINGS)}")
    return parser.parse_args()


def main() -> None:
    """Train and print."""
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    make_shards(args)
    for curves, recipe, epochs in ((CURVES, RECIPE, args.epochs), (BEGINNINGS, "", 1)):
        for name, (shards, flags) in curves.items():
            if args.only and name not in args.only:
                continue
            found = curve(args, name, shards, f"{recipe} {flags}", epochs)
            print(f"{name}: {found[-1]['fps']:.1f} images/s", flush=True)
            for title in ("loss", "acc1"):
                print(f"  {title:5}" + "".join(f"{one[title]:8.3f}" for one in found), flush=True)


if __name__ == "__main__":
    main()
