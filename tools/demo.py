"""The whole way in a few minutes: pictures, shards, training, evaluation. ``make demo`` runs it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A shallower stack (one block of each kind) and small pictures, so that two CPU cores show learning within minutes;
# adaptive clipping is what makes InceptionV4 learn from the first steps.
TRAIN = (
    "--device cpu --image-size 75 --blocks 1,1,1 --batch-size 32 --epochs 6 --lr 0.1 --lr-schedule cosine "
    "--warm-up-epochs 1 --clip-agc 0.05 --label-smoothing 0.1 --print-freq 10"
)


def step(*arguments: object) -> None:
    """Show a command as a user would type it, and run it."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    # OpenMP's threads keep their pace on a busy machine if they sleep while they wait; on an idle one that costs 15 to
    # 25 %. A demo should take the same time everywhere.
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT, env={"OMP_WAIT_POLICY": "PASSIVE"} | os.environ)


def main() -> int:
    """Run the steps and say what happened."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument(
        "destination", metavar="DST", type=Path, help="a folder of its own; what an earlier demo left is replaced"
    )
    demo: Path = parser.parse_args().destination
    pictures, shards, output = demo / "pictures", demo / "shards", demo / "output"
    for made in (pictures, shards, output):
        shutil.rmtree(made, ignore_errors=True)
    start = time.monotonic()
    try:
        step("tools/make_sample_images.py", pictures)
        step("tools/make_shards.py", pictures, shards, "--shard-mb", 16)
        step("train.py", "--shards", shards, "--output", output, *TRAIN.split())
    except subprocess.CalledProcessError as error:
        return error.returncode
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    score = [line for line in lines if line["kind"] == "val"][-1]
    speed = [line for line in lines if line["kind"] == "epoch"][-1]
    waiting = 100 * speed["data_wait_s"] / speed["step_s"]
    classes = len(list((pictures / "val").iterdir()))
    print(f"""
{"-" * 78}
In {time.monotonic() - start:.0f} s: pictures -> shards -> batches -> a trained network.

  Acc@1     {score["acc1"]:.1f} % of {score["samples"]} pictures it has not seen; chance is {100 / classes:.0f} %
  FPS@all   {speed["fps_all"]:.1f} images/s, {waiting:.1f} % of the time waiting for data
  network   InceptionV4 with blocks 1,1,1 instead of 4,7,3, at 75 instead of 299 pixels:
            that is what learns on a CPU within minutes
  weights   {output}/model_best.pth.tar
  metrics   {output}/metrics.jsonl

Next, with your own ImageNet folder (train/<class>/<picture>, val/<class>/<picture>):

  .venv/bin/python tools/make_shards.py /data/imagenet /data/shards
  .venv/bin/python train.py --shards /data/shards
  .venv/bin/python tools/profile_loader.py --shards /data/shards --demand 474.6 --devices 8
""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
