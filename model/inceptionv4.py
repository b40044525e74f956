"""InceptionV4 (Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", 2016, figures 3 to 9), with the module names of Cadene's ``pretrainedmodels`` so that published
weights load unchanged.

At ``blocks=(4, 7, 3)`` and 1,000 classes: 149 convolutions, 42,679,816 parameters, 896 state_dict keys,
12.28 GMAC for one 299 x 299 picture (12.25 in convolutions and classifier, the rest in batch norm; about
73.7 GFLOP in training).

Shapes below are channels x height x width for a 299 x 299 input.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

MIN_IMAGE_SIZE = 75  # below this the last reduction has nothing left to reduce

Size = int | tuple[int, int]


def feature_size(image_size: int) -> int:
    """Height and width of the last feature map for a square picture: 8 at 299 pixels, 1 at 75 to 106."""
    size = (image_size - 3) // 2 + 1  # 149
    size = (size - 2 - 3) // 2 + 1  # 147, 73
    size = (size - 2 - 3) // 2 + 1  # 71, 35
    size = (size - 3) // 2 + 1  # 17
    return (size - 3) // 2 + 1  # 8


class PointwiseConv2d(nn.Conv2d):
    """A convolution of 1 x 1, stride 1, without bias; in bfloat16 on a CPU computed as a product of matrices.

    In channels_last each pixel's channels lie side by side, so that it is one. oneDNN's convolution takes 1.4 times as
    long for the same, most of it for the gradient of the weights; in float32 it is the other way round
    (benchmarks/2026-11-28-step.md). What is compiled or exported stays a convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        low = x.device.type == "cpu" and x.dtype == torch.bfloat16
        if not low or not x.is_contiguous(memory_format=torch.channels_last) or torch.compiler.is_compiling():
            return super().forward(x)
        return nn.functional.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1)).permute(0, 3, 1, 2)


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU: the only layer with weights below the classifier."""

    def __init__(self, in_planes: int, out_planes: int, kernel_size: Size, stride: int = 1, padding: Size = 0):
        super().__init__()
        layer = PointwiseConv2d if kernel_size == stride == 1 else nn.Conv2d
        self.conv = layer(in_planes, out_planes, kernel_size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_planes, eps=0.001, momentum=0.1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


class PooledConv2d(nn.Sequential):
    """Average pooling, then a :class:`BasicConv2d` of 1 x 1; computed the other way round.

    Both are linear, and one works on each channel and the other on each pixel alone, so that their order makes no
    difference; pooling what comes out, a quarter to an eighth of the channels, costs as much less.
    """

    def __init__(self, in_planes: int, out_planes: int):
        super().__init__(
            nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), BasicConv2d(in_planes, out_planes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        pool, layer = self[0], cast(BasicConv2d, self[1])
        y: Tensor = layer.relu(layer.bn(pool(layer.conv(x))))
        return y


class Mixed_3a(nn.Module):
    """64 x 147 x 147 -> 160 x 73 x 73."""

    def __init__(self) -> None:
        super().__init__()
        self.maxpool = nn.MaxPool2d(3, stride=2)
        self.conv = BasicConv2d(64, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.maxpool(x), self.conv(x)), 1)  # 64 + 96


class Mixed_4a(nn.Module):
    """160 x 73 x 73 -> 192 x 71 x 71."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(BasicConv2d(160, 64, 1), BasicConv2d(64, 96, 3))
        self.branch1 = nn.Sequential(
            BasicConv2d(160, 64, 1),
            BasicConv2d(64, 64, (1, 7), padding=(0, 3)),
            BasicConv2d(64, 64, (7, 1), padding=(3, 0)),
            BasicConv2d(64, 96, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch0(x), self.branch1(x)), 1)  # 96 + 96


class Mixed_5a(nn.Module):
    """192 x 71 x 71 -> 384 x 35 x 35."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = BasicConv2d(192, 192, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.conv(x), self.maxpool(x)), 1)  # 192 + 192


class Inception_A(nn.Module):
    """384 x 35 x 35 -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = BasicConv2d(384, 96, 1)
        self.branch1 = nn.Sequential(BasicConv2d(384, 64, 1), BasicConv2d(64, 96, 3, padding=1))
        self.branch2 = nn.Sequential(
            BasicConv2d(384, 64, 1), BasicConv2d(64, 96, 3, padding=1), BasicConv2d(96, 96, 3, padding=1)
        )
        self.branch3 = PooledConv2d(384, 96)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)), 1)  # 4 x 96


class Reduction_A(nn.Module):
    """384 x 35 x 35 -> 1024 x 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = BasicConv2d(384, 384, 3, stride=2)
        self.branch1 = nn.Sequential(
            BasicConv2d(384, 192, 1), BasicConv2d(192, 224, 3, padding=1), BasicConv2d(224, 256, 3, stride=2)
        )
        self.branch2 = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch0(x), self.branch1(x), self.branch2(x)), 1)  # 384 + 256 + 384


class Inception_B(nn.Module):
    """1024 x 17 x 17 -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = BasicConv2d(1024, 384, 1)
        self.branch1 = nn.Sequential(
            BasicConv2d(1024, 192, 1),
            BasicConv2d(192, 224, (1, 7), padding=(0, 3)),
            BasicConv2d(224, 256, (7, 1), padding=(3, 0)),
        )
        self.branch2 = nn.Sequential(
            BasicConv2d(1024, 192, 1),
            BasicConv2d(192, 192, (7, 1), padding=(3, 0)),
            BasicConv2d(192, 224, (1, 7), padding=(0, 3)),
            BasicConv2d(224, 224, (7, 1), padding=(3, 0)),
            BasicConv2d(224, 256, (1, 7), padding=(0, 3)),
        )
        self.branch3 = PooledConv2d(1024, 128)

    def forward(self, x: Tensor) -> Tensor:
        # 384 + 256 + 256 + 128
        return torch.cat((self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)), 1)


class Reduction_B(nn.Module):
    """1024 x 17 x 17 -> 1536 x 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(BasicConv2d(1024, 192, 1), BasicConv2d(192, 192, 3, stride=2))
        self.branch1 = nn.Sequential(
            BasicConv2d(1024, 256, 1),
            BasicConv2d(256, 256, (1, 7), padding=(0, 3)),
            BasicConv2d(256, 320, (7, 1), padding=(3, 0)),
            BasicConv2d(320, 320, 3, stride=2),
        )
        self.branch2 = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch0(x), self.branch1(x), self.branch2(x)), 1)  # 192 + 320 + 1024


class Inception_C(nn.Module):
    """1536 x 8 x 8 -> the same. Two branches fork at their end, hence the flat names."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = BasicConv2d(1536, 256, 1)
        self.branch1_0 = BasicConv2d(1536, 384, 1)
        self.branch1_1a = BasicConv2d(384, 256, (1, 3), padding=(0, 1))
        self.branch1_1b = BasicConv2d(384, 256, (3, 1), padding=(1, 0))
        self.branch2_0 = BasicConv2d(1536, 384, 1)
        self.branch2_1 = BasicConv2d(384, 448, (3, 1), padding=(1, 0))
        self.branch2_2 = BasicConv2d(448, 512, (1, 3), padding=(0, 1))
        self.branch2_3a = BasicConv2d(512, 256, (1, 3), padding=(0, 1))
        self.branch2_3b = BasicConv2d(512, 256, (3, 1), padding=(1, 0))
        self.branch3 = PooledConv2d(1536, 256)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.branch1_0(x)
        x2 = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        return torch.cat(
            (
                self.branch0(x),  # 256
                self.branch1_1a(x1),  # 256
                self.branch1_1b(x1),  # 256
                self.branch2_3a(x2),  # 256
                self.branch2_3b(x2),  # 256
                self.branch3(x),  # 256
            ),
            1,
        )


class InceptionV4(nn.Module):
    """The network.

    Args:
        num_classes: width of the classifier.
        blocks: how many Inception-A, -B and -C blocks. ``(4, 7, 3)`` is the published network; a shallower
            stack such as ``(1, 1, 1)`` learns within minutes on a CPU.

    ``forward`` takes normalised pictures ``[N, 3, H, W]`` with H and W of at least 75 and returns logits
    ``[N, num_classes]``.
    """

    def __init__(self, num_classes: int = 1000, blocks: tuple[int, int, int] = (4, 7, 3)):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, was {num_classes}")
        if len(blocks) != 3 or min(blocks) < 0:
            raise ValueError(f"blocks must be three counts of at least 0, was {blocks}")
        super().__init__()
        n_a, n_b, n_c = blocks
        self.blocks = (n_a, n_b, n_c)
        self.num_classes = num_classes
        self.features = nn.Sequential(
            BasicConv2d(3, 32, 3, stride=2),  # 32 x 149 x 149
            BasicConv2d(32, 32, 3),  # 32 x 147 x 147
            BasicConv2d(32, 64, 3, padding=1),  # 64 x 147 x 147
            Mixed_3a(),
            Mixed_4a(),
            Mixed_5a(),
            *(Inception_A() for _ in range(n_a)),
            Reduction_A(),
            *(Inception_B() for _ in range(n_b)),
            Reduction_B(),
            *(Inception_C() for _ in range(n_c)),
        )
        self.last_linear = nn.Linear(1536, num_classes)

    def last_layers(self) -> list[BasicConv2d]:
        """The layers of the last block whose outputs the classifier gets."""
        block = self.features[-1]
        if isinstance(block, Inception_C):
            ends = (block.branch0, block.branch1_1a, block.branch1_1b, block.branch2_3a, block.branch2_3b)
            return [*ends, cast(BasicConv2d, block.branch3[1])]
        assert isinstance(block, Reduction_B)
        return [cast(BasicConv2d, branch[-1]) for branch in (block.branch0, block.branch1)]

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_NC = self.features(images_NCHW).mean((2, 3))  # the published average pool over all of H x W
        logits_NK: Tensor = self.last_linear(features_NC)
        return logits_NK
