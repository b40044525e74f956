"""The average of the weights over the last steps, which single steps at a high learning rate do not throw about.

An exponential moving average, as in Inception's own training: Szegedy et al., "Rethinking the Inception Architecture
for Computer Vision", 2015, section 8.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class AveragedWeights:
    """fp32 averages of ``sources`` (``Optimizer.sources()``): the weights, the batch norms' statistics with them.

    After step n the average moves by ``1 - min(decay, (1 + n) / (10 + n))`` towards the sources: a short memory at
    first, which soon leaves the random beginning behind. Integers, such as the batch norms' counts, are copied.

    Args:
        sources: the tensors themselves; they are read at each ``update``, on their device, and nobody waits.
        decay: in (0, 1): 0.9999 remembers about 10,000 steps.
    """

    def __init__(self, sources: Mapping[str, Tensor], decay: float):
        self.decay, self.steps = decay, 0
        self._floats = {name: tensor.detach() for name, tensor in sources.items() if tensor.is_floating_point()}
        self._integers = {name: tensor for name, tensor in sources.items() if not tensor.is_floating_point()}
        self._averages = {name: tensor.to(torch.float32, copy=True) for name, tensor in self._floats.items()}
        self._names = list(sources)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the sources as they are now: after each step."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self._averages.values()), [x.float() for x in self._floats.values()], share)

    def weights(self) -> dict[str, Tensor]:
        """Copies of all of them, under the model's names: later steps do not change them."""
        return {name: (self._averages | self._integers)[name].clone() for name in self._names}

    def statistics(self) -> list[Tensor]:
        """Those of the batch norms' running statistics, which differ between ranks."""
        return [value for name, value in self._averages.items() if "running_" in name]

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what ``weights`` and ``steps`` were. Raises KeyError or RuntimeError where they do not fit."""
        for name, average in self._averages.items():
            average.copy_(weights[name])
        self.steps = steps
