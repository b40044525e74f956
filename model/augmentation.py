"""Mixup, CutMix and random erasing: on the device, on whole batches, drawn from nothing but (seed, epoch, position).

What is drawn, a few numbers a batch, is drawn on the host, which therefore never waits for the device; and a run that
is stopped and goes on draws the same. The pictures are changed after they are normalised, so that an erased pixel is 0,
the middle of [-1, 1].

Sources: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2017 (arXiv:1710.09412), which takes a batch's
partners from the batch itself; Yun et al., "CutMix", 2019 (arXiv:1905.04899), algorithm 1; Zhong et al., "Random
Erasing Data Augmentation", 2017 (arXiv:1708.04896), algorithm 1, with its 2 to 40 % of the area and aspects of 0.3 to
3.3; a rectangle that would not fit is cut off instead of drawn again.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor, nn

ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = (0.3, 1 / 0.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a batch.

    Args:
        mixup, cutmix: alpha of the Beta distribution from which the share of the first picture comes; 0: not done.
            Where both are above 0, each batch gets one of the two, by the toss of a coin.
        erase: how likely it is that a picture has a rectangle erased.
        seed: of the draws.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0
    seed: int = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.mixup or self.cutmix or self.erase)

    def __call__(self, images: Tensor, labels: Tensor, *, epoch: int, position: int, rank: int = 0) -> Augmented:
        """Augment ``[N, 3, H, W]`` with labels ``[N]``.

        ``images`` may be changed in place. ``position``: the samples of ``epoch`` that are behind all ranks with this
        batch. A batch of one picture has no partner to mix with.
        """
        rng = np.random.default_rng([self.seed, epoch, position, rank])
        share, others = 1.0, labels
        if self.mixup or self.cutmix:
            cut = self.cutmix > 0 and (self.mixup == 0 or rng.random() < 0.5)
            alpha = self.cutmix if cut else self.mixup
            share, others = float(rng.beta(alpha, alpha)), labels.flip(0)
            images, share = _cut_in(images, share, rng) if cut else (images.lerp(images.flip(0), 1 - share), share)
        if self.erase:
            _erase(images, self.erase, rng)
        return Augmented(images, labels, others, share)


@dataclasses.dataclass(frozen=True)
class Augmented:
    """A batch whose pictures are ``share`` of what ``labels`` say and ``1 - share`` of what ``others`` say."""

    images: Tensor  # [N, 3, H, W]
    labels: Tensor  # int64 [N]
    others: Tensor  # int64 [N]
    share: float

    def loss(self, criterion: nn.Module, logits_NK: Tensor) -> Tensor:
        """The mean over the batch: []."""
        loss: Tensor = criterion(logits_NK, self.labels)
        return loss if self.share == 1 else self.share * loss + (1 - self.share) * criterion(logits_NK, self.others)

    def parts(self, most: int) -> list[Augmented]:
        """The batch in as few parts as there can be of at most so many pictures, and of nearly the same size."""
        count = -(-len(self.labels) // most)
        split = (tensor.tensor_split(count) for tensor in (self.images, self.labels, self.others))
        return [Augmented(*part, self.share) for part in zip(*split, strict=True)]  # type: ignore[call-arg]


def _cut_in(images: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Put one rectangle of 1 - ``share`` of the area, cut off at the edges, from each picture's partner into it.

    Returns the pictures, and the share that is left of each.
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - share)
    top, bottom = _span(int(rng.integers(height)), height * side, height)
    left, right = _span(int(rng.integers(width)), width * side, width)
    partners = images[:, :, top:bottom, left:right].flip(0)  # a copy: what it is taken from is about to change
    images[:, :, top:bottom, left:right] = partners
    return images, 1 - (bottom - top) * (right - left) / (height * width)


def _span(centre: int, length: float, end: int) -> tuple[int, int]:
    return max(0, round(centre - length / 2)), min(end, round(centre + length / 2))


def _erase(images: Tensor, likely: float, rng: np.random.Generator) -> None:
    """Set a rectangle of its own to 0 in each picture that has the bad luck, in place."""
    count, _, height, width = images.shape
    area = rng.uniform(*ERASED_AREA, count) * height * width * (rng.random(count) < likely)
    low, high = map(math.log, ERASED_ASPECT)
    aspect = np.exp(rng.uniform(low, high, count))
    tall, wide = np.sqrt(area * aspect), np.sqrt(area / aspect)
    top, left = rng.random(count) * (height - tall).clip(0), rng.random(count) * (width - wide).clip(0)
    edges = torch.from_numpy(np.round([top, top + tall, left, left + wide]).astype(np.int32))
    tops, bottoms, lefts, rights = edges.to(images.device, non_blocking=True)[:, :, None]
    y, x = (torch.arange(size, device=images.device) for size in (height, width))
    rows, columns = (y >= tops) & (y < bottoms), (x >= lefts) & (x < rights)  # [N, H], [N, W]
    images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)
