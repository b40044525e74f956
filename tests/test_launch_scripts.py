"""The scripts in test/, as users of the original recipe run them, and what they leave for their tools."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "test").glob("*.sh"))
NETWORK = "InceptionV4_ID1778_for_PyTorch"
# Behind the scripts' own flags: the smallest InceptionV4 there is, on a CPU.
SMALL = (
    "--device=cpu", "--opt-level=O0", "--blocks=0,0,0", "--image-size=75", "--batch-size=16", "--lr=0.01",
    "--epochs=1", "--workers=1",
)  # fmt: skip
TWO_RANKS = (*SMALL, "--device-list=0,1", "--print-freq", "1")

Done = subprocess.CompletedProcess[str]


def environment(**values: str) -> dict[str, str]:
    ascends = ("ASCEND", "TASK_QUEUE", "COMBINED", "HCCL")
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(ascends)}
    return theirs | {"PYTHON": sys.executable} | values


def bash(cwd: Path, *arguments: object, **variables: str) -> Done:
    return subprocess.run(
        ["bash", *map(str, arguments)], cwd=cwd, env=environment(**variables),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project at another place, so that test/output is not that of whoever runs the tests."""
    root = tmp_path_factory.mktemp("a checkout")
    shutil.copytree(ROOT / "test", root / "test", ignore=shutil.ignore_patterns("output"))
    for name in ("train.py", "model", "pipeline"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.fixture(scope="module")
def one_card(checkout: Path, shards: Path) -> Done:
    return bash(checkout, "./test/train_performance_1p.sh", f"--data_path={shards}/", "--device_id=3", *SMALL)


@pytest.fixture(scope="module")
def two_cards(checkout: Path, folder: Path) -> Done:
    return bash(checkout / "test", "train_full_8p.sh", f"--data_path={folder}", *TWO_RANKS)


@pytest.fixture(scope="module")
def scored(two_cards: Done, checkout: Path, folder: Path) -> Done:
    """What ``two_cards`` left, scored; its log is looked at here, for this moves it."""
    assert two_cards.returncode == 0, two_cards.stderr
    return bash(
        checkout / "test", "./train_eval_8p.sh", "--data_path", folder, "--pth_path=output/0/checkpoint.pth.tar",
        *TWO_RANKS,
    )  # fmt: skip


def result_of(done: Done, log: Path, case: str, kind: str) -> dict[str, str]:
    """The result, checked against its form and against what the log says, which is read here anew."""
    assert (done.returncode, done.stderr) == (0, "")
    text = log.read_text()
    shown, rule, block = done.stdout.partition("------------------ Final result ------------------\n")
    assert rule
    assert shown.endswith(text), "the user sees the log"
    final = re.fullmatch(
        r"Final Performance images/sec : (\d+\.\d{3})\nFinal Train Accuracy : (\d+\.\d{3})\n"
        r"E2E Training Duration sec : (\d+)\n",
        block,
    )
    assert final, block
    lines = (log.parent / f"{case}.log").read_text().splitlines()
    result = dict(line.split(" = ") for line in lines)
    assert list(result) == [
        "Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS", "TrainingTime", "TrainAccuracy",
        "ActualLoss", "E2ETrainingTime",
    ]  # fmt: skip
    assert result["Network"] == NETWORK
    assert result["DeviceType"] == platform.machine()
    assert result["CaseName"] == case
    assert (result["ActualFPS"], result["TrainAccuracy"], result["E2ETrainingTime"]) == final.groups()
    assert result["TrainAccuracy"] == re.findall(r"\* Acc@1 (\S+) Acc@5", text)[-1]
    assert result["TrainingTime"] == f"{int(result['BatchSize']) * 1000 / float(result['ActualFPS']):.2f}"
    losses = re.findall(rf"^(?:\[cpu id: 0 \] )?{kind}: .*\tLoss (\d\.\d{{4}}e[+-]\d\d) ", text, re.MULTILINE)
    assert losses
    assert (log.parent / f"train_{case}_loss.txt").read_text().splitlines() == losses
    assert result["ActualLoss"] == losses[-1]
    return result


def test_performance_on_one_card(one_card: Done, checkout: Path) -> None:
    """From the root, with shards; batch and cards are those in force, not the script's 155."""
    log = checkout / "test/output/3/train_3.log"
    result = result_of(one_card, log, f"{NETWORK}_bs16_1p_perf", "Epoch")
    assert (result["BatchSize"], result["RankSize"]) == ("16", "1")
    assert f"\nbatch_size: 16 * FPS@all {result['ActualFPS']}\n" in log.read_text()
    recorded = (log.parent / "metrics.jsonl").read_text().splitlines()[0]
    for name, value in {"amp": True, "seed": 49, "label_smoothing": 0.1, "weight_decay": 1e-4, "loss_scale": 1024.0,
                        "momentum": 0.9, "print_freq": 5, "lr_schedule": "step"}.items():  # fmt: skip
        assert f'"{name}": "{value}"' in recorded


@pytest.mark.soak
def test_training_and_scoring_on_several_cards(two_cards: Done, scored: Done, checkout: Path) -> None:
    """From test/, with a folder of pictures; the same score from the checkpoint, and nothing of the training lost."""
    output = checkout / "test/output/0"
    first = output / "train_0.log.1"
    assert f"note: an earlier log is now {first}\n" in scored.stdout
    trained = result_of(two_cards, first, f"{NETWORK}_bs16_2p_acc", "Epoch")
    assert (trained["BatchSize"], trained["RankSize"]) == ("16", "2")
    assert f"\n[cpu id: 0 ] [batch_size: 8 ] * FPS@all {trained['ActualFPS']}\n" in first.read_text()
    assert '"loss_scale": "128.0"' in (output / "metrics.jsonl").read_text()

    result = result_of(scored, output / "train_0.log", f"{NETWORK}_bs16_2p_eval", "Test")
    assert (result["BatchSize"], result["RankSize"]) == ("16", "2")
    assert result["TrainAccuracy"] == trained["TrainAccuracy"]
    assert (output / "checkpoint.pth.tar").exists()


def test_a_failed_training_has_no_result(shards: Path, tmp_path: Path) -> None:
    """train.py's exit code and its line, both in the log and last on the screen."""
    arguments = (f"--data_path={shards}", "--device=cpu", "--bogus", "--output", tmp_path)
    done = bash(tmp_path, ROOT / "test/train_full_8p.sh", *arguments)
    error = "train.py: error: unrecognized arguments: --bogus\n"
    log = tmp_path / "train_0.log"
    assert done.returncode == 2
    assert done.stderr == (
        f"train_full_8p.sh: training failed with exit code 2; the log is {log}; its last error:\n  {error}"
    )
    assert log.read_text().endswith(error)
    assert done.stdout == log.read_text()
    assert [path.name for path in tmp_path.iterdir()] == [log.name]


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_script_ends_the_training(ends: signal.Signals, shards: Path, tmp_path: Path) -> None:
    """Also SIGINT, which a shell has its background jobs ignore. The card is simulated, for this is about processes."""
    script = subprocess.Popen(
        ["bash", ROOT / "test/train_full_1p.sh", f"--data_path={shards}", "--device=sim:1", f"--output={tmp_path}",
         "--workers=1"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert script.stdout
    assert script.stdout.readline().startswith("rehearsing")
    assert processes_with(str(tmp_path))
    script.send_signal(ends)
    out, err = script.communicate(timeout=60)
    assert script.returncode == 128 + ends
    assert f"training was ended by {ends.name}" in err
    assert "Final result" not in out
    deadline = time.monotonic() + 30  # decode workers follow their trainer
    while processes_with(str(tmp_path)):
        assert time.monotonic() < deadline, "something is left behind"
        time.sleep(0.1)


def processes_with(argument: str) -> list[int]:
    """Those whose command line holds ``argument``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = argument.encode() in (process / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if held and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train_full_1p.sh", [], "give --data_path=FOLDER"),
        ("train_full_8p.sh", ["--data_path="], "give --data_path=FOLDER"),
        ("train_full_8p.sh", ["--data_path"], "--data_path needs a value"),
        ("train_performance_1p.sh", ["--data_path=/no/such"], "--data_path=/no/such: no such folder"),
        ("train_performance_8p.sh", ["--data_path={here}", "--device_id=1"], "give --device-list=0,1,"),
        ("train_full_1p.sh", ["--data_path={here}", "--device_id=first"], "must be a number of at least 0, was first"),
        ("train_eval_8p.sh", ["--data_path={here}"], "give --pth_path=CHECKPOINT"),
        ("train_full_1p.sh", ["--data_path={here}", "--output=/proc/nowhere"], "--output=/proc/nowhere cannot be made"),
    ],
)
def test_a_wrong_call_is_one_line(script: str, arguments: list[str], message: str, tmp_path: Path) -> None:
    done = bash(tmp_path, ROOT / "test" / script, *(argument.format(here=tmp_path) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{script}: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_python_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.write_text("#!/bin/sh\nexit 1\n")
    older.chmod(0o755)
    for python, message in (("/no/python", "no such python: /no/python"), (str(older), "is not Python 3.11 or later")):
        arguments = (f"--data_path={tmp_path}", f"--output={tmp_path}/out")
        done = bash(tmp_path, ROOT / "test/train_full_1p.sh", *arguments, PYTHON=python)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_can_parse(script: str) -> None:
    assert bash(ROOT / "test", "-n", script).stderr == ""


def test_cann_is_set_up_where_it_is_installed(tmp_path: Path) -> None:
    """In a strict shell, which CANN's own script is not made for; what the user has set stays."""
    shown = "TASK_QUEUE_ENABLE COMBINED_ENABLE HCCL_WHITELIST_DISABLE ASCEND_GLOBAL_LOG_LEVEL FROM_CANN"
    command = (
        f'set -euo pipefail; source "{ROOT}/test/env_npu.sh"; '
        f'for name in {shown}; do echo "${{!name-none}}"; done; echo $-; false; echo unreached'
    )
    (tmp_path / "set_env.sh").write_text("export FROM_CANN=yes$NOBODY_HAS_SET_THIS\nfalse\n")
    for home in (tmp_path, tmp_path / "latest"):
        home.mkdir(exist_ok=True)
        done = bash(tmp_path, "-c", command, ASCEND_TOOLKIT_HOME=str(home), COMBINED_ENABLE="0")
        assert done.stdout.split()[:5] == ["2", "0", "1", "3", "yes"], done.stderr
        assert {"e", "u"} <= set(done.stdout.split()[5])
        assert "unreached" not in done.stdout
    if not Path("/usr/local/Ascend").exists():
        assert bash(tmp_path, "-c", command).stdout.split()[:5] == ["none"] * 5
