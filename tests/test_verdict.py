"""The verdict as a pure function: each bottleneck alone is named, and the shares of a picture's time are 1."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.profiler.verdict import Evidence, divide, judge

# Eight cards, of which a host of two cores feeds a part.
SHORT = Evidence(
    demand=3800.0,
    stall=0.6,
    transfer=None,
    replayed=90_000.0,
    in_memory=1550.0,
    supply=1520.0,
    supply_low=1500.0,
    supply_high=1540.0,
    workers=2,
    cores=2.0,
    ours=1.98,
    others=0.01,
    taken=0.01,
    slowest_share=0.04,
)


@pytest.mark.parametrize(
    ("changes", "verdict", "cause"),
    [
        ({}, "cpu", "decode"),
        ({"stall": 0.0, "supply": 4000.0, "in_memory": 4100.0}, "compute", "step"),
        ({"supply": 200.0, "stall": 0.95, "ours": 0.3}, "io", "disk"),
        ({"ours": 1.0, "workers": 1}, "cpu", "workers"),
        ({"ours": 1.0, "others": 0.99, "taken": 0.99}, "cpu", "neighbour"),
        ({"workers": 1, "ours": 1.0, "others": 0.99}, "cpu", "neighbour"),  # a second worker would not get a core
        ({"slowest_share": 0.5, "ours": 1.2}, "cpu", "stragglers"),
        ({"replayed": 1600.0, "ours": 1.1}, "cpu", "hand-over"),
        ({"demand": 500.0, "stall": 0.3, "transfer": 350.0}, "transfer", "transfer"),
        ({"demand": 500.0, "stall": 0.3, "slowest_share": 0.4}, "cpu", "stragglers"),  # enough, but not at every moment
    ],
)
def test_what_is_planted_is_named(changes: dict[str, Any], verdict: str, cause: str) -> None:
    judgement = judge(dataclasses.replace(SHORT, **changes))
    assert (judgement.verdict, judgement.cause) == (verdict, cause)


def test_what_varies_around_the_demand_is_not_sure() -> None:
    assert judge(SHORT).confidence == "high"
    assert judge(dataclasses.replace(SHORT, supply_high=3900.0)).confidence.startswith("low: ")
    assert judge(dataclasses.replace(SHORT, supply_low=900.0)).confidence.startswith("low: ")


RATES = st.floats(1.0, 1e6)


@given(RATES, st.floats(0.0, 1.0), st.none() | RATES, RATES, RATES, RATES)
def test_the_shares_are_all_of_the_time(
    demand: float, stall: float, transfer: float | None, replayed: float, in_memory: float, supply: float
) -> None:
    evidence = dataclasses.replace(
        SHORT, demand=demand, stall=stall, transfer=transfer, replayed=replayed, in_memory=in_memory, supply=supply
    )
    shares = {share.name: share.fraction for share in divide(evidence)}
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0
    assert shares["step"] == pytest.approx(1 - stall)
