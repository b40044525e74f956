"""What a user gets from `pip install`: the two packages under headrace, nothing at the top level, and it works."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"  # a copy: a build leaves folders behind
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "pipeline", "model"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_nothing_lands_at_the_top_level(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"headrace"}
    packaged = {name for name in names if name.startswith("headrace/") and name.endswith((".py", ".toml"))}
    files = [path for p in ("pipeline", "model") for kind in ("py", "toml") for path in (ROOT / p).rglob(f"*.{kind}")]
    ours = {f"headrace/{path.relative_to(ROOT)}" for path in files}
    assert packaged == ours


@pytest.mark.soak
def test_it_works_installed(wheel: Path, shards: Path, folder: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    # Its dependencies come from the environment that runs the tests.
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    python = environment / "bin/python"
    code = f"""
import torch
from headrace.pipeline import PipelineConfig, build_loader
from headrace.model.inceptionv4 import InceptionV4
loader = build_loader(PipelineConfig(shards={str(shards)!r}, split="val", batch_size=8, image_size=75, workers=1))
total = sum(len(batch.labels) for batch in loader)
loader.close()
print(total, tuple(InceptionV4(10, blocks=(0, 0, 0)).eval()(torch.zeros(1, 3, 75, 75)).shape))
"""
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["21", "(1, 10)\n"]
    for command, argument in (("headrace-make-shards", str(folder)), ("headrace-check-shards", str(shards))):
        # One worker: the kernels are compiled anew in the new place, by each.
        arguments = [argument, "dst", "--workers", "1"] if command == "headrace-make-shards" else [argument]
        subprocess.run([environment / "bin" / command, *arguments], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "dst/manifest.json").exists()
