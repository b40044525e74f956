from __future__ import annotations

import math

import pytest

from model.schedule import learning_rate


def test_step_is_the_one_card_recipe() -> None:
    rates = [learning_rate(e, lr=0.045, epochs=90, schedule="step") for e in range(90)]
    assert rates[0] == rates[29] == 0.045
    assert rates[30] == pytest.approx(0.0045)
    assert rates[89] == pytest.approx(0.00045)


def test_cosine_is_the_eight_card_recipe() -> None:
    rates = [learning_rate(e, lr=0.484375, epochs=240, schedule="cosine", warm_up_epochs=5) for e in range(240)]
    assert rates[:5] == [0.484375 * (e + 1) / 6 for e in range(5)]
    for e in (5, 100, 239):
        assert rates[e] == pytest.approx(0.5 * (1 + math.cos(math.pi * (e - 5) / 235)) * 0.484375)
    assert rates == sorted(rates[:6]) + sorted(rates[6:], reverse=True)


def test_odd_lengths_do_not_divide_by_zero() -> None:
    assert learning_rate(0, lr=1.0, epochs=1, schedule="cosine") == 1.0
    assert learning_rate(3, lr=1.0, epochs=3, schedule="cosine", warm_up_epochs=3) == 1.0
    with pytest.raises(ValueError, match="one of step, cosine, cosine-step"):
        learning_rate(0, lr=1.0, epochs=1, schedule="linear")


def test_cosine_by_the_step_is_the_one_by_the_epoch_where_an_epoch_begins() -> None:
    def rate(epoch: int, schedule: str, done: float = 0.0, warm_up: int = 2) -> float:
        return learning_rate(epoch, lr=0.5, epochs=10, schedule=schedule, warm_up_epochs=warm_up, done=done)

    for epoch in range(2, 10):
        assert rate(epoch, "cosine-step") == rate(epoch, "cosine")
        assert rate(epoch, "cosine", 0.7) == rate(epoch, "cosine")
    line = [rate(epoch, "cosine-step", done) for epoch in (0, 1) for done in (0.0, 0.25, 0.5, 0.75)]
    assert line == pytest.approx([0.5 * n / 8 for n in range(8)])
    falling = [rate(epoch, "cosine-step", done) for epoch in range(2, 10) for done in (0.0, 0.5, 1.0)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(0, abs=1e-12)
    assert rate(0, "cosine-step", warm_up=0) == 0.5
