"""Shards from a URL, for the loader: which of them are there, and which are wanted next.

The fetch process (fetcher.py) does the work; the loader looks here before it puts a batch on the queue, so that decode
processes read local files and never wait for a network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .advice import advise
from .cache import CachedFile, cache_folder
from .child import start_child
from .config import PipelineConfig
from .errors import ConfigError, DataError
from .fetcher import MESSAGE_BYTES, send
from .manifest import MANIFEST, Manifest, index_name, parse_manifest
from .needs import Needs
from .order import Indices
from .remote import Patience
from .ring import anonymous_file
from .shards import Shards, choose_shards, shards_of

PATIENCE = Patience()
_AHEAD = 64  # shards that are asked for before they are needed, as far as the cache has room
_PIECE = 500  # files in a message
_LOOK_AFTER_S = 0.5
_CLOSE_WITHIN_S = 5.0
_RESTARTS = 3
_MOST_EPOCHS = 3  # of which the needs are kept

Moment = tuple[int, int]  # epoch, and how many of its samples come before


class FetchProcess:
    """The process, and the socket that joins it to the loader."""

    def __init__(self, config: PipelineConfig, *, manifest: bool):
        self._retried = 0
        self.url = config.place.root
        self._manifest_fd = anonymous_file(0)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = (theirs.fileno(), self._manifest_fd)
        try:
            self.process = start_child("fetcher", fds=fds)
        finally:
            theirs.close()
        self.send(  # not on the command line: a URL may hold a password
            url=self.url,
            cache_dir=str(config.cache_root),
            cache_bytes=config.cache_bytes,
            patience=dataclasses.asdict(PATIENCE),
            manifest=MANIFEST if manifest else "",
        )

    def send(self, **message: Any) -> None:
        send(self._socket, **message)

    def receive(self, *, wait: bool) -> dict[str, Any] | None:
        """One message; None where there is none, after a while with ``wait``.

        Raises EOFError where the process has ended.
        """
        self._socket.settimeout(_LOOK_AFTER_S if wait else 0.0)
        try:
            data = self._socket.recv(MESSAGE_BYTES)
        except (TimeoutError, BlockingIOError):
            return None
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError
        message: dict[str, Any] = json.loads(data)
        self._retried = message["retried"]
        if "retrying" in message:
            advise(f"{message['retrying']}; reads that fail are tried again")
        if "waiting" in message:
            advise(message["waiting"])
        return message

    def manifest(self) -> Manifest:
        """Wait for it. Raises ConfigError or DataError."""
        while True:
            try:
                message = self.receive(wait=True)
            except EOFError:
                raise DataError(f"the process that fetches {self.url} ended: {self.how_it_ended()}") from None
            if message and "failed" in message:
                raise failure(message)
            if message and "manifest" in message:
                data = os.pread(self._manifest_fd, message["manifest"], 0)
                return parse_manifest(data, Path(self.url), f"{self.url}/{MANIFEST}")

    def how_it_ended(self) -> str:
        code = self.process.wait(_CLOSE_WITHIN_S)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End it. Safe to call twice."""
        if self._manifest_fd < 0:
            return
        self._socket.close()
        os.close(self._manifest_fd)
        self._manifest_fd = -1
        try:
            self.process.wait(_CLOSE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._retried:
            advise(f"{self.url}: {self._retried} read{'s'[: self._retried > 1]} had to be tried again")


def failure(message: dict[str, Any]) -> ConfigError | DataError:
    """What the process has given up with."""
    return (ConfigError if message["call"] else DataError)(message["failed"])


def remote_splits(config: PipelineConfig) -> tuple[str, ...]:
    """The splits that a URL has. Raises ConfigError or DataError."""
    with contextlib.closing(FetchProcess(config, manifest=True)) as process:
        return tuple(process.manifest().splits)


class Delivery:
    """One split of the shards at a URL. ``shards`` are its files in the cache, of which each may be there or not.

    Raises ConfigError or DataError.
    """

    def __init__(self, config: PipelineConfig):
        self._config = config
        self._plan = self._restarts = 0
        self._now: dict[int, int] = {}  # number -> the plan from which on it is needed
        self._next: list[int] = []
        self._there: set[int] = set()
        self._failed: dict[int, ConfigError | DataError] = {}
        self._needs: dict[int, Needs] = {}
        self._process = FetchProcess(config, manifest=True)
        try:
            self.shards = self._open(self._process.manifest())
        except BaseException:
            self.close()
            raise

    def _open(self, manifest: Manifest) -> Shards:
        config, place = self._config, self._config.place
        split = config.split
        chosen = choose_shards(manifest, split, place.names, place.root)
        infos = [manifest.splits[split][number] for number in chosen]
        self._sizes = np.array([info.bytes for info in infos], np.int64)
        index = CachedFile(index_name(split), None, manifest.index_sha256[split])
        self._files = [*(CachedFile(info.name, info.bytes, info.sha256) for info in infos), index]
        self._tell_files()
        self._ask([], [])
        while len(infos) not in self._there:
            self.wait()
        folder = cache_folder(config.cache_root, place.root)
        self._room = config.cache_bytes - (folder / index.local).stat().st_size
        return shards_of(
            manifest, split, chosen, root=folder, index=folder / index.local, local=[f.local for f in self._files]
        )

    def _tell_files(self) -> None:
        for first in range(0, len(self._files), _PIECE):
            self._process.send(files=[dataclasses.astuple(file) for file in self._files[first : first + _PIECE]])

    @property
    def pid(self) -> int:
        """The fetch process's number."""
        return self._process.process.pid

    def check(self, epoch: int, order: Callable[[int], Indices]) -> None:
        """Raises ConfigError where the cache cannot hold what a batch of an epoch needs."""
        self._needed(epoch, order)

    def _needed(self, epoch: int, order: Callable[[int], Indices]) -> Needs:
        if epoch not in self._needs:
            needs = Needs.of(order(epoch), self.shards.first)
            stretch = self._config.batch_size * self._config.world_size
            most = needs.most_at_once(self._sizes, stretch)
            if most > self._room:
                block = ", or give --shuffle block, which needs a few shards at a time" if self._config.training else ""
                raise ConfigError(
                    f"{self._config.place.root}: the order of an epoch needs {most / 1e9:.3g} GB of its "
                    f"{self._sizes.sum() / 1e9:.3g} GB at once, the cache has room for {max(0, self._room) / 1e9:.3g}: "
                    f"raise --cache-gb{block}"
                )
            self._needs[epoch] = needs
            while len(self._needs) > _MOST_EPOCHS:
                self._needs.pop(next(iter(self._needs)))
        return self._needs[epoch]

    def ready(self, begin: Moment, start: Moment, behind: int, order: Callable[[int], Indices]) -> bool:
        """Whether every shard of the batch from ``start`` to ``behind`` (excluded, same epoch) is there.

        It then stays there, and so does what batches from ``begin`` on, an epoch earlier at most, may still read.
        """
        epoch, position = start
        needs = self._needed(epoch, order)
        if begin[0] == epoch:
            reading = needs.between(begin[1], position)
        else:
            reading = [*self._needed(begin[0], order).between(begin[1], len(self.shards)), *needs.between(0, position)]
        now = [*dict.fromkeys((*reading, *needs.between(position, behind)))]
        if self._sizes[now].sum() > self._room:  # first the batches before must be done
            self._ask([*dict.fromkeys(reading)], [])
            return False
        later = needs.after(behind, _AHEAD)
        if len(later) < _AHEAD:
            later += self._needed(epoch + 1, order).after(0, _AHEAD - len(later))
        self._ask(now, [number for number in dict.fromkeys(later) if number not in now])
        while self._receive(wait=False):
            pass
        return self._there.issuperset(now)

    def wait(self) -> None:
        """Wait for something to arrive. Raises DataError, naming the URL, where it will not."""
        if given_up := next((error for number, error in self._failed.items() if number in self._now), None):
            raise given_up
        self._receive(wait=True)

    def _ask(self, now: list[int], later: list[int]) -> None:
        now = [*now, len(self._files) - 1]  # the index, from which a new decode process reads
        if self._plan and [*self._now] == now and self._next == later:
            return
        self._plan += 1
        self._now = {number: self._now.get(number, self._plan) for number in now}
        self._next = later
        self._there.intersection_update(now)
        self._process.send(plan=self._plan, now=now, next=later)

    def _receive(self, *, wait: bool) -> bool:
        try:
            message = self._process.receive(wait=wait)
        except EOFError:
            self._restart()
            return True
        # What was let go and is needed again may still be reported from before.
        if message and "there" in message and message["plan"] >= self._now.get(message["there"], math.inf):
            self._there.add(message["there"])
            self._failed.pop(message["there"], None)
        if message and "failed" in message:
            self._failed[message["number"]] = failure(message)
        return message is not None

    def _restart(self) -> None:
        what = f"the process that fetches {self._config.place.root} ended: {self._process.how_it_ended()}"
        self._process.close()
        if self._restarts == _RESTARTS:
            raise DataError(f"{what}, for the {_RESTARTS + 1}th time: see what the system says of it")
        self._restarts += 1
        advise(f"{what}. It is started again ({self._restarts}); what it had fetched is kept")
        self._process = FetchProcess(self._config, manifest=False)
        try:
            while not (message := self._process.receive(wait=True)) or "manifest" not in message:
                if message and "failed" in message:
                    raise failure(message)
        except EOFError:
            return self._restart()
        self._tell_files()
        self._there.clear()
        now, later = [*self._now][:-1], self._next
        self._now = {}
        return self._ask(now, later)

    def close(self) -> None:
        """End the fetch process. Safe to call twice."""
        self._process.close()
