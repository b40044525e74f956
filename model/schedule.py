"""The learning rate: the original recipe's two schedules by the epoch, and a cosine by the step, with a warm-up."""

from __future__ import annotations

import math

SCHEDULES = ("step", "cosine", "cosine-step")


def learning_rate(
    epoch: int, *, lr: float, epochs: int, schedule: str, warm_up_epochs: int = 0, done: float = 0.0
) -> float:
    """The learning rate during ``epoch`` (0 ... epochs - 1), of which ``done`` (0 to 1) is behind us.

    step: a tenth every 30 epochs. cosine: ``lr / 2 * (1 + cos(pi * (epoch - w) / (epochs - w)))``, w being the
    warm-up. In the first w epochs either is ``lr * (epoch + 1) / (w + 1)``. Both stand still within an epoch.
    cosine-step: the same cosine of ``epoch + done``, after a straight line from 0 to ``lr``; it ends at 0.
    Source: the ModelZoo recipe InceptionV4_ID1778 (one card: step; eight cards: cosine).
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, was {schedule!r}")
    now = epoch + done if schedule == "cosine-step" else float(epoch)
    if now < warm_up_epochs:
        return lr * now / warm_up_epochs if schedule == "cosine-step" else lr * (epoch + 1) / (warm_up_epochs + 1)
    if schedule == "step":
        return lr * 0.1 ** (epoch // 30)
    return lr * 0.5 * (1 + math.cos(math.pi * (now - warm_up_epochs) / max(1, epochs - warm_up_epochs)))
