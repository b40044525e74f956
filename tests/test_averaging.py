"""The average of the weights: against the sum written out, in checkpoints, and what is scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.averaging import AveragedWeights
from tests.by_hand import HALF, Net, Training, batches
from tests.conftest import Run, metrics


@pytest.mark.parametrize("level", ["O0", "O2"])
def test_it_is_the_sum_written_out(level: str) -> None:
    training = Training(Net(), level, HALF, loss_scale=128.0)
    average = AveragedWeights(training.optimizer.sources(), decay=0.5)
    want = {name: value.double() for name, value in training.optimizer.weights().items()}
    for n, batch in enumerate(batches(5), 1):
        training.step(*batch)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        for name, now in training.optimizer.weights().items():
            want[name] = decay * want[name] + (1 - decay) * now.double() if now.is_floating_point() else now.double()
    got = average.weights()
    assert list(got) == list(training.optimizer.weights())
    for name, value in got.items():
        torch.testing.assert_close(value.double(), want[name], rtol=1e-5, atol=1e-6)
        assert value.dtype in (torch.float32, torch.int64)
    assert not torch.equal(got["linear.weight"], training.optimizer.weights()["linear.weight"])


def test_what_it_gave_stays_as_it_was() -> None:
    training = Training(Net(), "O0")
    average = AveragedWeights(training.optimizer.sources(), decay=0.5)
    given = average.weights()
    before = {name: value.clone() for name, value in given.items()}
    training.step(*batches(1)[0])
    average.update()
    assert all(torch.equal(given[name], before[name]) for name in given)
    assert not torch.equal(average.weights()["linear.weight"], before["linear.weight"])


SMALL = ("--device", "cpu", "--blocks", "0,0,0", "--image-size", 75, "--batch-size", 16, "--workers", 1, "--lr", 0.01)


def test_a_run_scores_and_saves_it_and_goes_on_from_it(shards: Path, run_here: Run, tmp_path: Path) -> None:
    """Two epochs at once and one after the other end in the same averages; --evaluate scores them too."""
    common = ("train.py", "--shards", shards, *SMALL, "--ema", 0.9)
    for name, epochs in (("whole", (2,)), ("parts", (1, 2))):
        for count in epochs:
            done = run_here(*common, "--epochs", count, "--output", tmp_path / name, "--resume", "auto")
            assert done.returncode == 0, done.stderr
    whole, parts = (
        torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["ema_steps"] == parts["ema_steps"] == 6
    for name, value in whole["state_dict_ema"].items():
        assert torch.equal(value, parts["state_dict_ema"][name]), name
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    assert not torch.equal(whole["state_dict_ema"]["last_linear.weight"], whole["state_dict"]["last_linear.weight"])
    trained = metrics(tmp_path / "whole", "val")[-1]
    for number, more in enumerate(([], ["--ema", 0.5])):
        done = run_here(
            "train.py", "--shards", shards, *SMALL, "--evaluate", "--resume", tmp_path / "whole/checkpoint.pth.tar",
            "--output", tmp_path / f"scored{number}", *more,
        )  # fmt: skip
        assert ("the averaged weights of this checkpoint (--ema) are scored" in done.stdout) == (not more)
        assert ("scores are those of the averaged weights" in done.stdout) == bool(more)
        (scored,) = metrics(tmp_path / f"scored{number}", "val")
        assert (scored["acc1"], scored["loss"]) == (trained["acc1"], pytest.approx(trained["loss"], rel=1e-5))
