"""The page of tools/ascend_acceptance.py: what machine it was, one row a check, and what to do where one failed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import PIL
import torch

from pipeline import __version__
from pipeline.device import Device
from pipeline.host import available_cores

# What changes how a card works. None holds an address or a path: the page is pasted into an issue.
ENVIRONMENT = (
    "TORCH_NPU_FALLBACK_CPU_DISABLE", "TASK_QUEUE_ENABLE", "CPU_AFFINITY_CONF", "ASCEND_RT_VISIBLE_DEVICES",
    "ASCEND_LAUNCH_BLOCKING", "PYTORCH_NPU_ALLOC_CONF", "COMBINED_ENABLE", "HCCL_CONNECT_TIMEOUT",
    "HCCL_OP_EXPANSION_MODE", "HCCL_WHITELIST_DISABLE", "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a check found."""

    verdict: Literal["PASS", "FAIL", "SKIP"]
    figure: str  # one line
    advice: str = ""  # what it means and what to do: always where it failed, otherwise where something could be better


def passed(figure: str, advice: str = "") -> Outcome:
    """It is as it should be; ``advice`` where it could be faster."""
    return Outcome(verdict="PASS", figure=figure, advice=advice)


def failed(figure: str, advice: str) -> Outcome:
    """It is not; ``advice`` says what that means and what to do."""
    return Outcome(verdict="FAIL", figure=figure, advice=advice)


def skipped(figure: str) -> Outcome:
    """It makes no sense here."""
    return Outcome(verdict="SKIP", figure=figure)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A check that was run."""

    name: str
    outcome: Outcome
    seconds: float


def host_facts(device: Device) -> dict[str, str]:
    """The machine and what is installed, as far as it tells."""
    facts = {
        "device": f"{device.name()}, {device.count()} of the kind{_memory_of(device)}",
        "processor": f"{_processor()}, {platform.machine()}, {available_cores()} cores for us of {os.cpu_count()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "software": f"headrace {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{'pillow-simd' if '.post' in PIL.__version__ else 'Pillow'} {PIL.__version__}",
    }
    if device.kind == "npu":
        import torch_npu

        versions = {module: _told(torch_npu.npu.utils.get_cann_version, module) for module in ("CANN", "DRIVER")}
        known = [f"{name} {version}" for name, version in versions.items()]
        facts["Ascend"] = ", ".join([f"torch_npu {torch_npu.__version__}", *known])
    if device.kind == "cuda":
        facts["CUDA"] = str(torch.version.cuda)
    facts["environment"] = " ".join(f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ)
    return facts


def _told(ask: Callable[..., Any], *arguments: object) -> str:
    """The answer, or that there is none: the page is not to fail for a version that nobody knows."""
    with contextlib.suppress(Exception):
        return str(ask(*arguments)).strip() or "unknown"
    return "unknown"


def _memory_of(device: Device) -> str:
    with contextlib.suppress(Exception):
        return f", {getattr(torch, device.kind).get_device_properties(device.index).total_memory / 2**30:.0f} GiB each"
    return ""


def _processor() -> str:
    """Its model: lscpu knows ARM's too, /proc/cpuinfo does not."""
    texts = []
    if lscpu := shutil.which("lscpu"):
        done = subprocess.run([lscpu], capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
        texts.append(done.stdout)
    with contextlib.suppress(OSError):
        texts.append(Path("/proc/cpuinfo").read_text())
    for line in "\n".join(texts).splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name" and value.strip(" \t-"):
            return value.strip()
    return "unknown model"


def render(title: str, subtitle: str, facts: dict[str, str], rows: Sequence[Row]) -> str:
    """The page, in Markdown."""
    counts = {verdict: sum(row.outcome.verdict == verdict for row in rows) for verdict in ("PASS", "FAIL", "SKIP")}
    summary = f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped"
    lines = [f"# {title}: {'FAIL' if counts['FAIL'] else 'PASS'} ({summary})", "", subtitle, ""]
    lines += ["| machine | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts.items()), ""]
    lines += ["| # | check | result | figure | took |", "|---|---|---|---|---|"]
    lines += [
        f"| {number} | {row.name} | {row.outcome.verdict} | {_cell(row.outcome.figure)} | {row.seconds:.0f} s |"
        for number, row in enumerate(rows, 1)
    ]
    for heading, failed in (("What failed, and what to do", True), ("What could be better", False)):
        told = [
            f"- **{number} {row.name}**: {row.outcome.advice}"
            for number, row in enumerate(rows, 1)
            if row.outcome.advice and (row.outcome.verdict == "FAIL") == failed
        ]
        if told:
            lines += ["", f"## {heading}", "", *told]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)
