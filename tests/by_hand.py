"""A small network, its training through ``Optimizer``, and the same by apex's definition, written out.

Learning rate, momentum and weight decay are powers of two, so that every product is exact: then it makes no difference
whether a kernel rounds it before the sum (plain loops) or not (fused multiply-add), and all comparisons are of bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.utils._python_dispatch import TorchDispatchMode

from model.agc import clip_gradients_adaptively
from model.optimizer import Optimizer
from model.precision import Precision

HALF, BF16 = torch.float16, torch.bfloat16
LR, MOMENTUM, DECAY = 2.0**-4, 0.5, 2.0**-10
OVERFLOWING = 1e36  # times the scale, it is too large even for fp32


class Net(nn.Module):
    """Convolutions of 3 x 3 and 1 x 1, batch norms, a classifier, and a layer that only some steps use."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 6, 1)
        self.bn2 = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 4)
        self.spare = nn.Linear(4, 4)

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        x = relu(self.bn(self.conv(x)))
        x = relu(self.bn2(self.point(x))).mean((2, 3))
        x = self.linear(x)
        return self.spare(x) if spare else x


class ByHand:
    """apex O2: half weights, fp32 batch norms and masters, a scaled loss, one parameter after another."""

    def __init__(self, net: Net, dtype: torch.dtype, scale: float = 65536.0, dynamic: bool = True, clip: float = 0.0):
        self.net, self.dtype, self.scale, self.dynamic, self.clip = net, dtype, scale, dynamic, clip
        self.unskipped = self.skipped = 0
        for name, p in net.named_parameters():
            if not name.startswith("bn"):
                p.data = p.data.to(dtype)
        self.masters = {name: p.detach().clone().float() for name, p in net.named_parameters()}
        self.momenta = {name: torch.zeros_like(m) for name, m in self.masters.items()}

    def step(self, images: Tensor, labels: Tensor, factor: float = 1.0, spare: bool = False) -> Tensor:
        loss = cross_entropy(self.net(images.to(self.dtype), spare).float(), labels) * factor
        self.net.zero_grad()
        (loss * self.scale).backward()  # type: ignore[no-untyped-call]
        gradients = {n: p.grad.float() * (1 / self.scale) for n, p in self.net.named_parameters() if p.grad is not None}
        if self.dynamic and not all(g.isfinite().all() for g in gradients.values()):
            self.scale /= 2
            self.unskipped = 0
            self.skipped += 1
            return loss.detach()
        for name, p in self.net.named_parameters():
            if name not in gradients:
                continue
            master, g = self.masters[name], gradients[name]
            if self.clip:
                master.grad = g.clone(memory_format=torch.preserve_format)
                clip_gradients_adaptively([master], self.clip)
                g = master.grad
            g = g + DECAY * master
            self.momenta[name] = MOMENTUM * self.momenta[name] + g
            self.masters[name] = master - LR * self.momenta[name]
            p.data.copy_(self.masters[name])
        self.unskipped += 1
        return loss.detach()


class Training:
    """The same through the optimiser."""

    def __init__(self, net: nn.Module, level: str = "O2", dtype: torch.dtype = HALF, **options: Any):
        self.net = net
        self.precision = Precision(level=level, dtype=dtype)
        self.precision.convert(net)
        hyper = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY} | options
        self.optimizer = Optimizer(net, self.precision, **hyper)

    def loss(self, images: Tensor, labels: Tensor, factor: float = 1.0, spare: bool = False) -> Tensor:
        with self.precision.autocast():
            logits = self.net(images, spare=spare)
        return cross_entropy(logits.float(), labels) * factor

    def step(self, *batch: Any, clip: float = 0.0, **how: Any) -> Tensor:
        loss = self.loss(*batch, **how)
        self.optimizer.backward(loss)
        self.optimizer.step(clip)
        return loss.detach()

    def checkpoint(self) -> dict[str, Any]:
        return {
            "state_dict": self.optimizer.weights(),
            "optimizer": self.optimizer.state_dict(),
            "amp": self.optimizer.amp_state_dict(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        self.optimizer.load_weights(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.load_amp_state_dict(state["amp"])


def batches(count: int, channels_last: bool = False) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(count, 8, 3, 9, 9, generator=draw)
    labels = torch.randint(4, (count, 8), generator=draw)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [(x.contiguous(memory_format=layout), y) for x, y in zip(images, labels, strict=True)]


def momenta(optimizer: Optimizer) -> list[Tensor]:
    return [of["momentum_buffer"] for of in optimizer.state_dict()["state"].values()]


def same_bits(ours: Training, theirs: ByHand) -> None:
    weights = ours.optimizer.weights()
    halves = dict(theirs.net.named_parameters())
    for (name, p), momentum in zip(ours.net.named_parameters(), momenta(ours.optimizer), strict=True):
        assert torch.equal(weights[name], theirs.masters[name]), name
        assert weights[name].stride() == momentum.stride() == p.stride(), name
        assert p.dtype == halves[name].dtype
        assert torch.equal(p, halves[name]), name
        assert torch.equal(momentum, theirs.momenta[name]), name
    for name, buffer in theirs.net.named_buffers():
        assert torch.equal(weights[name], buffer), name
    assert ours.optimizer.scale == theirs.scale
    assert ours.optimizer.skipped == theirs.skipped


def everything(training: Training) -> list[Tensor]:
    """Copies of all that a step changes, but for the batch norms' statistics, which the forward pass does."""
    parameters = [p.detach().clone() for p in training.net.parameters()]
    weights = [v for name, v in training.optimizer.weights().items() if "running" not in name and "num_" not in name]
    return [*parameters, *weights, *momenta(training.optimizer)]


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of all kernels called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten":
            self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))
