"""Who used the cores: what a child burns is ours, what an orphan burns is the others'."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

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
