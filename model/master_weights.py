"""The fp32 masters of half parameters: where small steps add up that a half weight could not take one by one.

What O2 adds to an fp32 optimiser's step, in bytes for each parameter:

    half gradient to fp32     read 2, write 4
    unscale and check         read 4, write 4   (none under the static scale 1)
    master to half parameter  read 4, write 2

20 in all, as many as the fp32 step itself moves (read weight, gradient and momentum, write weight and momentum, at 4).
Memory: 8 for each parameter, half of it for the gradients.

Source: apex ``amp/_process_optimizer.py``; the one flat buffer of gradients is ``combine_grad`` of Ascend's fork.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_ALIGNMENT = 16  # elements: each gradient begins at a multiple of 64 bytes, which kernels of wide loads want


class MasterWeights:
    """A master for each of ``parameters``, of the same strides, and one flat fp32 buffer for all their gradients.

    A master begins as its half parameter's value, as in apex: the rounding of fp32 weights to half happened before.

    Args:
        parameters: half, on one device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self._halves = list(parameters)
        self.masters = [nn.Parameter(p.detach().float(), requires_grad=p.requires_grad) for p in self._halves]
        starts, size = [], 0
        for p in self._halves:
            starts.append(size)
            size += -(-p.numel() // _ALIGNMENT) * _ALIGNMENT
        self.flat_gradient = torch.zeros(
            size, dtype=torch.float32, device=self._halves[0].device if self._halves else None
        )
        self._views = [
            self.flat_gradient.as_strided(p.shape, p.stride(), start)
            for p, start in zip(self.masters, starts, strict=True)
        ]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Copy the half parameters' gradients into the flat buffer, whatever their strides, as the masters' own.

        A master gets none where the half parameter has none; its part of the buffer is zero, so that what was there
        before does not count as an overflow.
        """
        views, gradients = [], []
        for half, master, view in zip(self._halves, self.masters, self._views, strict=True):
            if half.grad is None:
                if master.grad is not None:
                    view.zero_()
                master.grad = None
            else:
                views.append(view)
                gradients.append(half.grad)
                master.grad = view
        if views:
            torch._foreach_copy_(views, gradients)

    @torch.no_grad()
    def give_weights(self) -> None:
        """Copy the masters' values to the half parameters, rounded to nearest."""
        if self._halves:
            torch._foreach_copy_([*self._halves], [*self.masters])
