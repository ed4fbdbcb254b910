"""Images read in threads, some batches ahead of whoever uses them; one that takes too long is given up."""

from __future__ import annotations

import collections
import dataclasses
import functools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Prefetcher(Generic[Result]):
    """Reads in threads of its own, which do not keep the process alive.

    Not an executor of the standard library: those wait at the end of the process for a thread that hangs, and have no
    thread to take its place meanwhile.

    Args:
        read: reads one URI; any exception that it raises is raised where its result is taken.
        given_up: makes the result for a URI whose reading took longer than `limit_s`.
        threads: how many read at the same time.
        limit_s: seconds that one URI may take, counted from when its turn comes.
    """

    def __init__(self, read: Callable[[str], Result], given_up: Callable[[str], Result], threads: int, limit_s: float):
        self._read, self._given_up, self._limit_s = read, given_up, limit_s
        self._waiting: queue.SimpleQueue[_Task[Result] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        weakref.finalize(self, self._waiting.put, None)
        for _ in range(threads):
            self._add_thread()

    def batches(
        self, uris: Sequence[str], size: int, ahead: int, read: Callable[[str], Result] | None = None
    ) -> Iterator[list[Result]]:
        """Yields the results in batches of `size`, in order, with `ahead` more batches on their way.

        Args:
            uris: of what is read.
            size: of a batch.
            ahead: how many more.
            read: in the place of the usual one, under the same limits.
        """
        under_way: collections.deque[list[_Task[Result]]] = collections.deque()
        for start in range(0, len(uris), size):
            under_way.append([self._submit(uri, read or self._read) for uri in uris[start : start + size]])
            if len(under_way) > ahead:
                yield [self._wait_for(task) for task in under_way.popleft()]
        while under_way:
            yield [self._wait_for(task) for task in under_way.popleft()]

    def _submit(self, uri: str, read: Callable[[str], Result]) -> _Task[Result]:
        task: _Task[Result] = _Task(uri, read)
        self._waiting.put(task)
        return task

    def _wait_for(self, task: _Task[Result]) -> Result:
        while True:
            try:
                return task.result.result(task.seconds_left(self._limit_s))
            except TimeoutError:
                with self._lock:
                    if task.result.done():
                        return task.result.result()
                    if task.seconds_left(self._limit_s) <= 0:
                        task.is_given_up = True
                        self._add_thread()
                        return self._given_up(task.uri)

    def _add_thread(self) -> None:
        work = (self._waiting, self._lock)
        threading.Thread(target=_work, args=work, name="read-image", daemon=True).start()


@dataclasses.dataclass
class _Task(Generic[Result]):
    uri: str
    read: Callable[[str], Result]
    result: Future[Result] = dataclasses.field(default_factory=Future)
    started: float | None = None
    is_given_up: bool = False

    def seconds_left(self, limit_s: float) -> float:
        """Returns how long it may still take; all of it while it waits for its turn."""
        return limit_s if self.started is None else max(0.0, self.started + limit_s - time.monotonic())


def _work(waiting: queue.SimpleQueue[_Task[Result] | None], lock: threading.Lock) -> None:
    """Reads what waits, until there is a None: then nobody waits any more, and the other threads are told too."""
    while (task := waiting.get()) is not None:
        task.started = time.monotonic()
        settle: Callable[[], None]
        try:
            settle = functools.partial(task.result.set_result, task.read(task.uri))
        except BaseException as error:
            settle = functools.partial(task.result.set_exception, error)
        with lock:
            settle()
            if task.is_given_up:
                return  # another thread has taken this one's place
    waiting.put(None)
