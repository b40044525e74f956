"""python -m tests.fuzz: every target, or one; a run is a seed and a count."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # children are forked: no threads yet

from tests.fuzz import checkpoints, crops, manifests, pictures, tars
from tests.fuzz.engine import Target, make, one, run, watch

TARGETS = (*pictures.TARGETS, *crops.TARGETS, *tars.TARGETS, *manifests.TARGETS, *checkpoints.TARGETS)


def main() -> int:
    """Run, print a line for each target and what was found; returns 1 where something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=[target.name for target in TARGETS], action="append", help="(default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100_000, help="inputs of all targets together")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one input, in this process, with its traceback")
    parser.add_argument("--save", type=Path, metavar="FILE", help="with --only: write the input to a file")
    args = parser.parse_args()
    chosen = [target for target in TARGETS if args.target is None or target.name in args.target]
    if args.only is not None:
        return _only(chosen[0], args.seed, args.only, args.save)
    failed, shares = False, sum(target.share for target in chosen)
    for target in chosen:
        report = run(target, seed=args.seed, count=-(-args.count * target.share // shares))
        print(*report.lines(), sep="\n", flush=True)
        failed |= bool(report.failures)
    return int(failed)


def _only(target: Target, seed: int, number: int, save: Path | None) -> int:
    data, rng = make(target, target.seeds(), seed, number)
    print(f"{len(data)} bytes: {data!r}")
    if save:
        save.write_bytes(data)
    with tempfile.TemporaryDirectory() as folder:
        print(one(target, data, rng, Path(folder), watch()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
