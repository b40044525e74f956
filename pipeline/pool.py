"""The decode processes of one loader, and the two sockets that join them to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from .errors import DataError
from .ring import Ring, share
from .worker import MESSAGE_BYTES, Job

_LOOK_AFTER_S = 0.5  # how often the loader looks whether its workers are alive
_CLOSE_WITHIN_S = 5.0

# Of a decode process. One thread: numpy's own pools would only get in each other's way. Every picture needs the same
# few hundred kilobytes again: malloc is to keep them, not give them back to the system and have them zeroed anew, page
# by page (5 % of the CPU time).
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
}


class WorkerPool:
    """The decode processes and the two sockets that join them to the loader.

    They are started as plain subprocesses, not with multiprocessing: nothing of the caller's script is imported again
    (so it needs no ``if __name__ == "__main__"``), and torch is not imported at all.
    """

    def __init__(self, job: Job, ring: Ring, processes: int):
        self._tasks, their_tasks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._results, their_results = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        job_fd = share(job)
        fds = (ring.fd, job_fd, their_tasks.fileno(), their_results.fileno())
        package = __package__ or "pipeline"
        code = (
            f"import sys; sys.path[:] = {json.dumps(_import_path(package))}; "
            f"from {package}.worker import main; main{fds}"
        )
        env = os.environ | ENVIRONMENT
        self._looked = time.monotonic()
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(processes):
                self._processes.append(
                    subprocess.Popen([sys.executable, "-c", code], pass_fds=fds, env=env, stdin=subprocess.DEVNULL)
                )
        finally:  # the workers have them now; the last worker's end must be the end of the sockets
            os.close(job_fd)
            their_tasks.close()
            their_results.close()

    @property
    def closed(self) -> bool:
        return self._tasks.fileno() < 0

    @property
    def pids(self) -> list[int]:
        """The decode processes' numbers."""
        return [process.pid for process in self._processes]

    def send(self, message: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # no worker is left: receive() finds out how they ended
            self._tasks.send(message)

    def receive(self, *, wait: bool) -> bytes:
        """One message, or b"" where there is none and ``wait`` is False. Raises DataError where a worker has died."""
        if time.monotonic() - self._looked >= _LOOK_AFTER_S:  # the others may keep up, more slowly, without a dead one
            self._look_after()
        self._results.settimeout(_LOOK_AFTER_S if wait else 0.0)
        while True:
            try:
                if message := self._results.recv(MESSAGE_BYTES):
                    return message
                time.sleep(0.01)  # every worker is gone; their exit codes follow in an instant
            except (TimeoutError, BlockingIOError):
                if not wait:
                    return b""
            self._look_after()

    def _look_after(self) -> None:
        self._looked = time.monotonic()
        for process in self._processes:
            code = process.poll()
            if code is not None:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                self.close()
                raise DataError(
                    f"decode process {process.pid} ended ({how}); if the system killed it, memory was short: "
                    "fewer workers or slots need less"
                )

    def close(self) -> None:
        self._tasks.close()
        self._results.close()
        deadline = time.monotonic() + _CLOSE_WITHIN_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _import_path(package: str) -> list[str]:
    """Our own sys.path, made absolute, with the place this package was imported from in front."""
    home = Path(__file__).resolve().parents[package.count(".") + 1]
    return [str(home), *(os.path.abspath(entry) for entry in sys.path)]
