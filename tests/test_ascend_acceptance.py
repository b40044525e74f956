"""The acceptance run, as an owner of cards does it: without one, and on the emulated one."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from model.options import TrainOptions, parse_options
from pipeline import PipelineConfig, transfer
from pipeline.device import find_device
from pipeline.shards import open_shards
from pipeline.transfer import DeviceBatch
from tests.conftest import ROOT, Run
from tests.emulated_card import EmulatedCard
from tools.acceptance import checks
from tools.acceptance.bench import Bench, HostCopies, short_epoch
from tools.acceptance.checks import CHECKS, check_exactness
from tools.acceptance.page import Outcome, Row, passed, render

TOOL = "tools/ascend_acceptance.py"
ROW = re.compile(r"\| (\d+) \| ([^|]+) \| (PASS|FAIL|SKIP) \| ([^|]+) \| \d+ s \|")


def rows_of(page: str) -> dict[str, tuple[str, str]]:
    """Result and figure of each check."""
    found = [match for line in page.splitlines() if (match := ROW.fullmatch(line))]
    assert [match[1] for match in found] == [str(number) for number in range(1, len(CHECKS) + 1)], page
    return {match[2]: (match[3], match[4]) for match in found}


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool sets this where it runs: here it is undone."""
    monkeypatch.setenv("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")


@pytest.mark.soak
def test_the_page_of_a_cpu(shards: Path, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = run(TOOL, "--device", "cpu", "--quick", "--batch-size", 4, "--shards", shards, "--output", page)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == page.read_text()
    assert done.stdout.startswith("# Headrace on cpu: PASS (4 passed, 0 failed, 4 skipped)\n")
    assert str(shards) not in done.stdout, "the page goes into an issue"
    rows = rows_of(done.stdout)
    assert {name for name, (verdict, _) in rows.items() if verdict == "PASS"} == {
        "the host", "exactness of batches", "O2 and an overflow", "one card",
    }  # fmt: skip
    assert all(figure.startswith("not applicable: ") for verdict, figure in rows.values() if verdict == "SKIP")
    assert rows["exactness of batches"][1] == "22 batches of 2 epochs: the same bits, 0 wrong labels"
    for number, name in enumerate(CHECKS, 1):
        assert f"{number}/{len(CHECKS)} {name}\n" in done.stderr  # what it is at


@pytest.mark.skipif(importlib.util.find_spec("torch_npu") is not None, reason="torch_npu is installed")
def test_no_card_is_one_line(run_here: Run, strict: None) -> None:
    done = run_here(TOOL, "--quick")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"ascend_acceptance: error: device npu is not available here: [^\n]+\n", done.stderr)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (["--device", "sim:474.6"], "a simulated device computes nothing"),
        (["--device", "cpu", "--shards", "nowhere"], "no such folder of shards: nowhere"),
        (["--device", "cpu", "--steps", 0], "--steps must be at least 1, was 0"),
        (["--device", "cpu", "--blocks", "1,1"], "--blocks must be three counts such as 4,7,3, was 1,1"),
    ],
)
def test_a_wrong_call_is_one_line(run_here: Run, strict: None, wrong: list[object], error: str) -> None:
    done = run_here(TOOL, *wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ascend_acceptance: error: {error}")
    assert done.stderr.count("\n") == 1


@pytest.mark.soak
def test_the_emulated_card_passes_everything(shards: Path, card: EmulatedCard) -> None:
    """With copies that take their time. Several cards: tests/test_npu.py."""
    done = subprocess.run(
        [sys.executable, str(ROOT / TOOL), "--quick", "--batch-size", "4", "--shards", str(shards)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "error"} | card.environment(copy_delay_us=20_000),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert rows.pop("all cards") == ("SKIP", "not applicable: one card (--cards N)")
    assert {verdict for verdict, _ in rows.values()} == {"PASS"}, done.stdout
    assert "is refused" in rows["no hidden CPU fallback"][1]
    assert rows["the way to the card"][1].startswith("the ring is registered;")
    assert "the same bits, 0 wrong labels" in rows["exactness of batches"][1]
    assert "HF32 switched off" in rows["fp32 against the CPU"][1]
    assert "skipped, no bit changed, scale 4096 to 2048" in rows["O2 and an overflow"][1]


@pytest.fixture
def bench(shards: Path, tmp_path: Path) -> Iterator[Bench]:
    loader = HostCopies(PipelineConfig(shards=shards, batch_size=16, image_size=75, workers=1))
    args = argparse.Namespace(quick=True)
    yield Bench(args=args, device=find_device("cpu"), cards=1, shards=shards, scratch=tmp_path, loader=loader)
    loader.close()


@pytest.mark.parametrize("damage", [2e-6, math.nan, "label"])
def test_a_batch_that_is_not_the_hosts_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, damage: float | str
) -> None:
    """One value of one picture of an epoch's last batch, or one label."""
    arrive = transfer.Feed._normalised

    def damaged(feed: transfer.Feed, batch: DeviceBatch) -> DeviceBatch:
        ready = arrive(feed, batch)
        if len(batch.labels) < 16:
            if isinstance(damage, str):
                ready.labels[3] += 1
            else:
                ready.images[3, 1, 7, 7] += damage
        return ready

    assert check_exactness(bench) == passed("6 batches of 2 epochs: the same bits, 0 wrong labels")
    monkeypatch.setattr(transfer.Feed, "_normalised", damaged)
    outcome = check_exactness(bench)
    assert outcome.verdict == "FAIL"
    assert ("2 wrong labels" if damage == "label" else "largest difference") in outcome.figure


def test_several_cards_train_an_epoch_of_their_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What train.py is asked for, and what its figure is compared with. It is not run: others do."""
    asked: list[TrainOptions] = []

    def run_command(script: str, *arguments: object) -> None:
        assert script == "train.py"
        asked.append(parse_options([str(argument) for argument in arguments]))
        asked[0].output.mkdir()
        (asked[0].output / "metrics.jsonl").write_text('{"kind": "epoch", "fps_all": 150.0, "loss": 2.5}\n')

    monkeypatch.setattr(checks, "run_command", run_command)
    vars(bench.args).update(steps=20, batch_size=16, image_size=107, blocks=(1, 0, 2))
    bench.cards, bench.images_per_s = 4, 50.0
    outcome = checks.check_all_cards(bench)
    assert outcome == passed(
        "150.0 images/s on 4 cards: 75 % of 4 times one card from shards (the original recipe on eight: 62 %)"
    )
    options = asked[0]
    assert options.shards is not None
    assert len(open_shards(Path(options.shards), "train")) == (10 + 20) * 16 * 4  # ten steps of it are not timed
    assert (options.device, options.device_list, options.multiprocessing_distributed) == ("cpu", (0, 1, 2, 3), True)
    assert (options.batch_size, options.image_size, options.blocks, options.epochs) == (64, 107, (1, 0, 2), 1)
    assert (options.opt_level, options.loss_scale) == ("O0", 128.0)


@pytest.mark.parametrize("samples", [5, 42, 100])
def test_a_short_epoch_has_the_same_pictures_again_and_again(shards: Path, tmp_path: Path, samples: int) -> None:
    original = open_shards(shards, "train")
    short = open_shards(short_epoch(shards, tmp_path / "short", samples), "train")
    assert len(original) == 42
    assert len(short) == samples
    for index in range(samples):
        assert short.read(index) == original.read(index % 42)
    assert short.labels.tolist() == [int(original.labels[index % 42]) for index in range(samples)]
    original.close()
    short.close()


def test_a_check_that_breaks_stops_no_other(
    strict: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools import ascend_acceptance as tool

    def breaks(bench: Bench) -> Outcome:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(tool, "CHECKS", {"one": breaks, "another": lambda _: passed("fine")})
    broken, fine = tool.carry_out(cast(Bench, None))
    assert broken.outcome.verdict == "FAIL"
    assert re.fullmatch(r"RuntimeError in tests/test_\w+\.py, line \d+: no such", broken.outcome.figure)
    assert fine.outcome == passed("fine")
    assert "Traceback" in capsys.readouterr().err


def test_what_failed_is_explained_beneath_the_table() -> None:
    rows = [
        Row(name="good", outcome=passed("1 | 2"), seconds=0.2),
        Row(name="slow", outcome=passed("3", "faster with more"), seconds=0),
        Row(name="bad", outcome=Outcome(verdict="FAIL", figure="4\n5", advice="mend it"), seconds=61.4),
    ]
    page = render("Title", "subtitle", {"device": "a|b"}, rows)
    assert page.startswith("# Title: FAIL (2 passed, 1 failed, 0 skipped)\n\nsubtitle\n")
    assert "| device | a\\|b |" in page
    assert "| 1 | good | PASS | 1 \\| 2 | 0 s |\n| 2 | slow | PASS | 3 | 0 s |\n| 3 | bad | FAIL | 4 5 | 61 s |" in page
    assert "## What failed, and what to do\n\n- **3 bad**: mend it\n" in page
    assert page.endswith("## What could be better\n\n- **2 slow**: faster with more\n")
