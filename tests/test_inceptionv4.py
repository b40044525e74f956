"""InceptionV4 is the published network: names, shapes, arithmetic and numbers, each held against a second source."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.inceptionv4 import MIN_IMAGE_SIZE, InceptionV4, PointwiseConv2d, feature_size

# The network as published, one convolution a word: where it sits, channels in>out, kernel (height x width).
STEM = """
0:3>32:3x3 1:32>32:3x3 2:32>64:3x3 3.conv:64>96:3x3
4.branch0.0:160>64:1x1 4.branch0.1:64>96:3x3
4.branch1.0:160>64:1x1 4.branch1.1:64>64:1x7 4.branch1.2:64>64:7x1 4.branch1.3:64>96:3x3 5.conv:192>192:3x3
"""
INCEPTION_A = """
branch0:384>96:1x1 branch1.0:384>64:1x1 branch1.1:64>96:3x3
branch2.0:384>64:1x1 branch2.1:64>96:3x3 branch2.2:96>96:3x3 branch3.1:384>96:1x1
"""
REDUCTION_A = "branch0:384>384:3x3 branch1.0:384>192:1x1 branch1.1:192>224:3x3 branch1.2:224>256:3x3"
INCEPTION_B = """
branch0:1024>384:1x1 branch1.0:1024>192:1x1 branch1.1:192>224:1x7 branch1.2:224>256:7x1
branch2.0:1024>192:1x1 branch2.1:192>192:7x1 branch2.2:192>224:1x7 branch2.3:224>224:7x1 branch2.4:224>256:1x7
branch3.1:1024>128:1x1
"""
REDUCTION_B = """
branch0.0:1024>192:1x1 branch0.1:192>192:3x3
branch1.0:1024>256:1x1 branch1.1:256>256:1x7 branch1.2:256>320:7x1 branch1.3:320>320:3x3
"""
INCEPTION_C = """
branch0:1536>256:1x1 branch1_0:1536>384:1x1 branch1_1a:384>256:1x3 branch1_1b:384>256:3x1
branch2_0:1536>384:1x1 branch2_1:384>448:3x1 branch2_2:448>512:1x3 branch2_3a:512>256:1x3 branch2_3b:512>256:3x1
branch3.1:1536>256:1x1
"""


def published(num_classes: int, blocks: tuple[int, int, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the published state_dict."""
    n_a, n_b, n_c = blocks
    stack = [INCEPTION_A] * n_a + [REDUCTION_A] + [INCEPTION_B] * n_b + [REDUCTION_B] + [INCEPTION_C] * n_c
    words = STEM.split() + [f"{6 + i}.{word}" for i, block in enumerate(stack) for word in block.split()]
    for word in words:
        where, channels, kernel = word.split(":")
        planes_in, planes_out = map(int, channels.split(">"))
        yield f"features.{where}.conv.weight", (planes_out, planes_in, *map(int, kernel.split("x")))
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            yield f"features.{where}.bn.{leaf}", (planes_out,)
        yield f"features.{where}.bn.num_batches_tracked", ()
    yield "last_linear.weight", (num_classes, 1536)
    yield "last_linear.bias", (num_classes,)


def on_meta(num_classes: int = 1000, blocks: tuple[int, int, int] = (4, 7, 3)) -> InceptionV4:
    """The network with shapes and no numbers: as good as the real one for counting, at no cost."""
    with torch.device("meta"):
        return InceptionV4(num_classes, blocks)


def lively(model: nn.Module) -> nn.Module:
    """Weights from a seed under which every layer matters to the logits, in evaluation too.

    torch's own initialisation shrinks the signal at every layer: after 149 of them the logits are the
    classifier's bias, whatever the picture, and any two networks agree.
    """
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        unit = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        if value.ndim > 1:  # uniform with the variance 2 / fan_in, which ReLU halves again
            unit = (2 * unit - 1) * (6 / value[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            unit = unit + 0.5
        else:
            unit = (unit - 0.5) * 0.2
        value.copy_(unit)
    return model


def pictures(count: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1


def test_counts_are_the_published_ones() -> None:
    model = on_meta()
    assert sum(parameter.numel() for parameter in model.parameters()) == 42_679_816
    assert len(model.state_dict()) == 896
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 149


@pytest.mark.parametrize(
    ("num_classes", "blocks"), [(1000, (4, 7, 3)), (1001, (4, 7, 3)), (10, (1, 2, 1)), (1, (0, 0, 0))]
)
def test_names_shapes_and_their_order_are_cadenes(num_classes: int, blocks: tuple[int, int, int]) -> None:
    # The order matters as well: an optimiser's checkpoint refers to parameters by number.
    found = [(name, tuple(value.shape)) for name, value in on_meta(num_classes, blocks).state_dict().items()]
    assert found == list(published(num_classes, blocks))


def test_batch_norm_has_the_published_constants() -> None:
    norms = [module for module in on_meta().modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.1)}


def test_feature_maps_at_299_are_those_of_the_paper() -> None:
    model, x, sizes = on_meta(), torch.empty(1, 3, 299, 299, device="meta"), []
    for block in model.features:
        x = block(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [
        *[(32, 149, 149), (32, 147, 147), (64, 147, 147), (160, 73, 73), (192, 71, 71)],
        *[(384, 35, 35)] * 5,
        *[(1024, 17, 17)] * 8,
        *[(1536, 8, 8)] * 4,
    ]


@pytest.mark.parametrize("size", [MIN_IMAGE_SIZE, 299])
def test_logits_have_one_row_a_picture(size: int) -> None:
    assert on_meta(7)(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)
    assert on_meta(7)(torch.empty(2, 3, size, size + 13, device="meta")).shape == (2, 7)


def test_75_pixels_are_the_least() -> None:
    assert MIN_IMAGE_SIZE == 75
    model = InceptionV4(2, blocks=(0, 0, 0)).eval()
    assert model(torch.zeros(1, 3, 75, 75)).shape == (1, 2)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        model(torch.zeros(1, 3, 74, 75))


def test_a_picture_at_299_costs_12_28_gmac() -> None:
    model, normalised = on_meta(), []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _module, _inputs, output: normalised.append(output.numel()))
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 299, 299, device="meta"))
    multiply_adds = counter.get_total_flops() // 2  # torch counts the convolutions and the classifier only
    assert multiply_adds == 12_253_974_624
    assert (multiply_adds + 2 * sum(normalised)) / 1e9 == pytest.approx(12.28, abs=0.005)  # the published count


def test_gradients_reach_every_parameter() -> None:
    model = lively(InceptionV4(5, blocks=(1, 1, 1)).train())
    torch.autograd.backward(nn.functional.cross_entropy(model(pictures(4, 107).float()), torch.tensor([0, 1, 2, 4])))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


def test_channels_last_gives_the_same_logits() -> None:
    model, images = lively(InceptionV4(5, blocks=(1, 1, 1)).eval()), pictures(2, 107).float()
    with torch.no_grad():
        contiguous = model(images)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        channels_last = model(images.to(memory_format=torch.channels_last))
    assert contiguous.std(0).min() > 1e-3  # the pictures differ, or equal logits would mean nothing
    torch.testing.assert_close(channels_last, contiguous, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bf16", ["half weights", "autocast"])
def test_a_product_of_matrices_is_the_convolution(bf16: str) -> None:
    """Output and both gradients, each within bfloat16's rounding of the float64 convolution's."""
    generator = torch.Generator().manual_seed(3)
    layer = PointwiseConv2d(40, 24, 1, bias=False)
    x = torch.randn(3, 40, 9, 7, generator=generator).to(torch.bfloat16, memory_format=torch.channels_last)
    weight = torch.randn(24, 40, 1, 1, generator=generator).to(torch.bfloat16)
    upstream = torch.randn(3, 24, 9, 7, generator=generator).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(weight)
    layer.to(dtype=torch.bfloat16 if bf16 == "half weights" else torch.float32)
    mine = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16 == "autocast"):
        found = layer(mine)
    torch.autograd.backward(found, upstream)
    assert (found.dtype, found.is_contiguous(memory_format=torch.channels_last)) == (torch.bfloat16, True)

    theirs, their_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    want = nn.functional.conv2d(theirs, their_weight)
    torch.autograd.backward(want, upstream.double())
    for got, exact in ((found, want), (mine.grad, theirs.grad), (layer.weight.grad, their_weight.grad)):
        assert got is not None
        assert exact is not None
        assert (got.double() - exact).norm() / exact.norm() < 2**-8


def test_what_is_exported_stays_a_convolution() -> None:
    model = InceptionV4(3, blocks=(0, 0, 0)).to(torch.bfloat16, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = pictures(2, 75).to(torch.bfloat16, memory_format=torch.channels_last)
    program = torch.export.export(model, (images,))
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    count = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert sum("conv2d" in name for name in operators) == count
    assert sum("linear" in name for name in operators) == 1


def test_logits_are_those_of_cadenes_code() -> None:
    # Frozen from pretrainedmodels 0.7.4 with the same weights (one block of each kind, average over all of H x W),
    # so that strides, paddings, the order of the branches and count_include_pad are held where timm is not installed.
    model = lively(InceptionV4(3, blocks=(1, 1, 1)).double().eval())
    with torch.no_grad():
        logits = model(pictures(2, 123))
    theirs = [
        [-2.26030673941, 3.15781826146, 0.987039652003],
        [-2.49130339143, 3.67573654396, 0.872692842067],
    ]
    torch.testing.assert_close(logits, torch.tensor(theirs, dtype=torch.float64), rtol=1e-8, atol=1e-8)


def test_timm_computes_the_same_logits_and_gradients() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed, so InceptionV4 is not compared: pip install timm")
    ours, theirs = InceptionV4(5).eval(), timm.create_model("inception_v4", num_classes=5).eval()
    theirs.load_state_dict(lively(ours).state_dict())
    images, labels = pictures(2, 107).float(), torch.tensor([1, 4])
    logits = {}
    for name, model in (("ours", ours), ("theirs", theirs)):
        logits[name] = model(images)
        torch.autograd.backward(nn.functional.cross_entropy(logits[name], labels))
    assert logits["theirs"].std(0).min() > 1e-3
    torch.testing.assert_close(logits["ours"], logits["theirs"], rtol=1e-5, atol=1e-5)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        gap = (parameter.grad - wanted[name].grad).norm() / wanted[name].grad.norm()
        assert gap < 1e-4, f"{name}: the gradients differ by {gap:.1e} of their norm"


@pytest.mark.parametrize("num_classes", [0, -1])
def test_a_network_without_classes_is_refused(num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, was {num_classes}"):
        InceptionV4(num_classes)


@pytest.mark.parametrize("blocks", [(4, 7), (4, 7, 3, 1), (4, -1, 3)])
def test_other_than_three_block_counts_are_refused(blocks: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="blocks must be three counts of at least 0, was"):
        InceptionV4(10, blocks)


@pytest.mark.parametrize("image_size", [75, 96, 106, 107, 123, 138, 139, 299])
def test_feature_size_is_that_of_the_last_map(image_size: int) -> None:
    with torch.device("meta"):
        model = InceptionV4(2, blocks=(0, 0, 0)).eval()
        size = feature_size(image_size)
        assert model.features(torch.empty(1, 3, image_size, image_size)).shape == (1, 1536, size, size)
