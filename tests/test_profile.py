from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run


@pytest.mark.parametrize(("demand", "verdict"), [pytest.param(0.5, "compute", marks=pytest.mark.soak), (1e6, "cpu")])
def test_the_report_is_what_the_contract_says(
    shards: Path, run: Run, tmp_path: Path, demand: float, verdict: str
) -> None:
    """A demand of next to nothing is met; a million images a second is not, and small pictures in memory cost CPU."""
    out = tmp_path / "report.json"
    done = run(
        "tools/profile_loader.py", "--shards", shards, "--demand", demand, "--devices", 2, "--seconds", 2,
        "--image-size", 64, "--batch-size", 8, "--workers", 1, "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["verdict"] == verdict
    assert report["sentence"] in done.stdout
    assert report["demand"] == 2 * demand
    assert report["stall_fraction"] == max(0.0, 1 - report["supply"] / report["demand"])
    assert [stage["name"] for stage in report["stages"]] == ["read", "decode", "resize"]
    assert sum(stage["share"] for stage in report["stages"]) == pytest.approx(1)
    assert all(stage["cpu_us_per_image"] > 0 for stage in report["stages"])
    assert all({"action", "command", "predicted_images_per_s"} <= set(remedy) for remedy in report["remedies"])


def test_wrong_calls(shards: Path, run_here: Run, tmp_path: Path) -> None:
    for arguments in ((), ("--shards", tmp_path / "none"), ("--shards", shards, "--demand", 0)):
        done = run_here("tools/profile_loader.py", *arguments)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert "Traceback" not in done.stderr
