"""The planner's arithmetic, held against the forecast, the loader's own splitting up, and train.py's flags."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.options import parse_options
from pipeline import ConfigError
from pipeline.device import find_device
from pipeline.profiler.forecast import forecast
from pipeline.profiler.machine import Machine
from pipeline.profiler.plan import Plan
from pipeline.profiler.planner import MARGIN, Cost, make_plan

SAMPLE = np.random.default_rng(0).lognormal(0, 0.6, 300)
HERE = Machine(
    processor="Some 9000",
    cores=frozenset(range(16)),
    cores_online=16,
    physical_cores=16,
    quota=None,
    memory_bytes=64 * 10**9,
    memory_available=None,
    memory_limit=None,
    nodes=(),
)


def cost(mean_us: float, **options: Any) -> Cost:
    return Cost(mean_us=mean_us, sample_us=SAMPLE, **options)


def plan(mean_us: float = 1400, costs: dict[str, Cost] | None = None, **options: Any) -> Plan:
    defaults: dict[str, Any] = {"machine": HERE, "measured_with": 16, "devices": 8, "demand_per_device": 474.6}
    return make_plan(costs or {"as they are": cost(mean_us)}, **defaults | options)


def test_the_cores_needed_are_what_the_arithmetic_says() -> None:
    """8 x (474.6/s x 1.4 ms x 1.1 + 1) = 13.8"""
    made = plan(cores=14)
    assert (made.fed, made.choice.cores_needed) == (True, 14)
    assert made.choice.head_room == pytest.approx(6 / (8 * 474.6 * 1.4e-3) - 1)
    assert "8 x (474.6 images/s x 1,400 us x 1.10 + 1 for the trainer) = 13.8" in str(made)
    assert not plan(cores=13).fed


@settings(max_examples=40, deadline=None)
@given(
    mean_us=st.floats(200, 6000),
    devices=st.integers(1, 8),
    demand=st.floats(50, 1500),
    trainer_cores=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_the_cores_needed_feed_and_one_fewer_does_not(
    mean_us: float, devices: int, demand: float, trainer_cores: float
) -> None:
    asked: dict[str, Any] = {"devices": devices, "demand_per_device": demand, "trainer_cores": trainer_cores}
    needed = plan(mean_us, cores=1, **asked).choice.cores_needed
    made = plan(mean_us, cores=needed, **asked)
    choice = made.choice
    assert made.fed, made.sentence
    assert choice.most_devices >= devices
    assert choice.head_room >= MARGIN - 1e-6
    seen = forecast(
        SAMPLE * mean_us / SAMPLE.mean(),
        workers=choice.workers_per_rank,
        cores=(needed - devices * trainer_cores) / devices,
        slots=choice.slots,
        batch_size=made.batch_size,
        demand=demand,
        overlapped=True,
        seed=1,
    )
    assert seen.stall_fraction < 0.02, "another order of the same pictures does not make it wrong"
    if needed > 1:
        fewer = plan(mean_us, cores=needed - 1, **asked)
        assert not fewer.fed
        assert fewer.choice.short_of == ("cores",)
        assert fewer.choice.most_devices < devices


@settings(max_examples=30, deadline=None)
@given(mean_us=st.floats(200, 6000), cores=st.integers(1, 64), devices=st.integers(1, 12))
def test_more_cores_feed_no_fewer_devices_and_more_devices_need_no_fewer_cores(
    mean_us: float, cores: int, devices: int
) -> None:
    few = plan(mean_us, cores=cores, devices=devices)
    more_cores = plan(mean_us, cores=cores + 1, devices=devices)
    more_devices = plan(mean_us, cores=cores, devices=devices + 1)
    assert more_cores.fed >= few.fed >= more_devices.fed
    assert more_cores.choice.most_devices >= few.choice.most_devices == more_devices.choice.most_devices
    assert more_cores.choice.cores_needed == few.choice.cores_needed <= more_devices.choice.cores_needed


def test_the_first_that_is_fed_is_chosen_and_else_the_cheapest() -> None:
    costs = {"as they are": cost(2260), "crop-addressed": cost(1400), "re-encoded": cost(700)}
    assert [plan(costs=costs, cores=n).chosen for n in (32, 16, 11, 4)] == [
        "as they are", "crop-addressed", "re-encoded", "re-encoded",
    ]  # fmt: skip
    assert [plan(costs=costs, cores=n).fed for n in (32, 16, 11, 4)] == [True, True, True, False]


def test_the_commands_are_train_pys() -> None:
    made = plan(1400, cores=64, devices=8, demand_per_device=1200.0, batch_size=64)
    launcher, _, train = made.choice.train.partition(" train.py ")
    assert launcher == "torchrun --nproc-per-node 8"
    options = parse_options(shlex.split(train))
    assert options.batch_size == 8 * 64
    assert options.workers == 8 * made.choice.workers_per_rank
    rehearsal = parse_options(shlex.split(made.choice.rehearse)[2:])
    assert find_device(rehearsal.device_name).images_per_s == pytest.approx(8 * 1200)
    assert plan(devices=1).choice.train.startswith("python train.py --shards DST")


def test_one_picture_that_takes_as_long_as_the_ring_lasts_is_no_matter_of_cores() -> None:
    """5 s for one of 20,000 pictures: on average nothing, but at 474.6 images/s a ring of 64 is empty meanwhile."""
    sample = np.concatenate([np.full(9999, 900.0), [5e6]])
    made = make_plan(
        {"as they are": Cost(mean_us=float(sample.mean()), sample_us=sample)},
        machine=HERE, measured_with=16, devices=1, demand_per_device=474.6, batch_size=16, cores=16,
    )  # fmt: skip
    assert made.choice.short_of == ("slots",)
    assert "stand idle" in made.sentence


@pytest.mark.parametrize(
    ("options", "short_of"),
    [({"disk_mb_per_s": 200.0}, "disk"), ({"disk_mb_per_s": 400.0}, ""), ({"batch_size": 8192}, "memory")],
)
def test_cores_are_not_all_it_takes(options: dict[str, Any], short_of: str) -> None:
    made = plan(costs={"crop-addressed": cost(1000, bytes_per_image=60e3)}, **options)  # 228 MB/s
    assert made.choice.disk_mb_per_s == pytest.approx(8 * 474.6 * 0.06)
    assert "".join(made.choice.short_of) == short_of


def test_a_stranger_finds_the_numbers_and_what_they_hold_for() -> None:
    text = str(plan(costs={"as they are": cost(2260), "re-encoded": cost(700, make="python tools/make_shards.py S D")}))
    for part in (
        "FED: 16 cores feed 8 devices of 474.6 images/s (3,797 together)",
        "re-encoded at 700 CPU us each it takes 11 cores",
        "too few cores",
        "python tools/make_shards.py S D",
        "--device sim:474.6x8",
        "Some 9000",
        "10 % of the decoding",
    ):
        assert part in text
    assert "hyper-threads" not in text


def test_hyper_threads_are_not_taken_for_cores() -> None:
    smt = dataclasses.replace(HERE, physical_cores=8)
    assert "that is in the costs" in str(plan(machine=smt, measured_with=16))
    assert "up to twice as much" in str(plan(machine=smt, measured_with=8))


def test_another_hosts_memory_is_not_known() -> None:
    small = dataclasses.replace(HERE, memory_limit=10**6)
    assert "memory" in plan(machine=small).choice.short_of
    assert "memory" not in plan(machine=small, cores=32).choice.short_of


def test_the_json_is_plain() -> None:
    made = plan()
    assert json.loads(json.dumps(made.as_json()))["choices"][0]["cores_needed"] == made.choice.cores_needed


@pytest.mark.parametrize("wrong", [{"devices": 0}, {"cores": 0}, {"demand_per_device": 0.0}, {"batch_size": 0}])
def test_a_wrong_call_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        plan(**wrong)
    with pytest.raises(ConfigError, match="costs"):
        make_plan({}, machine=HERE, measured_with=1, devices=1, demand_per_device=1.0)
