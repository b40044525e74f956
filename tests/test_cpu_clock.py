"""Who used the cores: what a child burns is ours, what an orphan burns is the others'."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from pipeline.profiler.cpu_clock import CpuClock, cpu_s, family

BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"


def test_what_a_child_burns_is_ours() -> None:
    clock = CpuClock()
    before = clock.read()
    with subprocess.Popen(
        [sys.executable, "-c", BURN.format(0.3) + "print(flush=True)\ntime.sleep(60)"],
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout
        child.stdout.readline()
        use = clock.read() - before
        assert use.by_process[child.pid] == pytest.approx(0.3, abs=0.15)  # with the interpreter's start
        assert {os.getpid(), child.pid} <= set(use.by_process)
        child.kill()
    assert os.getpid() in clock.read().by_process
    assert child.pid not in clock.read().by_process


def test_what_has_ended_is_not_forgotten() -> None:
    """A child that was there before, a grandchild that its parent waits for, and a thread: each burns 0.3 s."""
    clock, burn = CpuClock(), BURN.format(0.3)
    nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint(flush=True)\ninput()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", f"print(flush=True)\ninput()\n{burn}"], **pipes)
    parent = subprocess.Popen([sys.executable, "-c", f"print(flush=True)\ninput()\n{nested}"], **pipes)
    with child, parent:
        for process in (child, parent):
            assert process.stdout
            process.stdout.readline()
        before = clock.read()
        child.communicate(b"\n")
        assert parent.stdin
        assert parent.stdout
        parent.stdin.write(b"\n")
        parent.stdin.flush()
        parent.stdout.readline()  # the grandchild has ended, its parent has not
        middle = clock.read() - before
        parent.communicate(b"\n")

    def burn_here() -> None:
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass

    thread = threading.Thread(target=burn_here)
    thread.start()
    thread.join()
    use = clock.read() - before
    assert middle.ours_s == pytest.approx(0.6, abs=0.25)  # with an interpreter's start
    assert use.by_process[os.getpid()] > 0.3
    assert use.ours_s == pytest.approx(0.9, abs=0.3)
    assert all(queued >= 0 for queued in use.queued.values())


def test_two_stretches_add_up() -> None:
    clock = CpuClock()
    readings = [clock.read() for _ in range(3)]
    both = (readings[1] - readings[0]) + (readings[2] - readings[1])
    whole = readings[2] - readings[0]
    assert both.seconds == pytest.approx(whole.seconds)
    assert both.ours_s == pytest.approx(whole.ours_s)
    assert both.by_process == pytest.approx(whole.by_process)


def test_what_an_orphan_burns_is_the_others() -> None:
    orphan = "import os\nif pid := os.fork(): print(pid)\nelse:\n os.close(1)\n while True: pass"
    pid = int(subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE, check=True).stdout)
    try:
        assert pid not in family(os.getpid())
        clock, spent = CpuClock(), cpu_s(pid)[0]
        before = clock.read()
        while cpu_s(pid)[0] - spent < 0.5:
            time.sleep(0.01)
        use = clock.read() - before
        assert use.others_cores * use.seconds > 0.4
        assert use.ours_cores * use.seconds < 0.4
    finally:
        os.kill(pid, signal.SIGKILL)
