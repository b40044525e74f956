"""train.py as its user runs it."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from model.augmentation import Augmentation
from model.inceptionv4 import InceptionV4
from model.options import TrainOptions
from model.precision import Precision
from model.ranks import Ranks
from pipeline.console import run_tool
from pipeline.device import find_device
from pipeline.transfer import DeviceBatch
from tests.conftest import Run, metrics
from train import build_run, entry, part_sizes, train_step

# The smallest InceptionV4 there is: stem and reductions only, at the smallest picture.
SMALL = ("--device", "cpu", "--blocks", "0,0,0", "--image-size", 75, "--batch-size", 16, "--workers", 1, "--lr", 0.01)

TRAIN_LINE = re.compile(
    r"Epoch: \[\d+\]\[ *\d+/\d+\]\tTime +\d+\.\d{3} \( *\d+\.\d{3}\)\tData +\d+\.\d{3} \( *\d+\.\d{3}\)"
    r"\tLoss \d\.\d{4}e[+-]\d\d \(\d\.\d{4}e[+-]\d\d\)"
    r"\tAcc@1 +\d+\.\d\d \( *\d+\.\d\d\)\tAcc@5 +\d+\.\d\d \( *\d+\.\d\d\)"
)


@pytest.fixture(scope="module")
def two_epochs(shards: Path, run_here: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output and folder of a run of two epochs."""
    output = tmp_path_factory.mktemp("two")
    done = run_here("train.py", "--shards", shards, *SMALL, "--epochs", 2, "--print-freq", 1, "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, output


def test_log_lines_are_the_originals(two_epochs: tuple[str, Path]) -> None:
    out = two_epochs[0]
    lines = [line for line in out.splitlines() if line.startswith("Epoch")]
    assert len(lines) == 2 * 3  # 42 pictures in batches of 16
    assert all(TRAIN_LINE.fullmatch(line) for line in lines), lines
    assert not set("\r\x1b") & set(out)  # the live line is for terminals
    assert len(re.findall(r"^batch_size: 16 \* FPS@all \d+\.\d{3}$", out, re.MULTILINE)) == 2
    assert len(re.findall(r"^ \* Acc@1 \d+\.\d{3} Acc@5 \d+\.\d{3}$", out, re.MULTILINE)) == 2
    # What the original's scripts do: the last field of the last FPS line; what follows Acc@1 in the last such line.
    assert float([line for line in out.splitlines() if "FPS" in line][-1].split()[-1]) > 0
    assert 0 <= float([line for line in out.splitlines() if "* Acc@1" in line][-1].split("Acc@1")[1].split()[0]) <= 100


def test_metrics_count_every_picture(two_epochs: tuple[str, Path]) -> None:
    _, output = two_epochs
    assert [line["epoch"] for line in metrics(output, "epoch")] == [0, 1]
    assert [line["samples"] for line in metrics(output, "val")] == [21, 21]
    for line in metrics(output, "val"):
        correct = line["acc1"] / 100 * 21
        assert correct == pytest.approx(round(correct), abs=1e-6)
        assert line["acc5"] == 100  # three classes
    steps = metrics(output, "train")
    assert len(steps) == 6
    assert all(0 <= line["data_wait_s"] <= line["step_s"] for line in steps)


def test_stalls_are_the_waits_of_a_device_that_computes_while_it_waits(two_epochs: tuple[str, Path]) -> None:
    _, output = two_epochs
    for epoch in range(2):
        lines = [line for line in metrics(output, "train") if line["epoch"] == epoch]
        for line in lines:
            assert line["stall_fraction"] == pytest.approx(line["data_wait_s"] / line["step_s"], rel=1e-5, abs=1e-9)
            assert 0 <= line["recent_ready_batches"] <= 3  # of 4 slots, one is handed out
        seconds = [size / line["recent_fps"] for size, line in zip((16, 16, 10), lines, strict=True)]
        stalls = [line["recent_stall_fraction"] * s for line, s in zip(lines, seconds, strict=True)]
        assert sum(seconds) / 3 == pytest.approx(lines[-1]["step_s"])
        assert sum(stalls) / sum(seconds) == pytest.approx(lines[-1]["stall_fraction"])
        assert metrics(output, "epoch")[epoch]["stall_fraction"] == lines[-1]["stall_fraction"]
    assert all(0 <= line["stall_fraction"] <= 1 for line in metrics(output, "val"))


def test_the_checkpoint_has_the_originals_keys(two_epochs: tuple[str, Path]) -> None:
    _, output = two_epochs
    state = torch.load(output / "checkpoint.pth.tar", weights_only=True)
    assert {"epoch", "arch", "state_dict", "best_acc1", "optimizer", "amp"} <= set(state)
    assert state["epoch"] == 2
    assert state["classes"] == ["class0", "class1", "class2"]
    InceptionV4(3, blocks=(0, 0, 0)).load_state_dict(state["state_dict"])
    best = torch.load(output / "model_best.pth.tar", weights_only=True)
    assert best["best_acc1"] == max(line["acc1"] for line in metrics(output, "val"))
    assert not list(output.glob("*.partial"))


def test_an_earlier_run_is_not_overwritten(shards: Path, run_here: Run, tmp_path: Path) -> None:
    common = ("--shards", shards, *SMALL, "--output", tmp_path, "--epochs", 1)
    assert run_here("train.py", *common).returncode == 0
    first = (tmp_path / "checkpoint.pth.tar").read_bytes()
    done = run_here("train.py", *common, "--seed", 1)
    assert f"an earlier run's files were moved to {tmp_path}/earlier-1" in done.stdout
    assert (tmp_path / "earlier-1/checkpoint.pth.tar").read_bytes() == first
    assert (tmp_path / "checkpoint.pth.tar").read_bytes() != first
    assert len(metrics(tmp_path, "run")) == len(metrics(tmp_path / "earlier-1", "run")) == 1


def test_evaluate_scores_a_checkpoint_as_training_did(
    two_epochs: tuple[str, Path], folder: Path, run_here: Run, tmp_path: Path
) -> None:
    """From the plain folder, with another batch size: the same score."""
    checkpoint = two_epochs[1] / "checkpoint.pth.tar"
    small = ("--device", "cpu", "--blocks", "0,0,0", "--image-size", 75, "--batch-size", 5, "--workers", 2)
    done = run_here("train.py", "--data", folder, *small, "--evaluate", "--resume", checkpoint, "--output", tmp_path)
    assert done.returncode == 0
    (got,) = metrics(tmp_path, "val")
    want = metrics(two_epochs[1], "val")[-1]
    assert (got["samples"], got["acc1"]) == (21, pytest.approx(want["acc1"]))
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-4)
    assert not (tmp_path / "checkpoint.pth.tar").exists()


def test_data_folder_options_and_spellings_of_the_original(folder: Path, run: Run, tmp_path: Path) -> None:
    """A folder without val, every spelling, bf16, clipping, and the note on what shards would give."""
    done = run(
        "train.py", "--data", folder / "val", "--device=cpu", "--blocks", "0,0,0", "--image-size", 75, "-b", 8, "-j", 1,
        "--epochs=1", "--learning-rate", 0.01, "--mom", 0.9, "--weight_decay", 1e-4, "--warm_up_epochs", 1, "-p", 1,
        "--label-smoothing=0.1", "--amp", "--clip-agc", 0.05, "--lr-schedule", "cosine", "--save_path", tmp_path,
        "--arch", "InceptionV4", "--seed=49", "--num-classes", 10,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "make_shards.py" in done.stdout
    assert "O2 bfloat16" in done.stdout
    assert "Acc@1 " in done.stdout
    assert len(torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["state_dict"]["last_linear.bias"]) == 10


def test_the_rate_falls_with_every_step(shards: Path, run_here: Run, tmp_path: Path) -> None:
    """Three steps an epoch, each at the middle of its own stretch of the curve; written down is the last one's."""
    done = run_here(
        "train.py", "--shards", shards, *SMALL, "--epochs", 2, "--lr-schedule", "cosine-step", "--output", tmp_path
    )
    assert done.returncode == 0, done.stderr
    want = [0.005 * (1 + math.cos(math.pi * (epoch + 2.5 / 3) / 2)) for epoch in range(2)]
    assert [line["lr"] for line in metrics(tmp_path, "epoch")] == pytest.approx(want)


def test_pictures_grow_with_the_epochs(shards: Path, run_here: Run, tmp_path: Path) -> None:
    """And are scored at one size."""
    done = run_here(
        "train.py", "--shards", shards, *SMALL, "--epochs", 3, "--progressive", "96@0,75@1", "--output", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert [line["image_size"] for line in metrics(tmp_path, "epoch")] == [96, 75, 75]
    assert "at 96 px, 75 from epoch 1 on, scored at 75" in done.stdout.splitlines()[0]
    assert re.findall(r"^epoch (\d): pictures of (\d+) px", done.stdout, re.MULTILINE) == [("1", "75")]
    scored = run_here("train.py", "--shards", shards, *SMALL, "--evaluate", "--resume", tmp_path / "checkpoint.pth.tar",
                      "--output", tmp_path / "scored")  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    assert metrics(tmp_path / "scored", "val")[0]["loss"] == pytest.approx(
        metrics(tmp_path, "val")[-1]["loss"], rel=1e-5
    )


@pytest.mark.parametrize(("batch", "accumulate"), [(155, 1), (155, 2), (10, 4), (9, 5), (3, 8)])
def test_what_is_compiled_is_what_a_step_takes(batch: int, accumulate: int) -> None:
    options = TrainOptions(shards="x", batch_size=batch, accumulate=accumulate)
    sizes = part_sizes(options, Ranks())
    parts = Augmentation()(torch.zeros(batch, 3, 1, 1), torch.zeros(batch), epoch=0, position=0).parts(max(sizes))
    assert {len(part.labels) for part in parts} == sizes
    assert len(parts) <= accumulate


def test_without_accumulate_a_step_is_never_split() -> None:
    """Also of a batch that is larger than the options': the acceptance run and the profiler bring their own."""
    options = TrainOptions(shards="x", batch_size=2, blocks=(0, 0, 0))
    device = find_device("cpu")
    precision = Precision(level="O0", dtype=torch.bfloat16, device_type="cpu")
    run = build_run(options, Ranks(), device, precision, ("a", "b"))
    run.begin_network()
    seen: list[int] = []
    run.model.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    batch = DeviceBatch(images=torch.rand(5, 3, 107, 107), labels=torch.tensor([0, 1, 0, 1, 0]), global_size=5, end=5,
                        wait_s=0.0, ready=0)  # fmt: skip
    train_step(run, batch)
    assert seen == [5]


def test_it_learns(run_here: Run, tmp_path: Path) -> None:
    """Loss falls on pictures that can be told apart: three shades of grain."""
    import numpy as np
    from PIL import Image

    for label in range(3):
        (tmp_path / f"data/train/{label}").mkdir(parents=True)
        for number in range(20):
            rng = np.random.default_rng(100 * label + number)
            pixels = rng.normal(128, 8 + 40 * label, (100, 100, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"data/train/{label}/{number}.jpg", quality=95)
    done = run_here(
        "train.py", "--data", tmp_path / "data", *SMALL, "--epochs", 4, "--clip-agc", 0.05, "--lr", 0.1,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [line["loss"] for line in metrics(tmp_path / "out", "epoch")]
    assert losses[-1] < 0.5 * losses[0]


def test_a_loss_that_is_no_number_ends_the_run(
    two_epochs: tuple[str, Path], shards: Path, run_here: Run, tmp_path: Path
) -> None:
    """At the next log line, and with the checkpoint that was there."""
    checkpoint = two_epochs[1] / "checkpoint.pth.tar"
    shutil.copy(checkpoint, tmp_path)
    done = run_here(
        "train.py", "--shards", shards, *SMALL, "--lr", 1e12, "--epochs", 4, "--print-freq", 1,
        "--resume", tmp_path / "checkpoint.pth.tar", "--output", tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"train.py: error: the loss is (nan|inf) at step \d of epoch 2: training has .*\n", done.stderr)
    assert (tmp_path / "checkpoint.pth.tar").read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give --shards DST or --data FOLDER"),
        (["--shards", "{missing}"], 2, "no such folder of shards"),
        (["--data", "{missing}"], 2, "no such folder"),
        (["--data", "{empty}"], 1, "no class folder"),
        (["--shards", "{empty}"], 2, "has no manifest.json"),
        (["--shards", "{gap}"], 1, "train-000001.tar is missing"),
        (["--data", "{hole}"], 1, "remove the empty class or fill it"),
        (["--shards", "{shards}", "--bogus"], 2, "unrecognized arguments: --bogus"),
        (["--shards", "{shards}", "--image-size", "74"], 2, "--image-size must be at least 75, was 74"),
        (["--shards", "{shards}", "--batch-size", "0"], 2, "--batch-size must be at least 1, was 0"),
        (["--shards", "{shards}", "--blocks", "1,2"], 2, "--blocks"),
        (["--shards", "{shards}", "--workers", "-1"], 2, "workers must be a whole number"),
        (["--shards", "{shards}", "--device", "tpu"], 2, "device must be"),
        (["--shards", "{shards}", "--backend", "magic"], 2, "backend must be"),
        (["--shards", "{shards}", "--num-classes", "2"], 2, "--num-classes must be at least the data set's 3"),
        (["--shards", "{shards}", "--evaluate"], 2, "--evaluate needs weights"),
        (["--shards", "{shards}", "--resume", "{missing}"], 1, "{missing}"),
        (["--shards", "{shards}", "--resume", "{text}"], 1, "{text}"),
        (["--shards", "{shards}", "--pretrained", "{text}"], 1, "{text}"),
        (["--data", "{folder}/val", "--evaluate", "--pretrained", "{text}"], 2, "no split 'val'"),
        (["--shards", "{shards}", "--output", "/proc/nowhere"], 2, "--output /proc/nowhere"),
        (
            ["--shards", "{shards}", "--batch-size", "41"],
            2,
            "the last batch of an epoch would give the model one picture",
        ),
        (["--shards", "{shards}", "--batch-size", "1"], 2, "each step would give the model one picture alone, of 42"),
        (["--shards", "{shards}", "--batch-size", "9", "--accumulate", "5"], 2, "less to --accumulate"),
        (["--shards", "{shards}", "--progressive", "75@0,96"], 2, "want sizes and epochs such as 160@0,224@30"),
        (["--shards", "{shards}", "--progressive", "75@1"], 2, "--progressive must begin at epoch 0"),
        (["--shards", "{shards}", "--progressive", "75@0,96@2,107@2"], 2, "was 75@0,96@2,107@2"),
        (["--shards", "{shards}", "--progressive", "74@0"], 2, "at least 75 pixels, was 74@0"),
        (["--shards", "{shards}", "--accumulate", "0"], 2, "--accumulate must be at least 1, was 0"),
        (["--shards", "{shards}", "--ema", "1"], 2, "--ema must be in [0, 1), was 1.0"),
        (["--shards", "{shards}", "--erase", "2"], 2, "--erase must be in [0, 1], was 2.0"),
        (["--shards", "{shards}", "--mixup", "inf"], 2, "--mixup must be a number of at least 0, was inf"),
        (["--shards", "{shards}", "--accumulate", "2", "--compile", "max-autotune"], 2, "give --compile default"),
    ],
)
def test_a_wrong_call_is_one_clear_line(
    arguments: list[str],
    code: int,
    message: str,
    shards: Path,
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = {name: tmp_path / name for name in ("missing", "empty", "gap", "hole", "text")}
    places["empty"].mkdir()
    places["text"].write_text("not a checkpoint")
    shutil.copytree(shards, places["gap"])
    (places["gap"] / "train-000001.tar").unlink()
    shutil.copytree(folder, places["hole"])
    (places["hole"] / "train/nothing").mkdir()
    names = {name: str(path) for name, path in places.items()} | {"shards": str(shards), "folder": str(folder)}
    base = [*map(str, SMALL[:6]), "--output", str(tmp_path / "out")]
    argv = [*base, *(argument.format(**names) for argument in arguments)]
    with pytest.raises(SystemExit) as ended:
        run_tool("train.py", entry(argv))
    stderr = capfd.readouterr().err
    lines = stderr.strip().splitlines()
    assert ended.value.code == code, stderr
    assert message.format(**names) in lines[-1]
    assert lines[-1].startswith("train.py: error: ")
    assert len(lines) == 1 or lines[0].startswith("usage: ")
    assert "Traceback" not in stderr
