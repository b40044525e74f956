"""The loss scale: keeps small half gradients above zero, and finds the steps in which large ones overflowed.

Dynamic: 2**16 at first; halved when a gradient is not finite, and that step is skipped; doubled after 2,000 clean
steps in a row, to 2**24 at most; there is no least. Static: a number, never checked and never skipped.
Source: apex ``amp/scaler.py`` (``LossScaler.update_scale``); apex reads the flag back to the host in every step, here
scale, flag and counters stay on the device, and the kernels are those of ``torch.amp.GradScaler``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

INITIAL = 2.0**16
LARGEST = 2.0**24
GROWTH_STEPS = 2000  # clean ones in a row


class OverflowFlag(Protocol):
    """Of a chip in saturation mode (Ascend 910A): an overflow becomes the largest number, and raises a flag."""

    def clear(self) -> None:
        """Lower the flag."""

    def raised(self) -> Tensor:
        """fp32 [] on the device: 1 if any operation overflowed since ``clear``, else 0. The host does not wait."""
        ...


class LossScale:
    """A static scale (``value`` a number) or a dynamic one.

    In a step, in this order: ``apply`` to the loss, ``unscale`` the gradients, step under ``found_inf``, ``update``.
    None of these waits for the device; ``value`` and ``skipped`` do.

    Args:
        value: above 0; 1 costs no kernel at all. Raises ValueError for a number that is no scale.
        device: where the gradients are.
        overflow: for a dynamic scale on chips where an overflow never becomes inf; cleared here and by ``update``.
            (A validation pass between two steps may raise it too; that costs one skipped step.)
        any_rank: replaces a flag by its maximum over all ranks, in place. Called only with ``overflow``: otherwise the
            gradients that were reduced over the ranks carry an inf to all of them.
    """

    found_inf: Tensor | None  # fp32 [], 0 or 1: this step is to be skipped; None: steps never are

    def __init__(
        self,
        value: float | Literal["dynamic"],
        device: torch.device,
        *,
        overflow: OverflowFlag | None = None,
        any_rank: Callable[[Tensor], None] | None = None,
    ):
        self.dynamic = value == "dynamic"
        self._number = INITIAL if isinstance(value, str) else float(value)  # of a static scale
        if (isinstance(value, str) and not self.dynamic) or not _is_scale(self._number):
            raise ValueError(f"a loss scale is 'dynamic' or a number above 0, was {value!r}")
        self.found_inf = None
        self._overflow = overflow if self.dynamic else None
        self._any_rank = any_rank
        if self.dynamic:
            self.found_inf = torch.zeros((), device=device)
            self._scale = torch.full((), INITIAL, device=device)
            self._clean_steps = torch.zeros((), dtype=torch.int32, device=device)
            self._skipped = torch.zeros((), device=device)  # fp32 counts to 2**24
        if self._overflow:
            self._overflow.clear()

    def apply(self, loss: Tensor) -> Tensor:
        """The loss to run backward from: fp32 []."""
        if self.dynamic:
            return loss.float() * self._scale
        return loss if self._number == 1 else loss.float() * self._number

    @torch.no_grad()
    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients of any type by the scale, in place; if it is dynamic, see whether all are finite."""
        if self.found_inf is None:
            if self._number != 1 and gradients:
                torch._foreach_mul_(gradients, 1 / self._number)
            return
        self.found_inf.zero_()
        if gradients:
            # reciprocal() is exact for a power of two
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.found_inf, self._scale.reciprocal())
        if self._overflow:
            self.found_inf.copy_(torch.maximum(self.found_inf, self._overflow.raised()))
            if self._any_rank:
                self._any_rank(self.found_inf)

    @torch.no_grad()
    def update(self) -> None:
        """Take note of the step: change a dynamic scale as its rule says."""
        if self.found_inf is None:
            return
        torch._amp_update_scale_(self._scale, self._clean_steps, self.found_inf, 2.0, 0.5, GROWTH_STEPS)
        self._scale.clamp_(max=LARGEST)  # the count of clean steps begins anew there too, as in apex
        self._skipped += self.found_inf
        if self._overflow:
            self._overflow.clear()

    @property
    def value(self) -> float:
        """The scale, read back from the device."""
        return self._scale.item() if self.dynamic else self._number

    @property
    def skipped(self) -> int:
        """How many steps were skipped since construction, read back from the device."""
        return int(self._skipped.item()) if self.dynamic else 0

    def state_dict(self) -> dict[str, Any]:
        """apex's ``amp.state_dict()``; ``{}`` for the static scale 1, of which there is nothing to say."""
        if not self.dynamic and self._number == 1:
            return {}
        unskipped = int(self._clean_steps.item()) if self.dynamic else 0
        return {"loss_scaler0": {"loss_scale": self.value, "unskipped": unskipped}}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from apex's form, its own or apex's; a dynamic scale starts anew from None or ``{}``.

        A static scale stays what it was made with: it was asked for in this run. Raises ValueError, before anything is
        changed, for what is not apex's form.
        """
        scaler = state["loss_scaler0"] if state else {"loss_scale": INITIAL, "unskipped": 0}
        scale, clean_steps = float(scaler["loss_scale"]), int(scaler["unskipped"])
        if not _is_scale(scale) or clean_steps < 0:
            raise ValueError(f"no loss scale: {scale} after {clean_steps} clean steps")
        if self.dynamic:
            self._scale.fill_(min(scale, LARGEST))
            # apex counts on without end under a static scale; from there the next growth would never come
            self._clean_steps.fill_(clean_steps if clean_steps < GROWTH_STEPS else 0)


def _is_scale(number: float) -> bool:
    return math.isfinite(number) and number > 0
