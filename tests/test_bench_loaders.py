from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, Run

TOOL = "tools/bench_loaders.py"
MARK = "HEADRACE_TEST_MARK"
SMALL = ("--image-size", 64, "--batch-size", 8, "--seconds", 0.2)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An environment variable that every process started from here on inherits; temporary files go to tmp_path."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv(MARK, str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    return f"{MARK}={temporary}"


def marked(mark: str) -> dict[int, str]:
    """Number and state (R, S, T, ...) of each process with the mark, but zombies."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "stat").read_text().rpartition(")")[2].split()[0]
    found.pop(os.getpid(), None)
    return found


def wait_until_gone(mark: str) -> dict[int, str]:
    """What is left after a while."""
    deadline = time.monotonic() + 30  # one that takes its turn, or is starting, finds out at its end
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.mark.soak
def test_rows_are_what_the_contract_says(
    folder: Path, shards: Path, run: Run, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours from folder and shards, a peer, and one that is not installed: its row says why."""
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "ffcv.py").write_text("raise ImportError('No module named ffcv')")
    monkeypatch.setenv("PYTHONPATH", str(missing))
    out = tmp_path / "bench.json"
    core = min(os.sched_getaffinity(0))
    done = run(
        TOOL, "--data", folder, "--shards", shards, "--loaders", "headrace-pillow,pillow-loop,ffcv", "--rounds", 2,
        "--cores", core, "--json", out, *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["machine"]["cores"] == [core]
    assert result["machine"]["photographs"] == 42
    assert result["machine"]["python"] == ".".join(map(str, sys.version_info[:3]))
    rows = result["rows"]
    assert [(row["loader"].replace("-simd", ""), row["reads"], row["track"], row["kind"]) for row in rows] == [
        ("headrace-pillow", "folder", "original", "loader"),
        ("headrace-pillow", "shards", "lossless", "loader"),
        ("pillow-loop", "folder", "original", "loop"),
        ("ffcv", "beton", "recoded", "loader"),
    ]
    for row in rows[:3]:
        assert "skipped" not in row
        assert row["cores"] == 1
        assert row["seconds"] >= 2 * 0.2
        assert row["images"] >= 8
        assert row["images_per_s"] > 0
        assert row["images_per_s_per_core"] == pytest.approx(1e3 / row["cpu_ms_per_image"])
        assert row["low"] <= row["cpu_ms_per_image"] <= row["high"]
        # All its processes share one core: more CPU time than wall time would be counted twice, far less overlooked.
        assert 0.1 < row["images_per_s"] * row["cpu_ms_per_image"] / 1e3 < 1.2
        assert set(row["versions"]) & set(result["machine"]["versions"])
    assert rows[3]["images"] == 0
    assert rows[3]["images_per_s"] is None
    assert "ffcv" in rows[3]["skipped"]
    for row in rows:
        assert f"| {row['loader']} " in done.stdout
    assert rows[3]["skipped"] in done.stdout
    assert marked(mark) == {}
    assert os.listdir(mark.partition("=")[2]) == []


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind_when_it_is_stopped(
    folder: Path, shards: Path, mark: str, number: signal.Signals
) -> None:
    """Neither on Ctrl-C nor after a kill that it cannot see: stopped loaders end as well."""
    loaders = ("--shards", shards, "--loaders", "headrace-pillow,pillow-loop")
    command = [TOOL, "--data", folder, *loaders, "--rounds", 1000, *SMALL]
    with subprocess.Popen(
        [sys.executable, *(str(word) for word in command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as tool:
        try:
            deadline = time.monotonic() + 60
            while list(marked(mark).values()).count("T") < 2:  # at least one loader waits for its turn
                assert time.monotonic() < deadline
                assert tool.poll() is None
                time.sleep(0.02)
            tool.send_signal(number)
            _, stderr = tool.communicate(timeout=20)
        finally:
            tool.kill()
    assert wait_until_gone(mark) == {}
    if number == signal.SIGINT:
        assert tool.returncode == 130
        assert stderr.decode().strip().endswith("interrupted")
        assert os.listdir(mark.partition("=")[2]) == []


def test_wrong_calls(folder: Path, run_here: Run, tmp_path: Path) -> None:
    for arguments in (
        ("--data", folder, "--loaders", "headrace-pillow,fastest"),
        ("--data", tmp_path / "none"),
        ("--data", folder, "--cores", "0,1000"),
        ("--data", folder, "--seconds", 0),
        ("--data", folder, "--shards", tmp_path / "none", "--loaders", "headrace-pillow"),
    ):
        done = run_here(TOOL, *arguments)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert "Traceback" not in done.stderr
