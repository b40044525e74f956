"""The command: its report is what the contract says, what was planted is named, wrong calls are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import PipelineConfig
from pipeline.profiler.bench import Bench
from pipeline.profiler.findings import write_report
from pipeline.profiler.machine import read_machine
from pipeline.profiler.nearby import Nearby
from pipeline.profiler.remedies import Place
from pipeline.profiler.report import Report
from pipeline.shards import open_shards
from pipeline.source import open_source
from tests.conftest import Run
from tests.faulty import SlowShards

SMALL = ("--image-size", 64, "--batch-size", 8, "--workers", 1, "--seconds", 1)


@pytest.mark.soak
def test_the_report_is_what_the_contract_says(shards: Path, run: Run, tmp_path: Path) -> None:
    """A million images a second is too much for any host, and small pictures in memory cost CPU."""
    out, page, trace = tmp_path / "report.json", tmp_path / "report.html", tmp_path / "trace.json.gz"
    done = run(
        "tools/profile_loader.py", "--shards", shards, "--demand", 1e6, "--devices", 2, *SMALL,
        "--plan", "--verify", "--json", out, "--html", page, "--trace", trace,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(out.read_text())
    assert report["verdict"] == "cpu"
    assert report["sentence"] == done.stdout.splitlines()[0]
    assert report["demand"] == 2e6
    assert 0.9 < report["stall_fraction"] < 1
    assert [stage["name"] for stage in report["stages"]] == [
        "read", "splice", "decode", "resize", "hand-over", "loader"
    ]  # fmt: skip
    assert sum(stage["share"] for stage in report["stages"]) == pytest.approx(1)
    assert all(stage["cpu_us_per_image"] > 0 for stage in report["stages"])
    assert [rate["name"] for rate in report["rates"]] == ["S0", "S1", "S2", "S3", "S4"]
    assert sum(share["fraction"] for share in report["shares"]) == pytest.approx(1)
    assert all({"action", "command", "predicted_images_per_s"} <= set(remedy) for remedy in report["remedies"])
    assert not report["plan"]["fed"]
    assert report["plan"]["sentence"] in done.stdout
    assert report["sentence"].split(":")[0] in page.read_text()
    assert trace.stat().st_size > 0


def profile(config: PipelineConfig, demand: float, **options: Any) -> Report:
    host = Bench(config, demand=demand, seconds=1.0, alternatives=False, **options).measure()
    place = Place(flag="--shards", path="DST", dataset_bytes=1e12, memory_bytes=None)
    report, _ = write_report(
        config, host, None, demand_per_device=demand, devices=1, machine=read_machine(), place=place
    )
    return report


def test_a_disk_that_is_slow_is_named(shards: Path) -> None:
    config = PipelineConfig(shards=shards, batch_size=4, image_size=64, workers=1)
    source = SlowShards(**vars(open_shards(shards, "train")), bytes_per_s=1e6)
    report = profile(config, 1000.0, source=source)
    assert (report.verdict, report.cause) == ("io", "disk")
    assert report.remedies[0].predicted_images_per_s > 2 * report.supply


def test_what_is_fed_is_told_so(shards: Path) -> None:
    report = profile(PipelineConfig(shards=shards, batch_size=8, image_size=64, workers=1), 50.0)
    assert (report.verdict, report.remedies) == ("compute", ())
    assert report.sentence.startswith("NOT INPUT-BOUND")
    assert report.stall_fraction < 0.03


@pytest.mark.parametrize("kind", ["shards", "data"])
def test_the_copies_nearby_are_the_pictures(shards: Path, folder: Path, kind: str) -> None:
    where: dict[str, Any] = {"shards": shards} if kind == "shards" else {"data": folder}
    source = open_source(PipelineConfig(**where))
    with Nearby(source, 20) as nearby:
        copies = nearby.as_they_are()
        assert len(copies) == len(nearby) == 20
        for place, number in enumerate(nearby.numbers.tolist()):
            assert copies.read(place) == source.read(number)
        assert len(nearby.made_anew("crop", 1)) == 20
        home = nearby.root
        copies.close()
    assert not home.exists()
    source.close()


def test_wrong_calls(shards: Path, run_here: Run, tmp_path: Path) -> None:
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((), "give shards"),
        (("--shards", tmp_path / "none"), "none"),
        (("--shards", shards, "--demand", 0), "--demand must be above 0"),
        (("--shards", shards, "--device", "cpu", "--demand", 5), "leave out --demand"),
        (("--shards", shards, "--device", "sim:5"), "no step to measure"),
        (("--shards", shards, "--", "--amp"), "want a --device"),
    ]
    for arguments, words in wrong:
        done = run_here("tools/profile_loader.py", *arguments)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert words in done.stderr
