"""The model as torch.compile's kernels: made before training begins, and kept on disk for the next start."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# default: kernels that fuse batch norm, ReLU and casts. reduce-overhead: these in CUDA graphs, which pays where a step
# is so short that the host cannot launch it in time. max-autotune: the fastest of several for each shape, found by
# trying.
MODES = ("default", "reduce-overhead", "max-autotune")
_RUNS = 3  # the third is what reduce-overhead replays


class CompileError(RuntimeError):
    """torch.compile has failed. The message is one line: what it said, and what to do."""


class Compiled:
    """A model, or DDP around one, compiled for the shapes that it is told beforehand. Everything else runs as it is.

    An epoch's last batch is smaller than the others: a shape of its own would cost another minute of compiling for one
    step.
    """

    def __init__(self, network: nn.Module, mode: str):
        self._network = network
        self._compiled: Callable[[Tensor], Tensor] = torch.compile(network, mode=mode, dynamic=False)
        self._shapes: set[Sequence[int]] = set()

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``[N, K]`` of ``images`` ``[N, 3, H, W]``."""
        known = self._network.training and images.shape in self._shapes
        logits_NK: Tensor = (self._compiled if known else self._network)(images)
        return logits_NK

    def prepare(self, images: Tensor, run: Callable[[Tensor], Any]) -> float:
        """Compile for batches such as ``images``; returns how many seconds that took, 0 where it is done already.

        ``run`` takes pictures through this object forward and backward. The batch norms' statistics, which that
        changes, are put back. Raises CompileError.
        """
        if images.shape in self._shapes:
            return 0.0
        self._shapes.add(images.shape)
        # Past its limit torch would leave further shapes as they are. Some of its own recompilations come on top.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 + len(self._shapes))
        kept = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
        start = time.perf_counter()
        try:
            for _ in range(_RUNS):
                run(images)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise CompileError(
                f"--compile: torch.compile failed ({said[:300]}); on a CPU it needs a C++ compiler (g++), on cuda "
                "triton; leave --compile out to train without"
            ) from error
        for buffer, before in kept:
            buffer.copy_(before)
        return time.perf_counter() - start
