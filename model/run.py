"""A training run: what it holds on to between two epochs, writes down, and goes on from."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .checkpoint import BEST, LAST, CheckpointError, check_fit, load_checkpoint, save_checkpoint, set_aside
from .inceptionv4 import InceptionV4
from .optimizer import Optimizer
from .options import TrainOptions
from .precision import Precision
from .ranks import Ranks

METRICS = "metrics.jsonl"


@dataclasses.dataclass
class Run:
    """One rank's part in a training run. Only the first rank prints and writes."""

    options: TrainOptions
    ranks: Ranks
    precision: Precision
    model: InceptionV4
    optimizer: Optimizer
    classes: tuple[str, ...]
    prefix: str  # begins each line of the log, where there are several cards
    epoch: int = 0  # the next
    best_acc1: float = 0.0

    def __post_init__(self) -> None:
        self.epoch = self.options.start_epoch
        # (1 - s) * NLL + s * mean(-log p), as in the original
        self.criterion = nn.CrossEntropyLoss(label_smoothing=self.options.label_smoothing)
        self.parallel: nn.Module = self.model  # what is trained: with several ranks it averages the gradients

    def begin(self) -> None:
        """Go on where a checkpoint ends, or move an earlier run's files out of the way; all ranks with one model.

        Raises CheckpointError, before anything is changed, for a checkpoint that does not fit.
        """
        last = self.options.output / LAST
        if self.ranks.restarts and last.exists():  # torchrun has started all ranks anew: go on from the last epoch
            self._resume(last)
        elif self.options.resume:
            self._resume(self.options.resume)
        elif not self.options.evaluate and self.ranks.first and (earlier := set_aside(self.options.output, METRICS)):
            self.say(f"note: an earlier run's files were moved to {earlier}")
        if self.ranks.many:  # DDP shares the weights, but not the masters that they are rounded from
            weights = self.optimizer.weights()
            for value in weights.values():
                self.ranks.share(value)
            self.optimizer.load_weights(weights)
        self.parallel = self.ranks.parallel(self.model, next(self.model.parameters()).device)

    def say(self, line: str) -> None:
        """Print a line of the log."""
        if self.ranks.first:
            print(line, flush=True)

    def metrics(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        if self.ranks.first:
            with open(self.options.output / METRICS, "a") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")

    def save(self, acc1: float | None) -> None:
        """Write the checkpoint of the epochs done so far."""
        is_best = acc1 is not None and (acc1 > self.best_acc1 or not (self.options.output / BEST).exists())
        self.best_acc1 = max(self.best_acc1, acc1 or 0.0)
        if not self.ranks.first:
            return
        state = {  # on the host: any device can go on from it
            "epoch": self.epoch,
            "arch": self.options.arch,
            "state_dict": self.optimizer.weights(),
            "best_acc1": self.best_acc1,
            "optimizer": self.optimizer.state_dict(),
            "amp": self.optimizer.amp_state_dict(),
            "opt_level": self.precision.level,
            "blocks": list(self.options.blocks),
            "classes": list(self.classes),
        }
        save_checkpoint(tree_map_only(Tensor, Tensor.cpu, state), self.options.output, is_best=is_best)

    def _resume(self, path: Path) -> None:
        state = load_checkpoint(path)
        check_fit(state, path, blocks=self.options.blocks, classes=self.model.num_classes)
        try:
            self.optimizer.load_weights(state["state_dict"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.optimizer.load_amp_state_dict(state.get("amp"))
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path} does not fit the model: {reason}") from error
        self.epoch = int(state["epoch"])
        self.best_acc1 = float(state.get("best_acc1", 0.0))
        self.say(f"=> resumed from {path} (epoch {self.epoch}, best Acc@1 {self.best_acc1:.3f})")
