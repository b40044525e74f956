"""The fuzzer: a short run of every target, and that it names what crashes, hangs, takes memory or runs a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COUNT = os.environ.get("HEADRACE_FUZZ", "2000")  # inputs; `make fuzz` runs more


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the fuzzer forks, and wants no thread beside it."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_every_input_ends_in_a_result_or_in_one_of_our_errors() -> None:
    ran = python("-m", "tests.fuzz", "--count", COUNT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = {line.partition(":")[0]: line for line in ran.stdout.splitlines()}
    for outcome in ("PictureError", "counted as damaged", "equal"):
        assert outcome in lines["crop"]
    for target, outcome in (("transcoder", "written"), ("tar", "3 samples"), ("manifest", "read"), ("index", "read")):
        assert outcome in lines[target]


def test_what_goes_wrong_is_named() -> None:
    script = """
import os, signal
from tests.fuzz import engine

def check(data, rng, folder):
    match data[0]:
        case 1: raise KeyError("of no kind of ours")
        case 2: os.kill(os.getpid(), signal.SIGSEGV)
        case 3: return str(len(bytearray(3 << 30)))
        case 4:
            while True: pass
        case 5: return str(os.system("true"))
        case 6: raise engine.DataError("two\\nlines")
    return "fine"

engine.CPU_LIMIT_S = 0.2
target = engine.Target(name="t", share=1, seeds=lambda: [b"0"], mutate=lambda rng, seeds: seeds[0], check=check)
engine.make = lambda target, seeds, seed, number: (bytes([number]), None)
report = engine.run(target, seed=0, count=8)
print(report.outcomes["fine"], *(f"{kind} {numbers}" for kind, numbers in report.failures.items()), sep="|")
"""
    fine, *failures = python("-c", script).stdout.split("|")
    assert fine == "2"
    for number, failure in (
        (1, "KeyError"),
        (2, "killed by SIGSEGV"),
        (3, "MemoryError"),
        (4, "of CPU"),
        (5, "os.system"),
        (6, "no error of one line"),
    ):
        assert any(failure in line and f"[{number}]" in line for line in failures), (failure, failures)
