"""Our loader beside its peers on the same photographs: ``python tools/bench_loaders.py --data SRC --json F``.

Every loader lives in a process group of its own (tools/peers.py), built once, stopped with SIGSTOP but for its turns,
so that it neither costs nor prefetches anything meanwhile. They take turns in rounds, a, b, c, a, b, c, ..., so that a
change of the machine's pace meets all of them. The figure to compare is CPU time per image, over all of a loader's
processes: it holds where the machine is shared; images/s does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout, with nothing installed

import numpy as np

from pipeline.console import Progress, run_tool
from pipeline.errors import ConfigError, DataError
from pipeline.files import atomic_write
from pipeline.folder import folder_classes, folder_splits, open_folder, picture_size
from pipeline.manifest import read_manifest

EXAMPLE = """example: two cores, shards of all three kinds, ours and two peers
  python tools/bench_loaders.py --data /data/imagenet-sample --cores 0,1 \\
      --loaders headrace-pillow,torchvision-original,dali --json bench.json

Most peers are installed with benchmarks/peers-requirements.txt; what is missing is a row that says so. Some write the
photographs in a format of their own, and without --shards ours are made too: take a sample of some thousand pictures.
"""
PEERS = ROOT / "tools" / "peers.py"
OURS = "headrace-"
TRACKS = {
    "original": "the files' own bytes",
    "lossless": "transcoded once, the same pixels",
    "recoded": "encoded again at quality 90, long side 400 unless said otherwise",
}
_TRACK_OF = {"verbatim": "original", "crop": "lossless", "recode": "recoded"}  # by make_shards --jpeg
_SHARDS = {"crop": (), "recode": ("--max-side", "400", "--quality", "90")}  # what is made without --shards
_START_WITHIN_S = 1800.0  # peers write their own formats and compile
_TURN_WITHIN_S = 120.0  # beyond ten times the seconds asked for


class _SkippedError(Exception):
    """Why a loader has no figures."""


class Contestant:
    """One loader on one kind of bytes: its process group, and what its turns gave."""

    def __init__(self, name: str, about: dict[str, str], inputs: dict[str, Any], track: str):
        self.name, self.kind, self.track = name, about["kind"], track
        self.reads = about["reads"] if about["reads"] != "any" else "shards" if inputs["shards"] else "folder"
        self.turns: list[dict[str, float]] = []
        self.versions: dict[str, str] = {}
        self.skipped = ""
        self._inputs = inputs
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path(inputs["scratch"] + ".log")

    def start(self) -> None:
        """Build the loader; from then on it is stopped."""
        ours, theirs = os.pipe()
        with open(self._log, "wb") as log:
            # A group of its own in our session: if we are killed, the system ends a stopped group (SIGHUP, SIGCONT).
            self._process = subprocess.Popen(
                [sys.executable, str(PEERS), self.name, str(theirs)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=(theirs,), process_group=0,
            )  # fmt: skip
        os.close(theirs)
        self._replies = ours
        ready = self._ask(json.dumps(self._inputs), _START_WITHIN_S)
        self.name, self.versions = ready.get("loader", self.name), ready.get("versions", {})

    def take_turn(self, seconds: float) -> None:
        """Go on, measure, stop."""
        if not self.skipped:
            self._signal(signal.SIGCONT)
            if turn := self._ask(str(seconds), _TURN_WITHIN_S + 10 * seconds):
                self.turns.append(turn)

    def _ask(self, line: str, within_s: float) -> dict[str, Any]:
        """Send a line and wait for the answer; empty, with ``skipped`` set, where the loader has failed."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # the answer says why
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()
            answer = json.loads(self._read(time.monotonic() + within_s))
            if "error" in answer:
                raise _SkippedError(answer["error"])
            self._signal(signal.SIGSTOP)
            return dict(answer)
        except _SkippedError as reason:
            self.skipped = str(reason)
            self.close()
            return {}

    def _read(self, deadline: float) -> bytes:
        """One line of the answer."""
        assert self._process is not None
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([self._replies], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _SkippedError("no answer: it hangs, or has fewer pictures than it needs for a batch")
            if not (piece := os.read(self._replies, 65536)):
                code = self._process.wait()
                last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
                raise _SkippedError(f"it ended ({f'signal {-code}' if code < 0 else f'exit code {code}'}): {last}")
            answer += piece
        return answer

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End the whole group, stopped or not. Safe to call twice."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            os.close(self._replies)
            self._process = None

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def row(self, cores: int) -> dict[str, Any]:
        """The result: medians over the rounds; ``low`` and ``high`` are of the CPU time per image, in ms."""
        cpu_ms = [1e3 * turn["cpu_s"] / turn["images"] for turn in self.turns]
        rates = [turn["images"] / turn["seconds"] for turn in self.turns]
        measured = bool(self.turns) and not self.skipped
        row = {
            "loader": self.name,
            "track": self.track,
            "kind": self.kind,
            "reads": self.reads,
            "images_per_s": statistics.median(rates) if measured else None,
            "cpu_ms_per_image": statistics.median(cpu_ms) if measured else None,
            "images_per_s_per_core": 1e3 / statistics.median(cpu_ms) if measured else None,
            "low": min(cpu_ms) if measured else None,
            "high": max(cpu_ms) if measured else None,
            "seconds": sum(turn["seconds"] for turn in self.turns),
            "cores": cores,
            "images": sum(int(turn["images"]) for turn in self.turns),
            "versions": self.versions,
        }
        return row if measured else row | {"skipped": self.skipped}


def make_shards(source: Path, destination: Path) -> list[Path]:
    """Shards of the train split, losslessly transcoded and recoded, in a folder that is removed afterwards."""
    made = []
    for jpeg, flags in _SHARDS.items():
        made.append(destination / jpeg)
        command = [sys.executable, str(ROOT / "tools" / "make_shards.py"), str(source), str(made[-1]), "--jpeg", jpeg]
        done = subprocess.run(
            [*command, "--split", "train", "--shard-mb", "16", *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if done.returncode:
            raise DataError(f"make_shards --jpeg {jpeg}: {done.stderr.decode(errors='replace').strip()}")
    return made


def track_of(shards: Path, photographs: int) -> str:
    """The track that a folder of shards belongs to. Raises ConfigError where it does not hold the same photographs."""
    manifest = read_manifest(shards)
    samples = sum(info.samples for info in manifest.splits.get("train", ()))
    if samples != photographs:
        raise ConfigError(f"--shards {shards} holds {samples} training pictures, --data {photographs}: want the same")
    if (jpeg := manifest.made.get("jpeg")) not in _TRACK_OF:
        raise ConfigError(f"--shards {shards} was made with --jpeg {jpeg}, want {' or '.join(_TRACK_OF)}")
    return _TRACK_OF[jpeg]


def contestants(args: argparse.Namespace, photographs: int, cores: int, scratch: Path) -> list[Contestant]:
    """The loaders that were asked for; ours once for the folder and once for each folder of shards."""
    names = choose_loaders(args.loaders)
    shards: list[Path] = args.shards
    if not shards and any(name.startswith(OURS) for name in names):
        shards = make_shards(args.data, scratch)
    places: list[tuple[str | None, str]] = [(None, "original")]
    places += [(str(path), track_of(path, photographs)) for path in shards]
    made: list[Contestant] = []
    known = known_loaders()
    for name in names:
        about = known[name]
        for place, track in places if about["reads"] == "any" else [(None, about["track"])]:
            inputs = {
                "data": str(args.data),
                "shards": place,
                "scratch": str(scratch / f"{len(made)}-{name}"),
                "image_size": args.image_size,
                "batch_size": args.batch_size,
                "cores": cores,
                "seed": 0,
            }
            made.append(Contestant(name, about, inputs, track))
    return made


def known_loaders() -> dict[str, dict[str, str]]:
    """What tools/peers.py has, by name."""
    listed = subprocess.run([sys.executable, str(PEERS), "--list"], stdout=subprocess.PIPE, check=True).stdout
    return dict(json.loads(listed))


def machine(cores: list[int], train: Path) -> dict[str, Any]:
    """Where it is measured, and on what; ``mean_size`` (pixels) and ``mean_bytes`` are of 1,000 photographs."""
    fields = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    cpuinfo = {name.strip(): value.strip() for name, _, value in fields}
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    folder = open_folder(train, folder_classes({"train": train}))
    some = np.unique(np.linspace(0, len(folder) - 1, 1000).astype(int)).tolist()
    pictures = [folder.read(index) for index in some]
    width, height = np.mean([picture_size(picture) for picture in pictures], axis=0).tolist()
    return {
        "cpu": cpuinfo.get("model name", platform.machine()),
        "cores": cores,
        "instruction_sets": [name for name in ("avx2", "avx512f", "asimd", "sve") if name in flags],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "photographs": len(folder),
        "mean_size": [round(width), round(height)],
        "mean_bytes": round(statistics.mean(len(picture) for picture in pictures)),
    }


def table(rows: list[dict[str, Any]], cores: int) -> str:
    """The rows as Markdown, a table for each track, the cheapest first; of what was skipped, why."""
    best = {
        track: max(
            (row["images_per_s_per_core"] or 0.0 for row in rows if row["track"] == track and is_peer(row)), default=0
        )
        for track in TRACKS
    }
    parts: list[str] = []
    for track, meaning in TRACKS.items():
        those = [row for row in rows if row["track"] == track]
        # No peer transcodes; what it is up against are the same pixels in the original bytes.
        against = "original" if track == "lossless" else track
        versus = "to the best peer" if against == track else f"to the best peer, {against}"
        head = (
            "loader",
            "reads",
            "kind",
            "CPU ms/image (low to high)",
            "images/s/core",
            f"images/s, {cores} cores",
            versus,
        )
        lines: list[tuple[str, ...]] = [head]
        for row in sorted(those, key=lambda row: -(row["images_per_s_per_core"] or 0.0)):
            begin = (row["loader"], row["reads"], row["kind"])
            if "skipped" in row:
                lines.append((*begin, "skipped", "", "", row["skipped"].replace("|", "/")))
                continue
            rate = row["images_per_s_per_core"]
            figures = f"{row['cpu_ms_per_image']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            ratio = f"{rate / best[against]:.2f} x" if best[against] else ""
            lines.append((*begin, figures, f"{rate:,.0f}", f"{row['images_per_s']:,.0f}", ratio))
        if those:
            parts.append(f"{track}: {meaning}\n\n{_markdown(lines)}")
    return "\n\n".join(parts)


def is_peer(row: dict[str, Any]) -> bool:
    """Whether a row is somebody else's."""
    return not row["loader"].startswith(OURS)


def _markdown(lines: list[tuple[str, ...]]) -> str:
    """A table with its head first; three columns of words, then figures; the last column is not padded."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    rule = ["-" * width if column < 3 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    text = []
    for line in (lines[0], (*rule, "---"), *lines[1:]):
        cells = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        text.append(f"| {' | '.join((*cells, line[-1]))} |")
    return "\n".join(text)


def parse() -> argparse.Namespace:
    """Flags. Raises ConfigError where they make no sense."""
    parser = argparse.ArgumentParser(
        prog="bench_loaders",
        description="Our loader beside its peers: CPU time per image, on the same photographs.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="SRC", type=Path, required=True, help="an ImageNet folder; train is used")
    parser.add_argument("--shards", metavar="DST", type=Path, action="append", default=[],
                        help="shards made from SRC, may be given again; none: made for the time being")  # fmt: skip
    parser.add_argument("--seconds", metavar="S", type=float, default=2.0, help="length of a turn (default: 2)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="turns of each loader (default: 5)")
    parser.add_argument("--cores", metavar="A,B", help="numbers of the cores to use (default: all there are)")
    parser.add_argument("--loaders", metavar="A,B", help="which (default: all that there are)")
    parser.add_argument("--image-size", metavar="PX", type=int, default=299, help="default: 299")
    parser.add_argument("--batch-size", metavar="B", type=int, default=64, help="default: 64")
    parser.add_argument("--json", metavar="F", type=Path, help="write machine and rows to a file")
    args = parser.parse_args()
    for name in ("seconds", "rounds", "image_size", "batch_size"):
        if not getattr(args, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, was {getattr(args, name)}")
    if args.json and not args.json.absolute().parent.is_dir():
        raise ConfigError(f"--json {args.json}: no such folder")
    return args


def choose_cores(text: str | None) -> list[int]:
    """The cores that were asked for. Raises ConfigError where this process may not use them."""
    allowed = os.sched_getaffinity(0)
    try:
        cores = sorted({int(number) for number in text.split(",")}) if text else sorted(allowed)
    except ValueError:
        raise ConfigError(f"--cores must be numbers as 0,1, was {text!r}") from None
    if missing := [core for core in cores if core not in allowed]:
        raise ConfigError(f"--cores: this process may not use {missing}, only {sorted(allowed)}")
    return cores


def choose_loaders(text: str | None) -> list[str]:
    """The loaders that were asked for, in that order. Raises ConfigError for names that nobody has."""
    known = list(known_loaders())
    names = list(dict.fromkeys(text.split(","))) if text else known
    if wrong := [name for name in names if name not in known]:
        raise ConfigError(f"--loaders: there is no {', '.join(map(repr, wrong))}; there are {', '.join(known)}")
    return names


def run() -> int:
    """Build all, let them take turns, show, and write the JSON."""
    args = parse()
    cores = choose_cores(args.cores)
    here = machine(cores, folder_splits(args.data, ("train",))["train"])
    if here["photographs"] < args.batch_size:  # some peers drop the rest of an epoch: all of it
        raise ConfigError(
            f"--batch-size {args.batch_size} is more than {args.data} has: {here['photographs']} pictures"
        )
    os.sched_setaffinity(0, cores)  # every loader inherits it, before anything counts the cores
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch, contextlib.ExitStack() as stack:
        entered = contestants(args, here["photographs"], len(cores), Path(scratch))
        with Progress("loaders", len(entered) * (1 + args.rounds), "turns") as progress:
            for number, contestant in enumerate(entered):
                stack.enter_context(contestant).start()
                progress.update(number + 1)
            for number, contestant in enumerate(entered * args.rounds):
                contestant.take_turn(args.seconds)
                progress.update(len(entered) + number + 1)
    rows = [contestant.row(len(cores)) for contestant in entered]
    here["versions"] = {name: version for row in rows for name, version in sorted(row["versions"].items())}
    result = {"machine": here, "rows": rows}
    print(table(rows, len(cores)))
    if args.json:
        with atomic_write(args.json) as file:
            file.write(json.dumps(result, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    run_tool("bench_loaders", run)
