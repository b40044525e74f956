"""The learning rate of each epoch: the original recipe's two schedules, with its warm-up."""

from __future__ import annotations

import math

SCHEDULES = ("step", "cosine")


def learning_rate(epoch: int, *, lr: float, epochs: int, schedule: str, warm_up_epochs: int = 0) -> float:
    """The learning rate during ``epoch`` (0 ... epochs - 1).

    step: a tenth every 30 epochs. cosine: ``lr / 2 * (1 + cos(pi * (epoch - w) / (epochs - w)))``, w being the
    warm-up. In the first w epochs either is ``lr * (epoch + 1) / (w + 1)``.
    Source: the ModelZoo recipe InceptionV4_ID1778 (one card: step; eight cards: cosine).
    """
    if epoch < warm_up_epochs:
        return lr * (epoch + 1) / (warm_up_epochs + 1)
    if schedule == "step":
        return lr * 0.1 ** (epoch // 30)
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * (epoch - warm_up_epochs) / max(1, epochs - warm_up_epochs)))
    raise ValueError(f"schedule must be {' or '.join(SCHEDULES)}, was {schedule!r}")
