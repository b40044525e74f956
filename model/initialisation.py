"""How a network begins: torch's own way, which the original has; and one from which full depth learns at once.

InceptionV4 has no skip connections. Where ReLU cuts off half of what a batch norm leaves, every such layer makes the
gradient that goes back through it larger by a factor of some 1.2 (Yang et al., "A Mean Field Theory of Batch
Normalization", 2019, arXiv:1902.08129: the root of pi / (pi - 1)). After 50 of them the first layers' gradients are,
against their weights, thousands of times the last ones'. With a bias of 1 in the batch norms ReLU cuts off a sixth, and
it is some tens of times.

Then the classifier is what breaks out: its inputs are averages of what ReLU has left, so all positive, and 1,536 of
them move a logit together. The last layers' batch norms therefore begin with a bias of 0 and a small scale. (Zeros in
the classifier would do as well, but not under --clip-agc: a share of zero is no step.)
"""

from __future__ import annotations

import torch
from torch import nn

from .inceptionv4 import InceptionV4

INITIALISATIONS = ("original", "even")
_LAST_SCALE = 0.3


@torch.no_grad()
def initialise_evenly(model: InceptionV4) -> None:
    """Set what is below the classifier so that a step that suits the last layers suits the first.

    Draws from torch's own generator.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.ones_(module.bias)
    for layer in model.last_layers():
        nn.init.constant_(layer.bn.weight, _LAST_SCALE)
        nn.init.zeros_(layer.bn.bias)
