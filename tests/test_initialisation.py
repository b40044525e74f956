"""The even initialisation: what a step changes in the first layer and in the last, against their weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from model.inceptionv4 import InceptionV4
from model.initialisation import initialise_evenly


def relative_gradients(model: InceptionV4) -> list[float]:
    """|gradient| / |weights| of each convolution, in the model's order."""
    images = torch.randn(8, 3, 75, 75, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward(cross_entropy(model(images), torch.arange(8) % 4))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    found = []
    for convolution in convolutions:
        assert convolution.weight.grad is not None
        found.append(float(convolution.weight.grad.norm() / convolution.weight.detach().norm()))
    return found


def spread(evenly: bool) -> float:
    torch.manual_seed(0)
    model = InceptionV4(4)
    if evenly:
        initialise_evenly(model)
    found = relative_gradients(model)
    return math.exp(sum(map(math.log, found[:10])) / 10 - sum(map(math.log, found[-10:])) / 10)


def test_the_first_layers_do_not_run_away_from_the_last() -> None:
    original, even = spread(evenly=False), spread(evenly=True)
    assert original > 1000
    assert even < original / 20


def test_it_begins_at_the_loss_of_a_guess() -> None:
    """What the classifier gets is small, and so are its first steps."""
    model = InceptionV4(4, blocks=(1, 1, 1))
    initialise_evenly(model)
    loss = cross_entropy(model(torch.randn(8, 3, 96, 96)), torch.arange(8) % 4)
    assert loss.item() == pytest.approx(math.log(4), abs=0.1)


@pytest.mark.parametrize(("blocks", "count", "width"), [((0, 0, 0), 2, 512), ((1, 1, 1), 6, 1536)])
def test_the_last_layers_are_found(blocks: tuple[int, int, int], count: int, width: int) -> None:
    """Of Reduction_B the rest comes out of its max pool."""
    layers = InceptionV4(4, blocks=blocks).last_layers()
    assert (len(layers), sum(layer.conv.out_channels for layer in layers)) == (count, width)
