"""The fetch process: brings files from a URL into the cache, in the order in which the loader asks for them.

It ends when the loader's end of its socket closes, so with the trainer, in whatever way that ends. It never imports
torch. Its threads are its own: the trainer's process has none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from .cache import Cache, CachedFile, Partial, Refusal
from .errors import ConfigError, DataError
from .remote import MissingError, Patience, RemoteFolder

MESSAGE_BYTES = 1 << 20
_AT_ONCE = 4  # files
_LOOK_EVERY_S = 0.05  # whether another process has written a file, or there is room
_SAY_AFTER_S = 10.0
_WAIT_S = 600.0  # for other processes


class Reports:
    """What the loader is told. Each message says the last ``plan`` that was seen, and how many reads were ``retried``.

    {"manifest": its bytes}; {"there": number}, each time that a file is held anew; {"retrying": text}, the first time;
    {"waiting": text}; {"failed": text, "call": whether the call was wrong, "number": of the file, or -1}.
    """

    def __init__(self, to: socket.socket):
        self._to, self._lock = to, threading.Lock()
        self.plan = self._retried = 0

    def say(self, **message: Any) -> None:
        with self._lock:
            send(self._to, plan=self.plan, retried=self._retried, **message)

    def retrying(self, what: str) -> None:
        with self._lock:
            self._retried += 1
            first = self._retried == 1
        if first:
            self.say(retrying=what)

    def failed(self, error: Exception, number: int = -1) -> None:
        self.say(failed=str(error), call=isinstance(error, ConfigError), number=number)


class Fetcher:
    """Files by number, and what is asked for: ``now`` is fetched and held; ``next`` is fetched, and may go again."""

    def __init__(self, reports: Reports, remote: RemoteFolder, cache: Cache):
        self._reports, self._remote, self._cache = reports, remote, cache
        self._files: list[CachedFile] = []
        self._now: list[int] = []
        self._next: list[int] = []
        self._held: dict[int, int] = {}  # number -> descriptor
        self._busy: set[int] = set()
        self._settled: set[int] = set()  # of the plan: fetched, or given up
        self._changed = threading.Condition()
        for _ in range(_AT_ONCE):
            threading.Thread(target=self._work, daemon=True).start()

    def add(self, files: list[list[Any]]) -> None:
        """Number the files on, from 0: [name, bytes or None, sha256] of each."""
        self._files += [CachedFile(*file) for file in files]

    def ask(self, plan: int, now: list[int], later: list[int]) -> None:
        """What is needed from now on, soonest first. What is held and no longer in ``now`` is let go."""
        with self._changed:
            self._reports.plan, self._now = plan, now
            self._next = self._fitting(later)
            for number in set(self._held).difference(now):
                os.close(self._held.pop(number))
            self._settled.clear()
            for number in now:  # here, as the threads may all be at work for later
                if number not in self._held and (fd := self._cache.hold(self._files[number])) is not None:
                    self._arrived(number, fd)
            self._changed.notify_all()

    def _fitting(self, later: list[int]) -> list[int]:
        """As many as fit into half of the room that ``now`` leaves: other loaders are to have some too."""
        room = (self._cache.limit - sum(self._files[number].bytes or 0 for number in self._now)) / 2
        fitting = []
        for number in later:
            room -= self._files[number].bytes or 0
            if room < 0:
                break
            fitting.append(number)
        return fitting

    def _work(self) -> None:
        while True:
            with self._changed:
                while (number := self._pick()) is None:
                    self._changed.wait()
                self._busy.add(number)
            failed: Exception | None = None
            try:
                self._fetch(number)
            except OSError as error:
                failed = DataError(f"cache folder {self._cache.root}: {error.strerror or error}")
            except Exception as error:  # noqa: BLE001 - the loader is told
                failed = error
            with self._changed:
                self._busy.discard(number)
                if failed or number not in self._now:  # else it is held, or was asked for anew this very moment
                    self._settled.add(number)
                if failed and number in self._now:
                    self._reports.failed(failed, number)
                self._changed.notify_all()

    def _pick(self) -> int | None:
        done = self._busy | self._settled | self._held.keys()
        return next((number for number in (*self._now, *self._next) if number not in done), None)

    def _fetch(self, number: int) -> None:
        """See to it that a file is there, and held where it is needed now. Raises DataError or OSError."""
        since, said = time.monotonic(), False
        while self._wanted(number):
            file = self._files[number]
            if (fd := self._cache.hold(file)) is not None:
                with self._changed:
                    if number in self._now and number not in self._held:
                        self._arrived(number, fd)
                    else:
                        os.close(fd)
                return
            if file.bytes is None:
                file = self._files[number] = dataclasses.replace(file, bytes=self._remote.size(file.name))
            with self._changed:
                keep, last = ([self._files[n].local for n in numbers] for numbers in (self._now, self._next))
            claimed = self._cache.claim(file, keep=keep if number in self._now else keep + last, last=last)
            if isinstance(claimed, Refusal):
                if claimed is Refusal.FULL and number not in self._now:
                    return
                waited_s = time.monotonic() - since
                if waited_s > _WAIT_S:
                    raise TimeoutError(f"waited {waited_s:.0f} s for {file.name}: {claimed.value}")
                if waited_s > _SAY_AFTER_S and claimed is Refusal.FULL and not said:
                    said = True
                    self._reports.say(
                        waiting=f"no room for {file.name} in the cache {self._cache.root}: other loaders need all that "
                        "is there; a larger --cache-gb would help"
                    )
                time.sleep(_LOOK_EVERY_S)
                continue
            try:
                self._download(number, file, claimed)
            finally:
                claimed.close()
            since = time.monotonic()

    def _download(self, number: int, file: CachedFile, partial: Partial) -> None:
        assert file.bytes is not None
        for _ in range(2):  # what is wrong may be what a dead process left, or one read
            if not self._remote.fetch(file.name, file.bytes, partial, lambda: self._wanted(number)):
                return
            if (got := partial.sha256) == file.sha256:
                partial.finish(self._cache)
                return
            partial.restart()
        raise DataError(
            f"{self._remote.where(file.name)}: want sha256 {file.sha256}, got {got}, and fetched it twice: it is not "
            "the file that the manifest was written with"
        )

    def _wanted(self, number: int) -> bool:
        return number in self._now or number in self._next

    def _arrived(self, number: int, fd: int) -> None:
        self._held[number] = fd
        self._reports.say(there=number)


def send(to: socket.socket, **message: Any) -> None:
    """One message, whole."""
    with contextlib.suppress(ConnectionError):  # the other end is gone, which is noticed where it is read
        to.send(json.dumps(message).encode())


def main(socket_fd: int, manifest_fd: int) -> None:
    """What the fetch process runs; the descriptors are inherited from the loader, whose first message is the job."""
    loader = socket.socket(fileno=socket_fd)
    job = json.loads(loader.recv(MESSAGE_BYTES))
    reports = Reports(loader)
    fetchers: list[Fetcher] = []

    def begin() -> None:
        try:
            remote = RemoteFolder(job["url"], Patience(**job["patience"]), reports.retrying)
            fetchers.append(Fetcher(reports, remote, open_cache(job)))
            manifest = read_manifest(remote, job["manifest"]) if job["manifest"] else b""
            reports.say(manifest=os.write(manifest_fd, manifest))
        except Exception as error:  # noqa: BLE001 - the loader is told
            reports.failed(error)

    threading.Thread(target=begin, daemon=True).start()
    with contextlib.suppress(ConnectionError):
        while message := loader.recv(MESSAGE_BYTES):
            request = json.loads(message)
            if "files" in request:
                fetchers[0].add(request["files"])
            else:
                fetchers[0].ask(request["plan"], request["now"], request["next"])
    os._exit(0)  # whatever the threads are waiting for


def open_cache(job: dict[str, Any]) -> Cache:
    """Raises ConfigError where the folder cannot be made."""
    try:
        return Cache(Path(job["cache_dir"]), job["url"], job["cache_bytes"])
    except OSError as error:
        raise ConfigError(f"--cache-dir {job['cache_dir']} cannot be made: {error.strerror}") from error


def read_manifest(remote: RemoteFolder, name: str) -> bytes:
    """Raises ConfigError where there is none."""
    try:
        return remote.read(name)
    except MissingError as error:
        raise ConfigError(
            f"{remote.url} has no {name}, so it is no finished folder of shards: copy all that make_shards.py wrote"
        ) from error
