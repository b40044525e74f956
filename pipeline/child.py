"""Processes of the pipeline's own, started as plain subprocesses: they import nothing of the caller's script (which so
needs no ``if __name__ == "__main__"``), and not torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def start_child(
    module: str, *arguments: int | str, fds: Sequence[int], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Run ``main(*fds, *arguments)`` of a module of this package in a process of its own, which inherits ``fds``.

    It never gets Ctrl-C, nor SIGTERM, which schedulers send to every process of a job: those are the trainer's, which
    may still want batches while it finishes its step, and whose end ends it.
    """
    package = __package__ or "pipeline"
    home = Path(__file__).resolve().parents[package.count(".") + 1]
    path = [str(home), *(os.path.abspath(entry) for entry in sys.path)]  # this package's own place in front
    code = (
        f"import sys; sys.path[:] = {json.dumps(path)}; from {package}.{module} import main; main{(*fds, *arguments)}"
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=fds,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
