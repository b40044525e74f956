"""The levels: what is half, what passes in and out, what stays as it was."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from model.precision import LEVELS, Precision

HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


class Outputs(NamedTuple):
    logits: Tensor
    labels: Tensor


class Passes(nn.Module):
    """Notes what it was called with, and returns what it is told to."""

    def __init__(self, output: Any = None):
        super().__init__()
        self.output = output
        self.seen: tuple[Any, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.seen = (args, kwargs)
        return self.output


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("level", LEVELS)
def test_what_becomes_half(level: str, dtype: torch.dtype) -> None:
    net = network()
    Precision(level=level, dtype=dtype).convert(net)
    affine = ("1.", "3.1.")
    kept = {"O0": ("",), "O1": ("",), "O2": affine, "O3": ()}[level]
    names = [*net.state_dict()]
    assert any(name == "2.running_mean" for name in names)
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value.dtype == torch.int64
        else:
            assert value.dtype == (FP32 if name.startswith(kept) else dtype), name


@pytest.mark.parametrize("level", LEVELS)
def test_outputs_are_fp32_whatever_is_put_in(level: str) -> None:
    net = network()
    precision = Precision(level=level)
    precision.convert(net)
    images = torch.randn(2, 3, 8, 8)
    for train in (True, False):
        net.train(train)
        with precision.autocast():
            for given in {FP32, precision.input_dtype}:
                with torch.inference_mode(not train):
                    logits = net(images.to(given))
                assert logits.dtype == (HALF if level == "O1" else FP32)  # autocast is not a change of the model
                assert logits.isfinite().all()


def test_conversion_keeps_values_layout_and_identity() -> None:
    net = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = [(p, p.detach().clone(), p.stride()) for p in net.parameters()]
    Precision(level="O2").convert(net)
    for p, (same, value, stride) in zip(net.parameters(), before, strict=True):
        assert p is same
        assert p.requires_grad
        assert p.stride() == stride
        assert torch.equal(p, value.to(p.dtype))


def test_tied_parameters_stay_tied() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    Precision(level="O2").convert(net)
    assert net[1].weight is net[0].weight
    assert len([*net.parameters()]) == 3


def test_casts_reach_into_nested_arguments_and_outputs() -> None:
    x, labels = torch.ones(2), torch.arange(2)
    half = x.half()
    net = Passes([Outputs(half, labels), {"a": (half, "text"), "b": [half.bfloat16(), None, 3]}])
    Precision(level="O3").convert(net)
    output = net(x, [labels, (x.double(),)], scale={"by": x}, name="n")
    (first, (second, (third,))), kwargs = net.seen
    assert [t.dtype for t in (first, third, kwargs["scale"]["by"])] == [HALF] * 3
    assert second is labels
    assert kwargs["name"] == "n"
    named, rest = output
    assert isinstance(named, Outputs)
    assert named.labels is labels
    assert isinstance(rest["a"], tuple)
    assert [t.dtype for t in (named.logits, rest["a"][0], rest["b"][0])] == [FP32] * 3
    assert (rest["a"][1], *rest["b"][1:]) == ("text", None, 3)


def test_o0_and_o1_leave_the_model_alone() -> None:
    for level in ("O0", "O1"):
        net = Passes()
        precision = Precision(level=level)
        precision.convert(net)
        x = torch.ones(2, dtype=torch.float64)
        net(x)
        assert net.seen[0][0] is x
        assert precision.input_dtype == FP32


def test_autocast_is_o1_alone() -> None:
    for level in LEVELS:
        with Precision(level=level, dtype=BF16).autocast():
            assert torch.is_autocast_enabled("cpu") == (level == "O1")
            if level == "O1":
                assert torch.get_autocast_dtype("cpu") == BF16


def test_default_scales() -> None:
    got = {(level, dtype): Precision(level=level, dtype=dtype).loss_scale for level in LEVELS for dtype in (HALF, BF16)}
    want: dict[Any, Any] = dict.fromkeys(got, 1.0)
    want["O1", HALF] = want["O2", HALF] = "dynamic"
    assert got == want


def test_what_is_no_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="one of O0, O1, O2, O3, was 'O4'"):
        Precision(level="O4")
    with pytest.raises(ValueError, match=r"was torch\.float32"):
        Precision(level="O2", dtype=FP32)
