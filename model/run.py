"""A training run: what it holds on to between two epochs, writes down, and goes on from."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .augmentation import Augmentation
from .averaging import AveragedWeights
from .checkpoint import CheckpointError, check_fit, load_checkpoint
from .checkpoints import BEST, Checkpoints, newest_whole, set_aside
from .compiled import Compiled
from .epoch_log import NOTHING, Sums
from .inceptionv4 import InceptionV4
from .interruptions import Interruptions, Stopped
from .live import Live
from .optimizer import Optimizer
from .options import TrainOptions
from .precision import Precision
from .ranks import Agreement, Ranks
from .tensorboard import FOLDER, Scalars

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
    epoch: int = 0  # the one that is under way
    position: int = 0  # how many of its samples all ranks together have behind them
    sums: Sums = NOTHING  # over these samples
    global_step: int = 0  # steps of all epochs, at the last line
    best_acc1: float = 0.0
    loader_state: dict[str, Any] | None = None  # where the loader of the checkpoint stood, that this run goes on from

    def __post_init__(self) -> None:
        self.epoch = self.options.start_epoch
        # (1 - s) * NLL + s * mean(-log p), as in the original
        self.criterion = nn.CrossEntropyLoss(label_smoothing=self.options.label_smoothing)
        self.image_size = 0  # of the epoch's pictures, once one has begun
        self.augment = Augmentation(
            mixup=self.options.mixup, cutmix=self.options.cutmix, erase=self.options.erase, seed=self.options.seed
        )
        self.average = AveragedWeights(self.optimizer.sources(), self.options.ema) if self.options.ema else None
        self.parallel: nn.Module = self.model  # what is trained: with several ranks it averages the gradients
        self.network: Callable[[Tensor], Tensor] = self.model  # the same, compiled where that was asked for
        self.agreement = Agreement(self.ranks)
        self.interruptions = Interruptions(self.options.checkpoint_every, self.agreement)
        self.checkpoints = Checkpoints(self.options.output, keep=self.options.keep_checkpoints)
        self.live = Live(quiet=not self.ranks.first)
        self._scalars: Scalars | None = None

    def begin(self) -> None:
        """Go on where a checkpoint ends, or move an earlier run's files out of the way; all ranks with one model.

        Raises CheckpointError, before anything is changed, for a checkpoint that does not fit.
        """
        output = self.options.output
        # Where torchrun has started all ranks anew, they go on from what the ranks before them have left.
        resume = "auto" if self.ranks.restarts else self.options.resume
        if resume == "auto":
            newest = newest_whole(output, self.say) if self.ranks.first else None
            found = self.agreement.first(str(newest) if newest else None)
            resume = Path(found) if found else None
        if resume:
            self._resume(Path(resume))
        elif self.options.evaluate and not self.options.pretrained:
            raise CheckpointError(f"--evaluate --resume auto: there is no checkpoint in {output}")
        elif not self.options.evaluate and self.ranks.first and (earlier := set_aside(output, METRICS, FOLDER)):
            self.say(f"note: an earlier run's files were moved to {earlier}")
        if self.ranks.many:  # DDP shares the weights, but not the masters that they are rounded from
            weights = self.optimizer.weights()
            for value in weights.values():
                self.ranks.share(value)
            self.optimizer.load_weights(weights)
        self.begin_network()

    def begin_network(self) -> None:
        """Wrap the model in what averages gradients over ranks, and compile that, where either was asked for."""
        self.parallel = self.ranks.parallel(self.model, next(self.model.parameters()).device)
        self.network = Compiled(self.parallel, self.options.compile) if self.options.compile else self.parallel

    def prepare(self, images: Tensor) -> None:
        """Compile for batches such as ``images``, where that was asked for. A collective. Raises CompileError."""
        if not isinstance(self.network, Compiled):
            return

        def there_and_back(images: Tensor) -> None:
            self.optimizer.backward(self.forward(images).sum() * 0)

        self.parallel.train()
        if seconds := self.network.prepare(images, there_and_back):
            shape = "x".join(map(str, images.shape))
            self.say(f"compiled for {shape} in {seconds:.1f} s; the kernels are kept for the next start")

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, K]`` in fp32 of ``images`` ``[N, 3, S, S]``, by the network that is trained."""
        with self.precision.autocast():
            return self.network(images).float()

    def update(self) -> None:
        """Step, once the gradients are there."""
        self.optimizer.step(self.options.clip_agc)
        if self.average:
            self.average.update()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model has the averaged weights, where there are any."""
        if self.average is None:
            yield
            return
        own = self.optimizer.weights()
        self.optimizer.load_weights(self.average.weights())
        try:
            yield
        finally:
            self.optimizer.load_weights(own)

    def average_statistics(self) -> None:
        """Make the batch norms' running statistics the mean over the ranks, so that all score and save one model."""
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        self.ranks.average([*statistics, *(self.average.statistics() if self.average else ())])

    def go_on_at(self, global_step: int) -> None:
        """Training begins, with so many steps behind it."""
        self.global_step = global_step
        if self.options.tensorboard and self.ranks.first:
            self._scalars = Scalars(self.options.output / FOLDER, behind=global_step)

    def close(self) -> None:
        """Finish what is being written, and leave the terminal as it was."""
        self.live.clear()
        self.checkpoints.close()
        if self._scalars:
            self._scalars.close()

    def say(self, line: str) -> None:
        """Print a line of the log."""
        if self.ranks.first:
            self.live.clear()
            print(line, flush=True)

    def metrics(self, *, kind: str, **values: Any) -> None:
        """Append one line to metrics.jsonl, and to TensorBoard's files where they were asked for."""
        if self.ranks.first:
            with open(self.options.output / METRICS, "a") as file:
                file.write(json.dumps({"time": round(time.time(), 3), "kind": kind, **values}) + "\n")
            if self._scalars:
                self._scalars.write(kind, values, self.global_step)

    def save(self, loader_state: dict[str, Any], acc1: float | None = None) -> None:
        """Begin to write a checkpoint of what is behind us; it is written while training goes on.

        ``loader_state``: of any rank. ``acc1``: the score, at the end of an epoch. A collective.
        """
        start = time.perf_counter()
        self.average_statistics()
        is_best = acc1 is not None and (acc1 > self.best_acc1 or not (self.options.output / BEST).exists())
        self.best_acc1 = max(self.best_acc1, acc1 or 0.0)
        self.interruptions.saved()
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
            "image_size": self.options.image_size,
            "loader": loader_state | {"epoch": self.epoch, "position": self.position},
            "sums": list(self.sums),
        }
        if self.average:
            state |= {"state_dict_ema": self.average.weights(), "ema_steps": self.average.steps}
        self.checkpoints.save(tree_map_only(Tensor, Tensor.cpu, state), is_best=is_best)
        if self.checkpoints.failed:
            self.say(f"note: {self.checkpoints.failed}; training goes on, the last one is {self.checkpoints.last}")
        waited_s = time.perf_counter() - start
        self.metrics(kind="checkpoint", epoch=self.epoch, position=self.position, wait_s=round(waited_s, 4))

    def finish(self) -> None:
        """Wait until the last checkpoint is written. Raises CheckpointError where it is not; all ranks wait."""
        self.checkpoints.wait()
        self.agreement.meet()
        if self.checkpoints.failed:
            raise CheckpointError(f"{self.checkpoints.failed}; the last one is {self.checkpoints.last}")

    def stop(self, stopped: Stopped) -> None:
        """Say how to go on, once what was saved is written."""
        self.finish()
        self.say(
            f"{stopped}: stopped after sample {self.position:,} of epoch {self.epoch}, saved as "
            f"{self.checkpoints.last}; --resume auto goes on from there"
        )

    def _resume(self, path: Path) -> None:
        state = load_checkpoint(path)
        names = None if self.options.new_data else self.classes
        check_fit(state, path, blocks=self.options.blocks, classes=self.model.num_classes, names=names)
        try:
            self.optimizer.load_weights(state["state_dict"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.optimizer.load_amp_state_dict(state.get("amp"))
            self._load_average(state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path} does not fit the model: {reason}") from error
        self.epoch = int(state["epoch"])
        self.best_acc1 = float(state.get("best_acc1", 0.0))
        if (loader := state.get("loader")) and not self.options.new_data:
            self.loader_state, self.position = loader, loader["position"]
            self.sums = Sums(*state["sums"])
        self.checkpoints.last = path
        where = f", sample {self.position:,}" if self.position else ""
        self.say(f"=> resumed from {path} (epoch {self.epoch}{where}, best Acc@1 {self.best_acc1:.3f})")

    def _load_average(self, state: dict[str, Any]) -> None:
        averaged = state.get("state_dict_ema")
        if self.average:
            # Of a run that did not average: it begins here.
            self.average.load(averaged or self.optimizer.weights(), int(state.get("ema_steps", 0)) if averaged else 0)
        elif averaged and self.options.evaluate:
            self.optimizer.load_weights(averaged)
            self.say("note: the averaged weights of this checkpoint (--ema) are scored")
        elif averaged:
            self.say("note: without --ema this run does not go on averaging the weights, as the checkpoint's did")
