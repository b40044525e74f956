"""What a run says of itself: the live line, the stall, the note on starvation, TensorBoard."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import itertools
import os
import pty
import re
import shlex
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from model import starvation
from model.epoch_log import EpochLog
from model.live import Live
from model.options import TrainOptions, parse_options
from model.ranks import Ranks
from model.starvation import Span, Starvation, profile_command
from model.tensorboard import FOLDER, Scalars
from tests.conftest import Run, metrics
from tests.faulty import Slow
from tests.test_worker_faults import faulty_loader

SMALL = ("--device", "cpu", "--blocks", "0,0,0", "--image-size", "75", "--workers", "1", "--lr", "0.001")
LIVE = re.compile(
    r"(Epoch: \[\d\]|Test:) \d+/\d+  FPS [\d,]+\.\d  stall \d+ %  queue [0-3]/4  loss \d+\.\d{4}  ETA \d+:\d\d"
    r"(, of the run \d+:\d\d)?"
)


@contextlib.contextmanager
def terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """stdout as a terminal of that width; what was written to it is in the list afterwards."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # what a terminal says once nobody has it open any more
            while data := os.read(ours, 65536):
                written.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(theirs, "w") as screen, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            yield written
    finally:
        reader.join()
        os.close(ours)


def test_a_terminal_has_a_live_line(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fields, at every step but those that print a line; and nothing of it is left."""
    monkeypatch.setattr("model.live._REDRAW_EVERY_S", 0.0)
    with terminal(150, monkeypatch) as written:
        train.main(["--shards", str(shards), *SMALL, "--batch-size", "8", "--epochs", "2", "--output", str(tmp_path)])
    text = b"".join(written).decode()
    drawn = [part.removesuffix("\x1b[K") for part in re.findall(r"[^\r\n]+", text) if re.match(r"[^\t]+\x1b\[K$", part)]
    drawn = [line for line in drawn if line]
    assert len(drawn) == 2 * (6 - 2) + 2 * (3 - 2)
    assert all(LIVE.fullmatch(line) for line in drawn), drawn
    assert [", of the run" in line for line in drawn] == [True] * 4 + [False] * 6
    assert "\x1b[K\x1b" not in text  # no colour, nothing else
    left = [line.rpartition("\x1b[K")[2] for line in text.split("\r\n")]  # what stays of each line of the screen
    lines = [line[:12] for line in left if line.startswith("Epoch")]
    assert lines == [f"Epoch: [{epoch}][{step}" for epoch in (0, 1) for step in (0, 5)]
    assert not any("ETA" in line for line in left)


def fill(live: Live) -> None:
    live.open("[npu id: 0 ] Epoch: [0]")
    live.draw(
        done=3, behind=100, steps=5005, later_steps=9 * 5005, samples=3072, stall_s=0.0, ready=2, slots=4, loss=6.9
    )  # fmt: skip


@pytest.mark.parametrize("columns", [20, 40, 81])
def test_the_live_line_never_wraps(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(columns, monkeypatch) as written:
        fill(Live())
    (line,) = re.findall(r"\r([^\r]*)\x1b\[K", b"".join(written).decode())
    assert len(line) == columns - 1
    assert line.startswith("[npu id: 0 ] Epoch:")


def test_only_the_first_rank_is_live_and_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.live._REDRAW_EVERY_S", 0.0)
    assert not Live().due()
    Live().clear()
    assert capsys.readouterr().out == ""
    with terminal(80, monkeypatch) as written:
        assert Live().due()
        assert not Live(quiet=True).due()
        Live(quiet=True).clear()
    assert written == []


@dataclasses.dataclass(frozen=True)
class Fed:
    """A batch for the log."""

    labels: Tensor
    global_size: int
    wait_s: float
    ready: int


def test_the_stall_of_several_ranks_is_the_slowests() -> None:
    """Rank 1's device stands still for longer than rank 0's, and rank 2's never."""

    def total(values: Tensor) -> Tensor:
        return values + torch.tensor([*[0.0] * 6, 0.0, 2 * (values[6] + 1), 0.0])

    stall_s = itertools.count(100.0, 0.25)  # asked at the beginning, and at each of three lines
    log = EpochLog(
        "", steps=4, print_freq=2, device=torch.device("cpu"), synchronize=lambda: None, total=total,
        stall_s=lambda: next(stall_s), world_size=3, live=Live(quiet=True), slots=4,
    )  # fmt: skip
    batch = Fed(labels=torch.zeros(2, dtype=torch.int64), global_size=6, wait_s=9.0, ready=2)
    lines = [log.step(batch, torch.tensor(1.0), torch.eye(2)) for _ in range(4)]
    first, none, second, last = lines
    assert none is None
    assert first
    assert second
    assert last
    elapsed_s = [line["step_s"] * (line["step"] + 1) for line in (first, second, last)]
    # Between two lines, this rank's device stands still for 0.25 s, and the slowest for 2 * (0.25 + 1).
    for line, seconds, stalled_s in zip((first, second, last), elapsed_s, (2.5, 5.0, 7.5), strict=True):
        assert line["stall_fraction"] * seconds == pytest.approx(stalled_s)
    assert log.recent.stall_s == pytest.approx(2.5)
    assert log.recent[::3] == (1, 6)
    assert [line["recent_ready_batches"] for line in (first, second, last)] == [2, 2, 2]


# Starvation

OPTIONS = TrainOptions(shards="my shards/train-{000..146}.tar")


def notes(*spans: Span, warm_up_steps: int = 0, ranks: Ranks | None = None) -> list[tuple[int, str]]:
    """Which of the spans made it speak, and what it said."""
    watch = Starvation(OPTIONS, ranks or Ranks(), batch_size=64, workers=7, warm_up_steps=warm_up_steps)
    return [(number, note) for number, span in enumerate(spans) if (note := watch.fed(span))]


def spans(stalls: list[float], *, seconds: float = 10.0) -> list[Span]:
    return [Span(steps=10, wall_s=seconds, stall_s=stall * seconds, images=1000) for stall in stalls]


def test_a_stall_is_said_once_after_a_whole_window_of_it() -> None:
    ((when, note),) = notes(*spans([0.34] * 20))
    assert when == 5  # the sixth ten seconds
    assert note == (
        "note: the device has waited for the host 34 % of the last 60 s: this run is input-bound. What is slow, and "
        "what each remedy is worth: python tools/profile_loader.py --shards 'my shards/train-{000..146}.tar' "
        "--devices 1 --workers 7 --demand 151.5"  # 100 a second, in 0.66 of it
    )


@pytest.mark.parametrize(
    "stalls",
    [
        [0.1] * 20,  # the threshold itself
        [0.5] + [0.0] * 20,  # a moment, 8 % of the window
        [0.0] * 20,
        [0.99] * 5,  # less than a window
    ],
)
def test_what_passes_or_is_small_is_not_said(stalls: list[float]) -> None:
    assert notes(*spans(stalls)) == []


def test_the_window_slides() -> None:
    """What was long ago does not hide what is now, nor does an epoch's end matter."""
    ((when, note),) = notes(*spans([0.0] * 600 + [0.3] * 20))
    assert when == 602  # of the last six, three stalled for 0.3: 15 %; with two it was 10 %
    assert " 15 % of the last 60 s" in note


def test_the_warm_up_is_left_out() -> None:
    first = Span(steps=1, wall_s=600, stall_s=600, images=64)
    assert notes(first, *spans([1.0] + [0.0] * 20), warm_up_steps=10) == []
    assert notes(first, *spans([1.0] + [0.0] * 20)) != []


def test_the_demand_is_one_cards() -> None:
    ((_, note),) = notes(*spans([0.5] * 6), ranks=Ranks(world_size=16, local_world_size=8, launched=True))
    assert note.endswith(" --devices 8 --workers 56 --demand 12.5")  # 2,000 in 10 s, on 16


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data", "/a b/c"], ["--data", "/a b/c"]),
        (["--shards", "s3://bucket/x"], ["--shards", "s3://bucket/x"]),
        (
            ["--shards", "x", "--image-size", "107", "--backend", "pillow"],
            ["--image-size", "107", "--backend", "pillow"],
        ),
    ],
)
def test_the_command_is_that_of_the_run(argv: list[str], words: list[str], run_here: Run) -> None:
    command = shlex.split(profile_command(parse_options(argv), devices=2, batch_size=32, workers=3))
    assert command[:2] == ["python", "tools/profile_loader.py"]
    assert set(words) | {"--batch-size", "32", "--devices", "2", "--workers", "3"} <= set(command)
    known = run_here("tools/profile_loader.py", "--help").stdout
    assert all(f"{word} " in known for word in [*command, "--demand"] if word.startswith("--"))


def train_from(
    pictures: list[Path], here: Path, monkeypatch: pytest.MonkeyPatch, *, delay_s: float, window_s: float
) -> list[str]:
    """One picture a step, from a disk that takes so long over each, watched from the second step on. What it printed
    on starvation."""
    for picture in pictures:
        (here / "data/train" / picture.parent.name).mkdir(parents=True, exist_ok=True)
        (here / "data/train" / picture.parent.name / picture.name).symlink_to(picture)
    monkeypatch.setattr(train, "build_loader", lambda config: faulty_loader(config, Slow, delay_s=delay_s))
    monkeypatch.setattr(starvation, "WINDOW_S", window_s)
    monkeypatch.setattr(Starvation.__init__, "__kwdefaults__", {"warm_up_steps": 1})
    out = io.StringIO()
    flags = ("--image-size", 107, "--batch-size", 1, "--print-freq", 1, "--epochs", 1, "--output", here / "out")
    with contextlib.redirect_stdout(out):
        train.main(["--data", str(here / "data"), *SMALL, *map(str, flags)])
    return [line for line in out.getvalue().splitlines() if "input-bound" in line]


def test_a_starved_training_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = sorted((folder / "train/class0").iterdir())[:4]
    (note,) = train_from(pictures, tmp_path, monkeypatch, delay_s=1.5, window_s=0.5)
    command = shlex.split(note.partition("is worth: ")[2])
    wanted = ["--data", str(tmp_path / "data"), "--devices", "1", "--workers", "1", "--image-size", "107"]
    assert command[2:-1] == [*wanted, "--batch-size", "1", "--demand"]
    lines = metrics(tmp_path / "out", "train")
    assert float(command[-1]) > lines[-1]["recent_fps"]  # what it would train if it did not wait
    assert lines[-1]["recent_stall_fraction"] > starvation.THRESHOLD


def test_a_fed_training_does_not(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = sorted((folder / "train").glob("*/*"))
    assert train_from(pictures, tmp_path, monkeypatch, delay_s=0.0, window_s=0.5) == []


def test_a_rehearsal_says_so_too(shards: Path, monkeypatch: pytest.MonkeyPatch, run_here: Run) -> None:
    monkeypatch.setattr(starvation, "WINDOW_S", 1e-3)
    done = run_here(
        "train.py", "--shards", shards, "--device", "sim:50000x2", "--image-size", 75, "--batch-size", 4,
        "--workers", 1, "--epochs", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (note,) = [line for line in done.stdout.splitlines() if "input-bound" in line]
    command, _, demand = note.rpartition(" --demand ")
    assert command.endswith(f"--shards {shards} --devices 1 --workers 1 --image-size 75 --batch-size 4")
    assert float(demand) == pytest.approx(100_000)


# TensorBoard


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of all events in a folder, in the order in which they were written."""
    events = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed")
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # length, its checksum, an event, its checksum
            (length,) = struct.unpack_from("<Q", data)
            event = events.Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_has_the_numbers_of_the_metrics(shards: Path, run_here: Run, tmp_path: Path) -> None:
    """Also of a run that goes on from a checkpoint, which counts its steps on."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    common = (
        "train.py", "--shards", shards, *SMALL, "--batch-size", 16, "--print-freq", 1, "--output", tmp_path,
        "--tensorboard", "--resume", "auto",
    )  # fmt: skip
    for epochs in (1, 2):
        done = run_here(*common, "--epochs", epochs)
        assert (done.returncode, done.stderr) == (0, "")
    wanted = []
    for kind, steps in (("train", range(1, 7)), ("epoch", (3, 6)), ("val", (3, 6)), ("checkpoint", (3, 6))):
        for step, line in zip(steps, metrics(tmp_path, kind), strict=True):
            wanted += [(f"{kind}/{name}", step, value) for name, value in line.items() if name not in ("kind", "time")]
    found = scalars(tmp_path / FOLDER)
    assert sorted((tag, step) for tag, step, _ in found) == sorted((tag, step) for tag, step, _ in wanted)
    assert {(tag, step): value for tag, step, value in found} == pytest.approx(
        {(tag, step): value for tag, step, value in wanted}, rel=1e-6
    )
    done = run_here(*common[:-2], "--epochs", 1)  # a new run, beside which the one before is set aside
    assert done.returncode == 0
    assert {step for _, step, _ in scalars(tmp_path / FOLDER)} == {1, 2, 3}


def test_tensorboard_is_asked_for_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as ended:
        parse_options(["--shards", "x", "--tensorboard"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(": pip install tensorboardX")


def test_what_is_no_number_is_no_scalar(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    written = Scalars(tmp_path, behind=0)
    values: dict[str, Any] = {"epoch": None, "options": {"lr": "1"}, "device": "cpu", "workers": 2}
    written.write("run", values, 1)
    written.close()
    assert scalars(tmp_path) == [("run/workers", 1, 2.0)]
