"""The loss scale against apex's rule written with Python's floats."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from model.loss_scale import LossScale

CPU = torch.device("cpu")


class Rule:
    """apex's LossScaler.update_scale."""

    def __init__(self, scale: float = 65536.0, unskipped: int = 0):
        self.scale, self.unskipped, self.skipped = scale, unskipped, 0

    def step(self, overflow: bool) -> None:
        if overflow:
            self.scale /= 2
            self.unskipped = 0
            self.skipped += 1
        else:
            self.unskipped += 1
        if self.unskipped == 2000:
            self.scale = min(2.0**24, self.scale * 2)
            self.unskipped = 0


class Flag:
    """A chip's overflow flag."""

    def __init__(self) -> None:
        self.up = True  # from whatever ran before
        self.cleared = 0

    def clear(self) -> None:
        self.up = False
        self.cleared += 1

    def raised(self) -> Tensor:
        return torch.tensor(float(self.up))


def one_step(scale: LossScale, gradient: float = 1.0) -> None:
    scale.unscale([torch.tensor([gradient])])
    scale.update()


def state(scale: float, unskipped: int) -> dict[str, Any]:
    return {"loss_scaler0": {"loss_scale": scale, "unskipped": unskipped}}


def test_growth_after_exactly_2000_clean_steps() -> None:
    scale = LossScale("dynamic", CPU)
    for _ in range(1999):
        one_step(scale)
    assert scale.state_dict() == state(65536.0, 1999)
    one_step(scale)
    assert scale.state_dict() == state(131072.0, 0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_overflow_halves_and_counts_anew(bad: float) -> None:
    scale = LossScale("dynamic", CPU)
    scale.load_state_dict(state(1024.0, 1999))
    one_step(scale, bad)
    assert scale.found_inf is not None
    assert scale.found_inf.item() == 1
    assert scale.state_dict() == state(512.0, 0)
    one_step(scale)
    assert scale.found_inf.item() == 0
    assert scale.state_dict() == state(512.0, 1)
    assert scale.skipped == 1


def test_any_pattern_of_overflows_at_the_cap_and_below_one() -> None:
    """Long clean stretches up to the cap and past it, and bursts of overflows that take the scale far below 1."""
    draw = random.Random(0)
    scale, rule = LossScale("dynamic", CPU), Rule()
    seen = set()
    for start in (2.0**23, 2.0**24, 2.0):
        rule.scale, rule.unskipped = start, 1900
        scale.load_state_dict(state(start, 1900))
        for n in range(2300):
            overflow = n in (150, 151) or (start == 2 and n > 2290 and draw.random() < 0.8)
            one_step(scale, math.nan if overflow else 1.0)
            rule.step(overflow)
            if n % 50 == 0 or n > 2280 or 95 < n < 105:
                assert scale.state_dict() == state(rule.scale, rule.unskipped)
                seen.add(rule.scale)
    assert scale.skipped == rule.skipped
    assert max(seen) == 2.0**24
    assert min(seen) < 1


def test_apply_and_unscale_are_inverse_and_exact() -> None:
    scale = LossScale("dynamic", CPU)
    assert scale.apply(torch.tensor(3.0, dtype=torch.float16)).item() == 3 * 65536  # in fp32: fp16 ends at 65504
    gradients = [torch.tensor([[65536.0, -1.0]]), torch.tensor([3.0], dtype=torch.float16)]
    scale.unscale(gradients)
    assert torch.equal(gradients[0], torch.tensor([[1.0, -(2.0**-16)]]))
    assert gradients[1].item() == torch.tensor(3 / 65536).half().item()
    static = LossScale(128, CPU)
    assert static.apply(torch.tensor(0.5)).item() == 64
    gradients = [torch.tensor([64.0, math.inf])]
    static.unscale(gradients)
    assert gradients[0].tolist() == [0.5, math.inf]


def test_static_scales_neither_check_nor_skip() -> None:
    for number in (1.0, 512.0):
        scale = LossScale(number, CPU)
        for gradient in (1.0, math.nan):
            one_step(scale, gradient)
        assert scale.found_inf is None
        assert (scale.value, scale.skipped) == (number, 0)
    loss = torch.tensor(1.0)
    assert LossScale(1, CPU).apply(loss) is loss


def test_a_raised_flag_skips_the_step_of_finite_gradients() -> None:
    flag = Flag()
    scale = LossScale("dynamic", CPU, overflow=flag)
    assert not flag.up
    one_step(scale)
    assert (scale.value, scale.skipped) == (65536.0, 0)
    flag.up = True
    one_step(scale)
    assert (scale.value, scale.skipped) == (32768.0, 1)
    assert not flag.up
    one_step(scale)
    one_step(scale, math.inf)
    assert (scale.value, scale.skipped) == (16384.0, 2)


def test_ranks_agree_where_the_gradients_do_not_say_it() -> None:
    asked: list[float] = []

    def another_rank_overflowed(found_inf: Tensor) -> None:
        asked.append(found_inf.item())
        found_inf.fill_(1)

    scale = LossScale("dynamic", CPU, overflow=Flag(), any_rank=another_rank_overflowed)
    one_step(scale)
    assert (asked, scale.skipped) == ([0.0], 1)
    scale = LossScale("dynamic", CPU, any_rank=another_rank_overflowed)
    one_step(scale)
    assert (asked, scale.skipped) == ([0.0], 0), "without a flag the gradients carry the inf"


def test_a_static_scale_does_not_touch_the_flag() -> None:
    flag = Flag()
    one_step(LossScale(64.0, CPU, overflow=flag))
    assert flag.cleared == 0


def test_apexs_form() -> None:
    scale = LossScale("dynamic", CPU)
    scale.load_state_dict({**state(4096.0, 7), "loss_scaler1": {"loss_scale": 1.0, "unskipped": 0}})
    assert scale.state_dict() == state(4096.0, 7)
    assert [type(value) for value in scale.state_dict()["loss_scaler0"].values()] == [float, int]
    nothings: list[dict[str, Any] | None] = [None, {}]
    for nothing in nothings:
        scale.load_state_dict(nothing)
        assert scale.state_dict() == state(65536.0, 0)
    scale.load_state_dict(state(2.0**30, 100_000))  # apex's own count under a static scale
    assert scale.state_dict() == state(2.0**24, 0)
    static = LossScale(128, CPU)
    static.load_state_dict(state(4096.0, 7))
    assert static.state_dict() == state(128.0, 0)
    assert LossScale(1.0, CPU).state_dict() == {}


@pytest.mark.parametrize(
    "bad",
    [state(0, 0), state(math.nan, 0), state(math.inf, 0), state(-1, 0), state(1, -1), {"loss_scaler0": {}}, {"x": 1}],
)
def test_what_is_not_apexs_form_is_refused_and_changes_nothing(bad: dict[str, Any]) -> None:
    scale = LossScale("dynamic", CPU)
    with pytest.raises((ValueError, KeyError)):
        scale.load_state_dict(bad)
    assert scale.state_dict() == state(65536.0, 0)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, "static"])
def test_what_is_no_scale_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="'dynamic' or a number above 0"):
        LossScale(bad, CPU)
