"""The real torch_npu without a card: finds its wheel, builds the libraries of tests/emulated_npu under it.

``make test`` fetches the wheel into .venv/torch_npu; HEADRACE_TORCH_NPU names another folder. It never goes into the
environment itself: with torch_npu installed, ``import torch`` imports it everywhere. Where it cannot be had, tests
that ask for ``card`` are skipped and say why.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path(__file__).with_name("emulated_npu")

# What torch_npu links against or opens; without sources: it only has to be there
LIBRARIES = {
    "ascendcl": "cann.c",
    "hccl": "hccl.c",
    "opapi": "aclnn.c",
    "acl_op_compiler": None,
    "acl_tdt_channel": None,
    "ge_runner": None,
    "graph": None,
    "nnopbase": None,
}


@dataclasses.dataclass(frozen=True)
class EmulatedCard:
    """Ascend cards for subprocesses."""

    wheel: Path  # has torch_npu/ in it
    home: Path  # stands in for CANN's installation

    def environment(
        self,
        devices: int = 1,
        *,
        copy_delay_us: int = 0,
        soc: str = "Ascend910B2",
        refuse_register: bool = False,
        report: Path | None = None,
        **others: str,
    ) -> dict[str, str]:
        """What to add to os.environ. Asynchronous copies to the device begin after the delay; report is a folder."""
        python_path = [str(SOURCES), str(self.wheel), os.environ.get("PYTHONPATH", "")]
        library_path = [str(self.home), os.environ.get("LD_LIBRARY_PATH", "")]
        settings = {
            "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, library_path)),
            "ASCEND_HOME_PATH": str(self.home),
            "ASCEND_OPP_PATH": str(self.home / "opp"),
            "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",  # an operator that torch_npu lacks must not run on the host unseen
            "EMULATED_NPU_DEVICES": str(devices),
            "EMULATED_NPU_SOC": soc,
            "EMULATED_NPU_COPY_DELAY_US": str(copy_delay_us),
            "EMULATED_NPU_REFUSE_REGISTER": str(int(refuse_register)),
        }
        if report is not None:
            report.mkdir(parents=True, exist_ok=True)
            settings["EMULATED_NPU_REPORT"] = str(report)
        return settings | others

    @staticmethod
    def report(folder: Path) -> list[dict[str, Any]]:
        """What each process left there that has loaded the libraries; ``finished`` where it has ended by itself."""
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
        return sorted(reports, key=lambda report: (report.get("rank") or 0, report["pid"]))


def _wheel() -> Path:
    return Path(os.environ.get("HEADRACE_TORCH_NPU") or ROOT / ".venv" / "torch_npu")


def obstacle() -> str | None:
    """One line that says why there can be no emulated card here."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"torch_npu has no wheel for {platform.machine()} {sys.platform}"
    if sys.version_info[:2] != (3, 11):
        return f"the pinned torch_npu is for Python 3.11, this is {platform.python_version()}"
    if shutil.which("gcc") is None:
        return "no gcc, so CANN cannot be emulated"
    version = _wheel() / "torch_npu" / "version.py"
    if not version.is_file():
        return f"no torch_npu in {_wheel()} (make test fetches it)"
    wanted = torch.__version__.partition("+")[0]
    found = version.read_text(encoding="utf-8").split("__version__ = ")[1].split("'")[1].partition("+")[0]
    return None if found == wanted else f"torch_npu {found} does not pair with torch {wanted}"


def build_card(home: Path) -> EmulatedCard:
    """Compile the libraries into a folder: about a second. Warnings are errors, and so are CANN's prototypes."""
    for folder in ("runtime", "compiler", "opp"):  # torch_npu looks whether CANN is installed
        (home / folder).mkdir(parents=True)
    headers = _wheel() / "torch_npu" / "include"
    includes = [f"-I{folder}" for folder in (SOURCES, headers, headers / "third_party" / "acl" / "inc")]
    flags = ["-std=gnu11", "-O2", "-march=native", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    for name, source in LIBRARIES.items():
        library = home / f"lib{name}.so"
        content = ["-x", "c", "/dev/null"] if source is None else [str(SOURCES / source)]
        others = [] if name == "ascendcl" else [f"-L{home}", "-Wl,--no-as-needed,-rpath,$ORIGIN", "-lascendcl"]
        soname = f"-Wl,-soname,{library.name}"
        command = ["gcc", *flags, *includes, soname, "-o", str(library), *content, "-x", "none", *others, "-pthread"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not built.returncode, built.stderr
    return EmulatedCard(wheel=_wheel(), home=home)


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> EmulatedCard:
    """Ascend cards for subprocesses; skips where there can be none."""
    reason = obstacle()
    if reason is not None:
        pytest.skip(reason)
    return build_card(tmp_path_factory.mktemp("emulated") / "cann")
