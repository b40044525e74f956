"""SGD with momentum under a loss scale, on fp32 masters where the model is half; no step waits for the device.

One ``backward`` and one ``step`` are apex's ``amp.scale_loss`` and patched ``optimizer.step`` (``precision.py``). The
skip is the fused kernel's own: it reads on the device whether it is to change anything.

Two cases do without that kernel, for its sake: half weights (O3), which torch's kernel for the CPU leaves as they were,
wholly or in part (pytorch/pytorch#191763; 2.12 and 2.13), and no momentum, which the NPU's refuses. A dynamic scale
then costs them a copy of all that a step changes, to put back after an overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .agc import clip_gradients_adaptively
from .loss_scale import LossScale, OverflowFlag
from .master_weights import MasterWeights
from .precision import Precision


class Optimizer:
    """The optimiser of a model that ``precision.convert`` has converted.

    Args:
        model: on its device and in its memory format; the bare model where DDP wraps it.
        precision: the one that converted it.
        lr, momentum, weight_decay: of torch.optim.SGD.
        loss_scale: a static scale, ``"dynamic"``, or None for ``precision.loss_scale``.
        overflow, any_rank: see LossScale.

    Raises ValueError for a loss scale that is none.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Precision,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        loss_scale: float | Literal["dynamic"] | None = None,
        overflow: OverflowFlag | None = None,
        any_rank: Callable[[Tensor], None] | None = None,
    ):
        self._model = model
        self._parameters = parameters = list(model.parameters())
        self._scale = LossScale(
            precision.loss_scale if loss_scale is None else loss_scale,
            parameters[0].device,
            overflow=overflow,
            any_rank=any_rank,
        )
        halves = [p for p in parameters if precision.level == "O2" and p.dtype == precision.dtype]
        self._masters = MasterWeights(halves)
        self._master_of: dict[Tensor, nn.Parameter] = dict(zip(halves, self._masters.masters, strict=True))
        self._direct = [p for p in parameters if p not in self._master_of]  # stepped as they are
        self._stepped = [self._master_of.get(p, p) for p in parameters]  # in the model's order
        self._sgd = torch.optim.SGD(
            self._stepped, lr=lr, momentum=momentum, weight_decay=weight_decay, **self._kernels(momentum)
        )
        self._set_momentum({})

    @property
    def lr(self) -> float:
        """The learning rate."""
        return float(self._sgd.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self._sgd.param_groups:
            group["lr"] = value

    @property
    def skips(self) -> bool:
        """Whether a step that overflows is skipped: under a dynamic loss scale."""
        return self._scale.dynamic

    @property
    def scale(self) -> float:
        """The loss scale. Waits for the device."""
        return self._scale.value

    @property
    def skipped(self) -> int:
        """How many steps of this object were skipped. Waits for the device."""
        return self._scale.skipped

    def backward(self, loss: Tensor, *, add: bool = False) -> None:
        """Compute the gradients of ``loss`` ([]) times the loss scale, and ``add`` them to those that are there."""
        for p in self._parameters if not add else ():
            p.grad = None
        self._scale.apply(loss).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def step(self, clip_agc: float = 0.0) -> None:
        """Unscale the gradients, clip them if ``clip_agc`` is above 0, and step; or skip it all after an overflow.

        Clipping is by the weights that are stepped: the masters. A parameter without a gradient is left alone.
        Unscaling is in place: afterwards fp32 parameters hold their true gradients, half ones those times the scale.
        """
        self._masters.take_gradients()
        gradients = [_gradient_in_layout(p) for p in self._direct if p.grad is not None]
        if self._master_of:
            gradients.append(self._masters.flat_gradient)
        self._scale.unscale(gradients)
        if clip_agc:
            clip_gradients_adaptively(self._stepped, clip_agc)
        self._step_or_skip(self._scale.found_inf)
        self._masters.give_weights()
        self._scale.update()

    def sources(self) -> dict[str, Tensor]:
        """By the names of the model's ``state_dict``: what holds each value most exactly, master or model."""
        own: dict[str, Tensor] = self._model.state_dict(keep_vars=True)
        return {name: self._master_of.get(tensor, tensor) for name, tensor in own.items()}

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The model's ``state_dict`` in fp32, with the masters' values for half parameters: a checkpoint is exact.

        Copies, on the model's device: later steps do not change them. What is tied is one tensor here too; integers,
        such as the batch norms' counts, keep their type.
        """
        copies: dict[Tensor, Tensor] = {}
        weights = {}
        for name, source in self.sources().items():
            if source not in copies:
                copies[source] = source.to(torch.float32 if source.is_floating_point() else source.dtype, copy=True)
            weights[name] = copies[source]
        return weights

    @torch.no_grad()
    def load_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """The inverse of ``weights``: sets the masters, their half copies and all the rest.

        Raises ValueError, before anything is changed, where names or shapes are not the model's.
        """
        own: dict[str, Tensor] = self._model.state_dict(keep_vars=True)
        if odd := sorted(own.keys() ^ state_dict.keys()):
            raise ValueError(f"{len(odd)} names are only in the model or only in the weights: {', '.join(odd[:3])}")
        for name, tensor in own.items():
            if tensor.shape != state_dict[name].shape:
                raise ValueError(f"{name} is {tuple(state_dict[name].shape)}, wanted {tuple(tensor.shape)}")
        for name, tensor in own.items():
            self._master_of.get(tensor, tensor).copy_(state_dict[name])
        self._masters.give_weights()

    def state_dict(self) -> dict[str, Any]:
        """torch.optim.SGD's own, with copies of the momentum in fp32; parameters in the order of the model's."""
        state = self._sgd.state_dict()
        momenta = {
            index: {key: value.to(torch.float32, copy=True) for key, value in of.items()}
            for index, of in state["state"].items()
        }
        return {**state, "state": momenta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take learning rate, momentum (both its number and its buffers) and weight decay from a ``state_dict``.

        It may be that of any torch.optim.SGD on the same parameters, with or without masters: a parameter without a
        buffer starts from zero. Raises ValueError, before anything is changed, where it does not fit.
        """
        groups = state["param_groups"]
        if len(groups) != 1 or len(groups[0]["params"]) != len(self._stepped):
            sizes = ", ".join(str(len(group["params"])) for group in groups)
            raise ValueError(f"groups of {sizes} parameters, wanted one of {len(self._stepped)}")
        if groups[0].get("nesterov") or groups[0].get("dampening"):
            raise ValueError(
                "the optimizer state is of SGD with Nesterov's momentum or dampening; this one has neither"
            )
        numbers = {name: groups[0][name] for name in ("lr", "momentum", "weight_decay")}
        buffers: dict[Tensor, Tensor] = {}
        for p, index in zip(self._stepped, groups[0]["params"], strict=True):
            buffer = state["state"].get(index, {}).get("momentum_buffer")
            if buffer is None:  # torch's own form of a parameter that was never stepped
                continue
            if buffer.shape != p.shape:
                raise ValueError(f"momentum {index} is {tuple(buffer.shape)}, wanted {tuple(p.shape)}")
            buffers[p] = buffer
        self._sgd.param_groups[0].update(numbers | self._kernels(numbers["momentum"]))
        self._set_momentum(buffers)

    def amp_state_dict(self) -> dict[str, Any]:
        """The loss scale in apex's form; see LossScale."""
        return self._scale.state_dict()

    def load_amp_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on with the loss scale of a checkpoint; see LossScale."""
        self._scale.load_state_dict(state)

    def _kernels(self, momentum: float) -> dict[str, bool]:
        """Which of torch.optim.SGD's kernels to use: see the module."""
        fused = momentum > 0 and all(p.dtype == torch.float32 for p in self._stepped)
        return {"fused": fused, "foreach": not fused}

    def _step_or_skip(self, found_inf: Tensor | None) -> None:
        if found_inf is None or self._sgd.param_groups[0]["fused"]:
            self._sgd.found_inf = found_inf  # type: ignore[attr-defined]  # as torch.amp.GradScaler.step does
            self._sgd.step()
            return
        self._sgd.found_inf = None  # type: ignore[attr-defined]
        changed = [*self._stepped, *(of["momentum_buffer"] for of in self._sgd.state.values())]
        before = [tensor.clone() for tensor in changed]
        self._sgd.step()
        for tensor, old in zip(changed, before, strict=True):
            tensor.copy_(torch.where(found_inf > 0, old, tensor))

    def _set_momentum(self, buffers: Mapping[Tensor, Tensor]) -> None:
        """Start every momentum from ``buffers``, else from zero, in its parameter's strides.

        torch allocates what is not there in the first step and leaves it unset if that step is skipped. And from zero
        the first step is torch's: momentum * 0 + gradient.
        """
        self._sgd.state.clear()
        if self._sgd.param_groups[0]["momentum"] == 0:
            return
        for p in self._stepped:
            buffer = torch.zeros_like(p, requires_grad=False)
            self._sgd.state[p]["momentum_buffer"] = buffer.copy_(buffers[p]) if p in buffers else buffer


def _gradient_in_layout(p: nn.Parameter) -> Tensor:
    """``p.grad``, laid out as ``p``: autograd sees to that, but one given by hand would be misread.

    The fused kernels walk through both by address; the CPU's does not even look at the strides.
    """
    assert p.grad is not None
    if p.grad.stride() != p.stride():
        p.grad = torch.empty_like(p, requires_grad=False).copy_(p.grad)
    return p.grad
