"""What workers note of their stages: complete, in order, within the wall time; and the ledger made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import Loader, PipelineConfig
from pipeline.profiler.ledger import write_ledger
from pipeline.recording import ALL, EVENT, Recorder, Recordings, lap_us
from pipeline.watch import DECODE, HAND_OVER, READ, RESIZE, SPLICE, UNWATCHED, WAIT
from tests.test_loader import BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["shards", "data"])
def test_each_picture_passes_every_stage_once(shards: Path, folder: Path, kind: str, backend: str) -> None:
    where: dict[str, Any] = {"shards": shards} if kind == "shards" else {"data": folder}
    config = PipelineConfig(**where, batch_size=8, image_size=64, workers=1, backend=backend)
    with Loader(config, record=True) as loader:
        for _ in loader:  # the worker has started, and notes nothing yet
            pass
        assert not len(loader.recordings.read(0))
        loader.recordings.record(True)
        for _ in range(2):
            for _ in loader:
                pass
        events = loader.recordings.read(0)
        ledger = write_ledger([events])
    assert (events["end_ns"] > events["begin_ns"]).all()
    assert (events["begin_ns"][1:] == events["end_ns"][:-1]).all()  # nothing is left out
    assert len(ledger.samples) >= 42
    assert set(ledger.samples.tolist()) <= set(range(42))
    of = {stage: events[events["stage"] == stage] for stage in (READ, SPLICE, DECODE, RESIZE)}
    assert len(of[RESIZE]) >= len(ledger.samples)
    assert (of[RESIZE]["sample"] != ALL).all()
    assert bool(len(of[SPLICE])) == (kind == "shards")
    total = sum(stage.cpu_us_per_image for stage in ledger.stages)
    assert total == pytest.approx(ledger.cpu_us.mean())
    assert sum(stage.share for stage in ledger.stages) == pytest.approx(1)


def events(*rows: tuple[int, int, int, int]) -> np.ndarray:
    """(sample, stage, wall us, CPU us) one after the other."""
    out = np.zeros(len(rows), EVENT)
    ends = np.cumsum([wall for _, _, wall, _ in rows]) * 1000
    out["sample"], out["stage"] = [row[0] for row in rows], [row[1] for row in rows]
    out["end_ns"], out["cpu_ns"] = ends, [1000 * row[3] for row in rows]
    out["begin_ns"] = out["end_ns"] - [1000 * row[2] for row in rows]
    return out


def test_the_ledger_adds_up_by_hand() -> None:
    """What is done for a whole task is shared out; tasks that are cut off at either end are left out."""
    recorded = events(
        (7, DECODE, 999, 999),  # of a task that began before
        (ALL, WAIT, 50, 1),
        (ALL, HAND_OVER, 10, 10),
        (1, READ, 30, 10),
        (1, DECODE, 100, 100),
        (2, READ, 10, 10),
        (2, DECODE, 300, 300),
        (ALL, RESIZE, 40, 40),
        (ALL, WAIT, 20, 1),
        (1, READ, 10, 10),
        (1, DECODE, 100, 100),
        (ALL, WAIT, 20, 1),
        (3, READ, 5, 5),  # of a task that has not ended
    )
    ledger = write_ledger([recorded, events()])
    assert ledger.samples.tolist() == [1, 2, 1]
    assert ledger.cpu_us.tolist() == [10 + 100 + 5 + 20, 10 + 300 + 5 + 20, 110]
    assert ledger.blocked_us.tolist() == [20, 0, 0]
    stages = {stage.name: stage for stage in ledger.stages}
    assert stages["read"].cpu_us_per_image == 10
    assert stages["read"].wall_us_per_image == pytest.approx(50 / 3)
    assert stages["decode"].p50_us == 100
    assert stages["resize"].p50_us is None  # nobody knows it of one picture
    with pytest.raises(ValueError, match="no worker has finished a task"):
        write_ledger([recorded[:3]])


def test_a_recording_can_be_stopped_and_begun_anew() -> None:
    recordings = Recordings(2)
    try:
        recorder = Recorder(UNWATCHED, recordings.fd, 1)
        recorder.lap(READ, 5)
        recordings.record(True)
        for sample in range(3):  # of the first nobody knows when it began
            recorder.lap(READ, sample)
        assert recordings.read(1)["sample"].tolist() == [1, 2]
        assert not len(recordings.read(0))
        recordings.record(False)
        recorder.lap(READ, 9)
        assert recordings.read(1)["sample"].tolist() == [1, 2]
        recordings.record(True)
        assert not len(recordings.read(1))
        assert not recordings.lost()
    finally:
        recordings.close()
        recordings.close()


def test_what_an_event_costs_is_known() -> None:
    assert 0 < lap_us(1000) < 1000
