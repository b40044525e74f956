"""The decode processes of one loader, and the two sockets that join them to it.

Whoever is free takes the next task from one queue, so nobody knows what a dead process had taken. Where one dies or
hangs, therefore, all are ended, new ones are started, and every task without an answer is sent again. While none is
alive, none can write to a slot late; a task done twice gives the same pixels; nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque

from .advice import advise
from .child import start_child
from .errors import DataError
from .heartbeat import Heartbeats
from .recording import Recordings
from .ring import Ring, share
from .worker import MESSAGE_BYTES, TASK, Job

_LOOK_AFTER_S = 0.5  # how often the loader looks whether its workers are alive
_CLOSE_WITHIN_S = 5.0
_START_WITHIN_S = 120.0  # a worker has begun its second picture: it loads, and may compile, until then
_STACK_WITHIN_S = 0.5  # a worker that hangs has shown its stack
_NAME_WITHIN_S = 1.0  # a sample's name has been read
_RESTARTS = 3  # so often without a batch in between: then it is no accident

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
    """The decode processes and the two sockets that join them to the loader."""

    def __init__(self, job: Job, ring: Ring, processes: int):
        self.restarts = 0  # since a batch was handed out: the loader, which knows, sets it back
        self._source, self._watchdog_s = job.source, job.config.watchdog_s
        self._ring_fd, self._job_fd = ring.fd, share(job)
        self._heartbeats = Heartbeats(processes)
        self.recordings = Recordings(processes if job.record else 0)
        self._unanswered: dict[bytes, None] = {}  # tasks, in the order in which they were sent
        self._answers: deque[bytes] = deque()  # received and not yet handed out
        self._processes: list[subprocess.Popen[bytes]] = []
        self._wanted = processes
        self._start()

    def _start(self) -> None:
        """New sockets, and processes at their ends. Raises OSError."""
        self._tasks, their_tasks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._results, their_results = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._looked = time.monotonic()
        self._beats = self._heartbeats.read()
        self._still_s = [0.0] * self._wanted  # how long each has not moved while the loader waited
        self._processes.clear()
        shared = (self._ring_fd, self._job_fd, self._heartbeats.fd, self.recordings.fd)
        fds = (*shared, their_tasks.fileno(), their_results.fileno())
        try:
            for number in range(self._wanted):
                self._processes.append(start_child("worker", number, fds=fds, environment=ENVIRONMENT))
        finally:  # the workers have them now; the last worker's end must be the end of the sockets
            their_tasks.close()
            their_results.close()

    @property
    def closed(self) -> bool:
        return self._job_fd < 0

    @property
    def pids(self) -> list[int]:
        """The decode processes' numbers."""
        return [process.pid for process in self._processes]

    def send(self, task: bytes) -> None:
        """Put a task on the queue. It differs from all that have no answer yet."""
        self._unanswered[task] = None
        with contextlib.suppress(ConnectionError):  # no worker is left: receive() finds out how they ended
            self._tasks.send(task)

    def receive(self, *, wait: bool) -> bytes:
        """One answer, which begins with its task; or b"" where there is none and ``wait`` is False.

        Raises DataError where workers die or hang again and again.
        """
        while not self._answers:
            if time.monotonic() - self._looked >= _LOOK_AFTER_S:  # the others may keep up, more slowly, without one
                self._look_after()
                continue
            self._results.settimeout(_LOOK_AFTER_S if wait else 0.0)
            try:
                if not self._take_answer():
                    time.sleep(0.01)  # every worker is gone; their exit codes follow in an instant
            except (TimeoutError, BlockingIOError):
                if not wait:
                    return b""
                self._watch()
        return self._answers.popleft()

    def _take_answer(self) -> bool:
        """Receive one. Says whether there was one; where there is none yet, raises what the socket raises."""
        answer = self._results.recv(MESSAGE_BYTES)
        if answer:
            del self._unanswered[answer[: TASK.size]]
            self._answers.append(answer)
        return bool(answer)

    def _look_after(self) -> None:
        """Notice the dead. Only a signal is worth another try: what exits by itself has said why, and would again."""
        self._looked = time.monotonic()
        for number, process in enumerate(self._processes):
            code = process.poll()
            if code is None:
                continue
            if code >= 0:
                self.close()
                raise DataError(f"decode process {process.pid} ended with exit code {code}: its error is above")
            self._restart(
                f"decode process {process.pid} was killed by {signal.Signals(-code).name}{self._last_sample(number)}",
                "if the system killed it, memory was short: fewer workers or slots need less"
                if code == -signal.SIGKILL
                else "if it is this sample again, its decoder fails on it: leave it out",
            )
            return

    def _watch(self) -> None:
        """Notice who hangs. Called after each silence of ``_LOOK_AFTER_S``, so a job that was stopped as a whole, and
        goes on, has not hung; nor has a worker that rests while the queue is empty.
        """
        beats = self._heartbeats.read()
        queued = len(self._unanswered) - sum(not beat.resting for beat in beats)
        for number, (beat, before) in enumerate(zip(beats, self._beats, strict=True)):
            due = beat == before and (queued > 0 or not beat.resting)
            self._still_s[number] = self._still_s[number] + _LOOK_AFTER_S if due else 0.0
        self._beats = beats
        for number, still_s in enumerate(self._still_s):
            if still_s >= (self._watchdog_s if beats[number].begun > 1 else max(self._watchdog_s, _START_WITHIN_S)):
                self._end_hung(number, still_s)
                return

    def _end_hung(self, number: int, still_s: float) -> None:
        process = self._processes[number]
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGUSR1)
        time.sleep(_STACK_WITHIN_S)
        self._restart(
            f"decode process {process.pid} has hung for {still_s:.0f} s (its stack is above, unless it is stopped)"
            f"{self._last_sample(number)}",
            "look at the storage that it reads from, or raise watchdog_s where it is only slow",
        )

    def _last_sample(self, number: int) -> str:
        sample = self._heartbeats.read()[number].sample
        return f"; the last sample it began is {self._name(sample)}" if sample >= 0 else "; it was at no sample"

    def _name(self, sample: int) -> str:
        """A sample's name: its number where the storage, which may be what hangs, does not give the name in time."""
        names: list[str] = []
        reader = threading.Thread(target=lambda: names.append(self._source.name(sample)), daemon=True)
        reader.start()
        reader.join(_NAME_WITHIN_S)
        return names[0] if names else f"sample {sample}"

    def _restart(self, what: str, advice: str) -> None:
        """End all workers, keep what they have answered, start new ones with all the rest.

        Raises DataError where that has been done ``_RESTARTS`` times since a batch was handed out.
        """
        if self.restarts == _RESTARTS:
            self.close()
            raise DataError(f"{what}; {_RESTARTS} restarts before it did not bring one batch: {advice}")
        self.restarts += 1
        if not self._kill():
            self.close()
            raise DataError(f"{what}; it cannot be ended, so the storage that it reads from must have failed")
        self._drain()
        self._tasks.close()
        self._results.close()
        self._heartbeats.reset()
        try:
            self._start()
        except OSError as error:
            self.close()
            raise DataError(f"{what}; no other can be started: {error.strerror}") from error
        for task in self._unanswered:
            with contextlib.suppress(ConnectionError):
                self._tasks.send(task)
        advise(f"{what}. All workers are started again, which takes about a second, and no sample is lost; {advice}")

    def _drain(self) -> None:
        """Take in what was answered before the workers ended: whole messages, and whole rows behind them."""
        self._results.settimeout(0.0)
        with contextlib.suppress(ConnectionError, BlockingIOError):
            while self._take_answer():
                pass

    def _kill(self) -> bool:
        """End all workers, whatever they do. Says whether they are gone: the system may hold one in a dead disk."""
        for process in self._processes:
            process.kill()
        return self._wait()

    def _wait(self) -> bool:
        deadline = time.monotonic() + _CLOSE_WITHIN_S
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        return all(process.returncode is not None for process in self._processes)

    def close(self) -> None:
        """End the workers. Safe to call twice."""
        if self.closed:
            return
        self._tasks.close()
        self._results.close()
        if not self._wait():
            self._kill()
        os.close(self._job_fd)
        self._job_fd = -1
        self._heartbeats.close()
        self.recordings.close()
