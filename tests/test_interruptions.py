"""Training is stopped, files are damaged, the data change: it goes on as if nothing had been, or says why not."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from model.checkpoints import newest_whole, numbered
from model.interruptions import Every
from pipeline.console import run_tool
from pipeline.writer import WriterConfig, write_shards
from tests.conftest import metrics

# Two epochs of six steps, with all that a step has to remember or to draw.
SMALL = (
    "--device", "cpu", "--blocks", "0,0,0", "--image-size", "75", "--batch-size", "8", "--workers", "1", "--lr", "0.01",
    "--epochs", "2", "--print-freq", "1", "--checkpoint-every", "2", "--ema", "0.9", "--mixup", "0.2", "--cutmix", "1",
    "--erase", "0.25", "--lr-schedule", "cosine-step", "--warm-up-epochs", "1", "--accumulate", "2",
)  # fmt: skip


def start(*arguments: object) -> int:
    """train.py in this process; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        run_tool("train.py", train.entry([str(argument) for argument in arguments]))
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert start("--shards", shards, *SMALL, "--output", output) == 0
    return output


def losses(output: Path) -> dict[tuple[int, int], float]:
    """By epoch and step; where a step was taken twice, the later one."""
    return {(line["epoch"], line["step"]): line["step_loss"] for line in metrics(output, "train")}


def stop_at(step: int, number: int, patch: pytest.MonkeyPatch, function: str = "train_step") -> None:
    """Have a signal arrive while a step is being taken."""
    taken, real = [0], getattr(train, function)

    def signalled(*arguments: Any) -> Any:
        taken[0] += 1
        if taken[0] == step:
            os.kill(os.getpid(), number)
        return real(*arguments)

    patch.setattr(train, function, signalled)


def same_end(output: Path, whole: Path) -> bool:
    """The files of the last checkpoints are the same, to the last bit: weights, momentum, position, sums."""
    return (output / "checkpoint.pth.tar").read_bytes() == (whole / "checkpoint.pth.tar").read_bytes()


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGTERM, 3), *(pytest.param(*case, marks=pytest.mark.soak) for case in [(signal.SIGINT, 8), (15, 6)])],
)
def test_fault_24_a_signal_finishes_the_step_saves_and_exits(
    shards: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: int, step: int
) -> None:
    """And the run that goes on ends with the very file of the run that was left alone. Step 6 is an epoch's last."""
    common = ("--shards", shards, *SMALL, "--output", tmp_path, "--resume", "auto")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(step, number, patch)
        assert start(*common) == 128 + number
    out, err = capfd.readouterr()
    assert err == ""
    where = f"sample {min(8 * ((step - 1) % 6 + 1), 42)} of epoch {(step - 1) // 6}"
    assert f"{signal.Signals(number).name}: stopped after {where}, saved as {tmp_path}/checkpoint-0" in out
    assert len(losses(tmp_path)) == step
    assert start(*common) == 0
    assert losses(tmp_path) == losses(whole)
    assert same_end(tmp_path, whole)
    assert [line["loss"] for line in metrics(tmp_path, "epoch")] == [line["loss"] for line in metrics(whole, "epoch")]


@pytest.mark.soak
def test_fault_24_a_signal_while_scoring_is_followed_by_the_score(shards: Path, whole: Path, tmp_path: Path) -> None:
    """Nothing is trained twice: the next run scores the epoch, then goes on."""
    common = ("--shards", shards, *SMALL, "--output", tmp_path, "--resume", "auto")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(1, signal.SIGTERM, patch, "evaluate")
        assert start(*common) == 143
    assert len(metrics(tmp_path, "train")) == 6
    assert start(*common) == 0
    assert len(metrics(tmp_path, "train")) == 12
    assert [line["acc1"] for line in metrics(tmp_path, "val")] == [line["acc1"] for line in metrics(whole, "val")]
    assert same_end(tmp_path, whole)


def test_the_last_checkpoints_and_the_best_are_kept(whole: Path) -> None:
    """Six were written: two in each epoch and one at its end."""
    last = (whole / "checkpoint.pth.tar").resolve().name
    best = (whole / "model_best.pth.tar").resolve().name
    names = [path.name for _, path in numbered(whole)]
    assert names[-1] == last
    assert best in names
    assert [number for number, path in numbered(whole) if path.name != best or number > 3] == [4, 5, 6]
    assert not list(whole.glob(".*"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_fault_28_a_damaged_checkpoint_is_not_used(
    shards: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output, symlinks=True)
    *_, (_, before), (_, last) = numbered(output)
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes({"flip": bytes(data), "cut": bytes(data[: len(data) // 3]), "empty": b""}[damage])
    said: list[str] = []
    assert newest_whole(output, said.append) == before
    assert len(said) == 1
    assert f"{last} is damaged" in said[0]
    if damage != "flip":
        return
    common = ("--shards", shards, *SMALL, "--output", output, "--resume")
    assert start(*common, output / "checkpoint.pth.tar") == 1
    assert "checkpoint.pth.tar is damaged: its content has not the hash" in capfd.readouterr().err
    assert start(*common, "auto") == 0
    assert f"=> resumed from {before} (epoch 1, sample 32" in capfd.readouterr().out
    assert same_end(output, whole)


def test_fault_28_a_checkpoint_that_was_being_written_when_the_run_was_killed_is_not_seen(
    whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output, symlinks=True)
    (output / ".checkpoint.partial").write_bytes(b"half")
    assert newest_whole(output, pytest.fail) == (output / "checkpoint.pth.tar").resolve()
    assert newest_whole(tmp_path, pytest.fail) is None


class Malice:
    def __init__(self, canary: Path):
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


@pytest.mark.parametrize("way", ["--resume", "auto", "--pretrained"])
def test_fault_29_code_in_a_checkpoint_is_never_run(
    shards: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], way: str
) -> None:
    state = torch.load(whole / "checkpoint.pth.tar", weights_only=True)
    state["amp"] = Malice(tmp_path / "canary")
    (tmp_path / "out").mkdir()
    evil = tmp_path / "out/checkpoint.pth.tar"
    torch.save(state, evil, pickle_module=pickle)
    how = {"auto": ("--resume", "auto")}.get(way, (way, evil))
    assert start("--shards", shards, *SMALL, "--output", tmp_path / "out", *how) == 1
    err = capfd.readouterr().err
    assert "refused, it holds more than tensors" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--blocks", "1,0,0"), "has blocks 0,0,0, the model 1,0,0: give --blocks 0,0,0"),
        (("--num-classes", "5"), "has 3 classes, the model 5"),
    ],
)
def test_fault_30_a_checkpoint_of_another_network_is_refused(
    shards: Path,
    whole: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    flags: Sequence[str],
    message: str,
) -> None:
    resume = ("--resume", whole / "checkpoint.pth.tar")
    assert start("--shards", shards, *SMALL, *flags, "--output", tmp_path, *resume) == 1
    assert message in capfd.readouterr().err


def test_fault_30_a_checkpoint_of_other_classes_is_refused(
    folder: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three classes here, three there; what was learnt as class 1 has another name."""
    shutil.copytree(folder, tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "class1").rename(tmp_path / "data" / split / "class1b")
    common = ("--data", tmp_path / "data", *SMALL, "--output", tmp_path / "out")
    assert start(*common, "--resume", whole / "checkpoint.pth.tar") == 1
    assert "its class 1 is 'class1', here it is 'class1b'" in capfd.readouterr().err


def test_fault_31_shards_that_have_changed_since_are_refused_unless_told(
    folder: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same pictures, made into shards anew with another seed: the numbers mean other samples."""
    write_shards(WriterConfig(source=folder, destination=tmp_path / "dst", shard_mb=0.1, seed=1))
    shutil.copytree(whole, tmp_path / "out", symlinks=True)
    _, middle = numbered(tmp_path / "out")[-2]
    assert start("--shards", tmp_path / "dst", *SMALL, "--output", tmp_path / "out", "--resume", middle) == 2
    err = capfd.readouterr().err
    assert "--resume: the pictures are others: their fingerprint was" in err
    assert "--new-data to begin its epoch anew" in err
    told = ("--new-data", "--resume", middle)
    assert start("--shards", tmp_path / "dst", *SMALL, "--output", tmp_path / "out", *told) == 0
    assert [line["step"] for line in metrics(tmp_path / "out", "train")[-6:]] == list(range(6))


def test_fault_32_another_batch_size_and_number_of_workers_go_on_in_the_middle(
    shards: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """32 of the 42 samples are behind it: 10 are left, in batches of 4."""
    shutil.copytree(whole, tmp_path / "out", symlinks=True)
    _, middle = numbered(tmp_path / "out")[-2]
    other = ("--batch-size", "4", "--workers", "2", "--resume", middle)
    assert start("--shards", shards, *SMALL, *other, "--output", tmp_path / "out") == 0
    steps = metrics(tmp_path / "out", "train")[12:]
    assert [line["step"] for line in steps] == [8, 9, 10]
    assert "Epoch: [1][ 8/11]" in capfd.readouterr().out


def test_fault_27_weights_that_are_not_finite_are_not_saved(
    shards: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Between two log lines nobody looks at the loss; the checkpoint that comes first finds it out."""
    shutil.copytree(whole, tmp_path / "out", symlinks=True)
    before = [path for _, path in numbered(tmp_path / "out")]
    rough = ("--lr", 1e12, "--epochs", 9, "--print-freq", 1000, "--resume", "auto")
    assert start("--shards", shards, *SMALL, *rough, "--output", tmp_path / "out") == 1
    err = capfd.readouterr().err
    assert re.search(r"training has diverged: .*the last good checkpoint is .*/checkpoint-0000\d\d-", err), err
    good = newest_whole(tmp_path / "out", pytest.fail)
    assert good is not None
    assert str(good) in err
    state = torch.load(good, weights_only=True)["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    assert before[-1] in [path for _, path in numbered(tmp_path / "out")]


def test_fault_27_a_loss_scale_that_has_come_down_to_nothing_ends_the_run(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is infinite, for ever: every step is skipped, and every time the scale is halved."""
    real = train.train_step

    def infinite(run: Any, batch: Any) -> Any:
        run.criterion = lambda logits, _: logits.sum() * torch.inf
        return real(run, batch)

    monkeypatch.setattr(train, "train_step", infinite)
    flags = ("--loss-scale", "dynamic", "--epochs", 9)
    assert start("--shards", shards, *SMALL, *flags, "--output", tmp_path) == 1
    err = capfd.readouterr().err
    assert re.search(r"the loss scale has come down to 0\.5 at step 4 of epoch 2: .*last good checkpoint is /", err), (
        err
    )


@pytest.mark.parametrize(
    ("text", "want"),
    [("500", Every(steps=500)), ("10m", Every(minutes=10)), ("0.5m", Every(minutes=0.5)), ("0", Every())],
)
def test_how_often_is_steps_or_minutes(text: str, want: Every) -> None:
    assert Every.parse(text) == want
    assert Every.parse(str(want)) == want
    with pytest.raises(ValueError, match="steps, or minutes such as 10m"):
        Every.parse(text + "x")


@pytest.mark.soak
def test_a_full_disk_does_not_end_training_but_is_said(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is taken away for a while; at the end of the run the last checkpoint is there."""
    real = train.train_step
    output, away = tmp_path / "out", tmp_path / "away"
    taken = [0]

    def take_away(run: Any, batch: Any) -> Any:
        taken[0] += 1
        if taken[0] == 2:
            (output / ".checkpoint.partial").mkdir()  # what is to be written cannot be
        if taken[0] == 5:
            (output / ".checkpoint.partial").rename(away)
        return real(run, batch)

    monkeypatch.setattr(train, "train_step", take_away)
    assert start("--shards", shards, *SMALL, "--epochs", 1, "--output", output) == 0
    assert "note: a checkpoint could not be written to" in capfd.readouterr().out
    assert newest_whole(output, pytest.fail) == (output / "checkpoint.pth.tar").resolve()
