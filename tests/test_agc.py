"""Adaptive gradient clipping against a loop over units written from the paper's equation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from model.agc import clip_gradients_adaptively


def network(scale: float = 1.0) -> nn.Sequential:
    """A convolution, a batch norm and a classifier with gradients of very different sizes from unit to unit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    net.register_parameter("temperature", nn.Parameter(torch.tensor(0.7)))
    for p in net.parameters():
        units = torch.logspace(-4, 2, p.shape[0]).view(-1, *[1] * (p.ndim - 1)) if p.ndim else torch.ones(())
        p.grad = scale * units * torch.randn(p.shape)
    return net


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def clipped_by_hand(weight: Tensor, gradient: Tensor, clipping: float, eps: float) -> Tensor:
    """Equation 3 of arXiv:2102.06171, a unit at a time, in Python's own floats."""
    out = gradient.double().reshape(len(gradient) if gradient.ndim > 1 else 1, -1)
    for w, g in zip(weight.detach().double().reshape(out.shape), out, strict=True):
        w_norm = math.sqrt(sum(float(x) ** 2 for x in w))
        g_norm = math.sqrt(sum(float(x) ** 2 for x in g))
        bound = clipping * max(w_norm, eps)
        if g_norm > bound:
            g *= bound / g_norm
    return out.reshape(gradient.shape)


@pytest.mark.parametrize(("clipping", "eps"), [(0.05, 1e-3), (0.01, 0.5), (2.0, 1e-3)])
def test_it_is_the_papers_equation(clipping: float, eps: float) -> None:
    net = network()
    before = gradients(net)
    expected = [clipped_by_hand(p, g, clipping, eps) for p, g in zip(net.parameters(), before, strict=True)]
    clip_gradients_adaptively(net.parameters(), clipping, eps)
    for got, want, old in zip(gradients(net), expected, before, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=0)
        assert old.ndim == 0 or not torch.equal(got, old), "the example must clip something"


def test_a_gradient_within_its_bound_keeps_its_bits() -> None:
    net = network()
    before = gradients(net)
    clip_gradients_adaptively(net.parameters(), 0.05)
    kept = changed = 0
    for p, old, new in zip(net.parameters(), before, gradients(net), strict=True):
        if p.ndim < 2:
            continue
        for w, o, n in zip(p.detach(), old, new, strict=True):
            if o.norm() < 0.049 * w.norm():
                assert torch.equal(o, n)
                kept += 1
            elif o.norm() > 0.051 * w.norm():
                assert n.norm() < o.norm()
                changed += 1
    assert kept >= 3
    assert changed >= 3


def test_small_gradients_are_unchanged_everywhere() -> None:
    net = network(scale=1e-9)
    before = gradients(net)
    clip_gradients_adaptively(net.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, gradients(net), strict=True))


def test_zero_gradients_and_zero_weights_stay_finite() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    clip_gradients_adaptively([weight], clipping=0.1, eps=1e-2)
    torch.testing.assert_close(weight.grad, torch.tensor([[0.0, 0.0, 0.0], [6e-4, 0.0, 8e-4]]))


def test_a_gradient_that_is_not_a_number_is_not_hidden() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.tensor([[math.nan, 1.0], [0.0, 0.0]])
    clip_gradients_adaptively([weight])
    assert weight.grad[0].isnan().any()
    assert torch.equal(weight.grad[1], torch.zeros(2))


def test_channels_last_gradients_are_clipped_in_place() -> None:
    plain, last = network(), network()
    kernel = last[0].weight
    assert isinstance(kernel, Tensor)
    assert kernel.grad is not None
    kernel.grad = kernel.grad.contiguous(memory_format=torch.channels_last)
    at = [p.grad.data_ptr() for p in last.parameters() if p.grad is not None]
    clip_gradients_adaptively(plain.parameters())
    clip_gradients_adaptively(last.parameters())
    assert at == [p.grad.data_ptr() for p in last.parameters() if p.grad is not None]
    for a, b in zip(gradients(plain), gradients(last), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_only_what_is_given_is_clipped_and_none_is_needed() -> None:
    net = network()
    classifier = net[3]
    before = gradients(classifier)
    frozen = nn.Parameter(torch.ones(2))
    given = [p for layer in net if layer is not classifier for p in layer.parameters()]
    clip_gradients_adaptively([*given, frozen])
    clip_gradients_adaptively([frozen])
    clip_gradients_adaptively([])
    assert frozen.grad is None
    assert all(torch.equal(old, new) for old, new in zip(before, gradients(classifier), strict=True))


@pytest.mark.parametrize(("clipping", "eps"), [(0.0, 1e-3), (-1.0, 1e-3), (0.05, 0.0), (math.nan, 1e-3)])
def test_bounds_that_make_no_sense_are_refused(clipping: float, eps: float) -> None:
    with pytest.raises(ValueError, match="must be above 0, were"):
        clip_gradients_adaptively([], clipping, eps)
