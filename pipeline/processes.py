"""A map over processes that ends when it should: with its parent, on Ctrl-C, and when one of its own is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar, cast

from .errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task, Callable[[], None]], Result]


def map_in_processes(
    work: Work[Task, Result], tasks: Sequence[Task], *, workers: int, progress: Callable[[int], None]
) -> Iterator[Result | Exception]:
    """``work(task, count)`` for each task, in ``workers`` processes; results in the order of the tasks.

    An exception that ``work`` raises is handed out in its result's place. ``work`` is pickled once for each process;
    each of its calls to ``count()`` adds one to the number that ``progress`` is told several times a second.
    Raises DataError where a process dies.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    idle: list[tuple[Connection, BaseProcess]] = []
    for _ in range(min(workers, len(tasks))):
        ours, theirs = context.Pipe()
        process: BaseProcess = context.Process(target=_serve, args=(theirs, work, counter), daemon=True)
        process.start()
        theirs.close()  # so that a dead worker's connection ends instead of hanging
        idle.append((ours, process))
    everyone = list(idle)
    results: dict[int, Result | Exception] = {}
    busy: dict[Connection, tuple[int, BaseProcess]] = {}
    todo = iter(enumerate(tasks))
    handed_out = 0
    try:
        while handed_out < len(tasks):
            while idle and (item := next(todo, None)):
                connection, process = idle.pop()
                connection.send(item[1])
                busy[connection] = (item[0], process)
            for ready in wait(list(busy), timeout=0.1):
                connection = cast(Connection, ready)
                number, process = busy.pop(connection)
                try:
                    results[number] = connection.recv()
                except EOFError:
                    process.join()
                    raise DataError(f"a worker process died ({_how(process.exitcode)}): was memory short?") from None
                idle.append((connection, process))
            progress(counter.value)
            while handed_out in results:
                yield results.pop(handed_out)
                handed_out += 1
    finally:
        for connection, _ in everyone:
            connection.close()
        for _, process in everyone:
            process.terminate()
            process.join()


def _serve(connection: Connection, work: Work[Task, Result], counter: Synchronized[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def count() -> None:
        with counter.get_lock():
            counter.value += 1

    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone, or done
        while True:
            task = connection.recv()
            try:
                result: object = work(task, count)
            except Exception as error:  # noqa: BLE001 - it is handed to the parent
                result = error
            connection.send(result)


def _how(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
