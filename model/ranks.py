"""The processes that train together: one a card, started by torchrun or by ``--multiprocessing-distributed``.

Each knows itself from torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT); :func:`spawn` sets the same, so that both ways are one from there on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.multiprocessing.spawn import spawn as spawn_all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all that train together."""

    rank: int = 0  # of world_size, over all nodes
    world_size: int = 1
    local_rank: int = 0  # of local_world_size, on this node: which card is its own
    local_world_size: int = 1
    launched: bool = False  # whether torchrun, or spawn, has started this process
    restarts: int = 0  # how often torchrun has started all of them anew

    @classmethod
    def from_environment(cls) -> Ranks:
        """What torchrun, or :func:`spawn`, says; one process where neither has started this one."""
        if "LOCAL_RANK" not in os.environ:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in names)
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            launched=True,
            restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
        )

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    def join(self, backend: str) -> None:
        """Meet the others; returns when all are there. ``backend``: hccl, nccl or gloo."""
        if not self.many:
            return
        store, _, _ = next(iter(rendezvous("env://", self.rank, self.world_size)))
        # torchrun's store outlives a restart, and with it the addresses of the ranks that were: gloo would call them.
        store = PrefixStore(f"restart {self.restarts}", store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size)

    def leave(self) -> None:
        """Part from the others."""
        if self.many and dist.is_initialized():
            dist.destroy_process_group()

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model whose gradients are averaged over the ranks while they are computed; alone, the model itself.

        Batch statistics stay each rank's own, as in the original.
        """
        if not self.many:
            return model
        settings: dict[str, Any] = {"gradient_as_bucket_view": True}  # saves a copy of every gradient
        if device.type != "cpu":
            settings["device_ids"] = [device.index]
        ddp = nn.parallel.DistributedDataParallel
        since_2_13 = "forward_sync_buffers" in inspect.signature(ddp).parameters
        settings["forward_sync_buffers" if since_2_13 else "broadcast_buffers"] = False
        return ddp(model, **settings)

    def share(self, values: Tensor) -> None:
        """Rank 0's, in place, on all ranks."""
        if self.many:
            dist.broadcast(values, src=0)

    def sum(self, values: Tensor) -> Tensor:
        """In place, over all ranks."""
        if self.many:
            dist.all_reduce(values)
        return values

    def max(self, values: Tensor) -> None:
        """In place, over all ranks."""
        if self.many:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)

    @contextlib.contextmanager
    def apart(self, model: nn.Module) -> Iterator[None]:
        """Within it, gradients of what :meth:`parallel` returned stay each rank's own."""
        with model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else contextlib.nullcontext():
            yield

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Make each of these its mean over the ranks, in place: one collective for all of them."""
        if not self.many:
            return
        each = list(tensors)
        flat = self.sum(torch.cat([tensor.float().reshape(-1) for tensor in each])) / self.world_size
        for tensor, mean in zip(each, torch.split(flat, [tensor.numel() for tensor in each]), strict=True):
            tensor.copy_(mean.view_as(tensor))


class Agreement:
    """What the ranks' hosts tell each other between two steps, beside what their devices exchange.

    A host that waits here for the slowest one does not make its device wait: that has a step queued.
    """

    def __init__(self, ranks: Ranks):
        """All ranks make it, after they have joined."""
        self._group = dist.new_group(backend="gloo") if ranks.many else None

    def largest(self, values: Sequence[int]) -> list[int]:
        """Of each value the largest that any rank has given."""
        together = torch.tensor(values, dtype=torch.int64)
        if self._group:
            dist.all_reduce(together, op=dist.ReduceOp.MAX, group=self._group)
        result: list[int] = together.tolist()
        return result

    def first(self, value: str | None) -> str | None:
        """Rank 0's, on all ranks."""
        box = [value]
        if self._group:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def meet(self) -> None:
        """Wait until all ranks are here."""
        if self._group:
            dist.barrier(group=self._group)


def spawn(
    main: Callable[[Sequence[str]], object],
    argv: Sequence[str],
    *,
    cards: int,
    nodes: int = 1,
    node: int = 0,
    address: str | None = None,
    port: int | None = None,
) -> int:
    """Run ``main(argv)`` in one process a card of this node, and wait for all of them.

    ``main`` ends its process with an exit code (SystemExit), having said what was wrong. Where one fails, the others
    are ended at once. SIGINT and SIGTERM are passed on to all. Returns 0, or the exit code of the one that failed
    first.
    """
    if nodes == 1:  # nobody else has to find us: no fixed port that another run on this machine may have
        address, port = "127.0.0.1", _free_port()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # whom it ends when another has failed
    environment = {
        "WORLD_SIZE": str(nodes * cards),
        "LOCAL_WORLD_SIZE": str(cards),
        "MASTER_ADDR": str(address),
        "MASTER_PORT": str(port),
    }
    try:
        _pass_on_signals(
            spawn_all(  # type: ignore[no-untyped-call]
                _rank_main, args=(main, argv, node * cards, environment), nprocs=cards, join=False
            )
        )
    except ProcessRaisedException as error:  # a mistake of ours: the message holds the rank's traceback
        print(str(error).strip(), file=sys.stderr)
        return 1
    except ProcessExitedException as error:
        if error.signal_name is None:
            return error.exit_code
        print(f"rank {node * cards + error.error_index} was ended by {error.signal_name}", file=sys.stderr)
        return 128 + signal.Signals[error.signal_name].value
    return 0


def _pass_on_signals(processes: Any) -> None:
    """Wait for all. What asks us to end is for them: they finish the step and save."""

    def pass_on(number: int, _: object) -> None:
        for pid in processes.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not processes.join():
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rank_main(
    local_rank: int,
    main: Callable[[Sequence[str]], object],
    argv: Sequence[str],
    first: int,
    environment: dict[str, str],
) -> None:
    # Ctrl-C, and what torch has the kernel send when the launcher is gone. Also where the launcher was started deaf to
    # it. It says what there is to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ |= environment | {"LOCAL_RANK": str(local_rank), "RANK": str(first + local_rank)}
    main(argv)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
