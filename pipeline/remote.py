"""A folder behind a URL, as files that are read in pieces, again and again until they are there.

All that fsspec knows can be read: s3, gs, http, hdfs and others. Every read has a time limit and is retried; what the
server says for good (no such file, not allowed) is not. This module is for the fetcher's process, which may have
threads: a read that hangs is left to itself in its own.
"""

from __future__ import annotations

import dataclasses
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .errors import ConfigError, DataError

Result = TypeVar("Result")

PIECE_BYTES = 8 << 20  # of one read: little to lose, and the way there and back is a small part of it
_INSTALL = {"s3": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs", "gcs": "gcsfs", "hdfs": "pyarrow"}
_TRY_AGAIN = (408, 425, 429)  # of the 4xx, what may be otherwise in a moment
_FOR_GOOD = ("NoCredentialsError", "PartialCredentialsError", "NoSuchBucket", "InvalidURL")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long: waits of 0.1 s, 0.3 s ... 24 s between the tries make a minute of them."""

    tries: int = 8  # without a byte of progress in between
    first_wait_s: float = 0.1
    longest_wait_s: float = 24.0
    stall_s: float = 30.0  # a read takes no longer; each try without progress doubles it, up to eight times

    def wait_s(self, tries: int) -> float:
        """How long to wait after so many tries, with jitter, so that ranks do not come back all at once."""
        return min(self.longest_wait_s, self.first_wait_s * 3.0 ** (tries - 1)) * random.uniform(0.75, 1.25)  # noqa: S311

    def limit_s(self, tries: int) -> float:
        """How long the next read may take."""
        return self.stall_s * min(8, 1 << tries)


class MissingError(DataError):
    """There is no such file at the URL."""


class Sink(Protocol):
    """Where a file's bytes go, one after the other."""

    @property
    def bytes(self) -> int: ...

    def append(self, data: memoryview) -> None: ...


class RemoteFolder:
    """The files of one folder behind a URL. Raises ConfigError where nothing here reads such a URL.

    ``retrying`` is told what happened each time that a read is tried again.
    """

    def __init__(self, url: str, patience: Patience, retrying: Callable[[str], None]):
        self.url, self._patience, self._retrying = url, patience, retrying
        scheme = url.partition("://")[0].rpartition("::")[2]
        try:
            from fsspec.core import url_to_fs

            self._fs: Any
            self._fs, self._root = url_to_fs(url)
        except ImportError as error:
            package = "fsspec" if error.name == "fsspec" else _INSTALL.get(scheme, "the package that it names")
            raise ConfigError(f"{url} cannot be read ({error}): pip install {package}") from error
        except ValueError as error:
            raise ConfigError(f"{url} cannot be read: {error}") from error

    def where(self, name: str) -> str:
        """A file's URL, for messages."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        """A whole small file. Raises MissingError or DataError."""
        return self._insist(name, lambda: bytes(self._fs.cat_file(self._path(name))))

    def size(self, name: str) -> int:
        """A file's size in bytes. Raises MissingError or DataError."""
        size = self._insist(name, lambda: self._fs.info(self._path(name))["size"])
        if size is None:
            raise DataError(f"{self.where(name)}: the server does not say its size")
        return int(size)

    def fetch(self, name: str, size: int, sink: Sink, go_on: Callable[[], bool]) -> bool:
        """Append to ``sink`` what it lacks of a file's ``size`` bytes; False where ``go_on`` said no meanwhile.

        Raises MissingError or DataError.
        """
        path, tries = self._path(name), 0
        while (begin := sink.bytes) < size:
            if not go_on():
                return False
            end = min(begin + PIECE_BYTES, size)

            def piece(begin: int = begin, end: int = end) -> bytes:
                return bytes(self._fs.cat_file(path, start=begin, end=end))

            try:
                data = memoryview(self._within(piece, self._patience.limit_s(tries)))
                if len(data) > end - begin:
                    if len(data) != size:
                        raise OSError(f"asked for {end - begin} bytes, got {len(data)}")
                    data = data[begin:]  # a server that does not know ranges gives the whole file
                if not len(data):
                    raise OSError(f"it ends after {begin} of {size} bytes")
            except Exception as error:  # noqa: BLE001 - each file system has its own; told apart below
                tries = self._again(name, error, tries)
                continue
            sink.append(data)
            tries = 0
        return True

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _insist(self, name: str, read: Callable[[], Result]) -> Result:
        tries = 0
        while True:
            try:
                return self._within(read, self._patience.limit_s(tries))
            except Exception as error:  # noqa: BLE001 - each file system has its own; told apart below
                tries = self._again(name, error, tries)

    def _again(self, name: str, error: Exception, tries: int) -> int:
        """Wait before the next try, and count it. Raises MissingError or DataError where there is to be none."""
        what = _what(error)
        if isinstance(error, FileNotFoundError):
            raise MissingError(f"{self.where(name)}: there is no such file") from error
        if _is_final(error):
            raise DataError(f"{self.where(name)} cannot be read: {what}") from error
        tries += 1
        if tries >= self._patience.tries:
            raise DataError(
                f"{self.where(name)} cannot be read: {what}; {tries} tries, each after a longer wait, made no progress"
            ) from error
        self._retrying(f"{self.where(name)}: {what}")
        time.sleep(self._patience.wait_s(tries))
        return tries

    def _within(self, read: Callable[[], Result], limit_s: float) -> Result:
        """``read()`` in a thread of its own, which is left to itself after ``limit_s``. Raises what it raises."""
        answer: queue.SimpleQueue[tuple[Result | None, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answer.put((read(), None))
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                answer.put((None, error))

        threading.Thread(target=run, daemon=True).start()
        try:
            result, error = answer.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError(f"nothing came for {limit_s:.0f} s") from None
        if error:
            raise error
        return result  # type: ignore[return-value]  # there is no error, so there is a result


def _is_final(error: Exception) -> bool:
    """Whether another try would end as this one."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _TRY_AGAIN
    if isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError)):
        return True
    return any(kind.__name__ in _FOR_GOOD for kind in type(error).__mro__)


def _what(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int) and status >= 400:
        return f"the server said {status} {getattr(error, 'message', '')}".rstrip()
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
