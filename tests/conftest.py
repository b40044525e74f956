"""One small data set for all tests, as a folder and as shards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: tests share their cores with workers

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell starts what runs in the background so; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pipeline.writer import WriterConfig, write_shards
from tests.emulated_card import card as card
from tests.photos import write_photos

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def metrics(output: Path, kind: str) -> list[dict[str, Any]]:
    """What train.py has written down in a folder, of one kind: run, train, epoch, val."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet folder of 42 training and 21 validation pictures in 3 classes. Not to be written to."""
    return write_photos(tmp_path_factory.mktemp("photos") / "imagenet")


@pytest.fixture(scope="session")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as shards, several of them. Not to be written to."""
    destination = tmp_path_factory.mktemp("shards") / "dst"
    write_shards(WriterConfig(source=folder, destination=destination, shard_mb=0.1, workers=2))
    return destination


@pytest.fixture(scope="session")
def verbatim_shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the original bytes. Not to be written to."""
    destination = tmp_path_factory.mktemp("verbatim") / "dst"
    write_shards(WriterConfig(source=folder, destination=destination, jpeg="verbatim", shard_mb=0.1, workers=2))
    return destination


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a command of the checkout as its user does; returns its exit code and output."""

    def run(script: str, *args: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *(str(arg) for arg in args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=os.environ | {"PYTHONWARNINGS": "error"},
        )

    return run


@pytest.fixture(scope="session")
def run_here() -> Run:
    """The same in this process, which has torch loaded: three seconds less, for what needs no process of its own."""

    def run_here(script: str, *args: object) -> subprocess.CompletedProcess[str]:
        out, err, argv, code = io.StringIO(), io.StringIO(), [script, *map(str, args)], 0
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", argv)
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as ended:
                code = int(ended.code or 0)
        return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())

    return run_here
