"""Images read in threads, some batches before they are used; an image that takes too long is abandoned."""

from __future__ import annotations

import collections
import contextlib
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
_thread = threading.local()  # The task that the current thread reads.


@contextlib.contextmanager
def stopped_clock() -> Iterator[None]:
    """Leaves the time within this context out of the time that the image may take which the current thread reads, if any."""
    task: _Task[object] | None = getattr(_thread, "task", None)
    if task is None or task.started is None:
        yield
        return
    spent_s, task.started = time.monotonic() - task.started, None
    try:
        yield
    finally:
        task.started = time.monotonic() - spent_s


class Prefetcher(Generic[Result]):
    """Reads URIs in threads of its own, which do not keep the process alive.

    An executor of the standard library does not serve here: it waits at the end of the process for a thread that hangs, and
    it starts no other thread in its place meanwhile.

    Args:
        read: Reads one URI. An exception that it raises is raised where the result is taken.
        on_timeout: Makes the result for a URI that took longer than `timeout_s` to read.
        threads: The number of URIs that are read at the same time.
        timeout_s: The seconds that one URI may take, counted from when a thread begins to read it.
    """

    def __init__(self, read: Callable[[str], Result], on_timeout: Callable[[str], Result], threads: int, timeout_s: float):
        self._read, self._on_timeout, self._timeout_s = read, on_timeout, timeout_s
        self._waiting: queue.SimpleQueue[_Task[Result] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        weakref.finalize(self, self._waiting.put, None)
        for _ in range(threads):
            self._add_thread()

    def batches(
        self, uris: Sequence[str], size: int, ahead: int, read: Callable[[str], Result] | None = None
    ) -> Iterator[list[Result]]:
        """Yields the results in batches, in order, while the next batches are being read.

        Args:
            uris: The URIs to read.
            size: The number of URIs in a batch.
            ahead: The number of further batches that are read at the same time.
            read: A function to use instead of the usual one, under the same limits.
        """
        pending: collections.deque[list[_Task[Result]]] = collections.deque()
        for start in range(0, len(uris), size):
            pending.append([self._submit(uri, read or self._read) for uri in uris[start : start + size]])
            if len(pending) > ahead:
                yield [self._wait_for(task) for task in pending.popleft()]
        while pending:
            yield [self._wait_for(task) for task in pending.popleft()]

    def _submit(self, uri: str, read: Callable[[str], Result]) -> _Task[Result]:
        task: _Task[Result] = _Task(uri, read)
        self._waiting.put(task)
        return task

    def _wait_for(self, task: _Task[Result]) -> Result:
        while True:
            try:
                return task.result.result(task.seconds_left(self._timeout_s))
            except TimeoutError:
                with self._lock:
                    if task.result.done():
                        return task.result.result()
                    if task.seconds_left(self._timeout_s) <= 0:
                        task.is_abandoned = True
                        self._add_thread()
                        return self._on_timeout(task.uri)

    def _add_thread(self) -> None:
        arguments = (self._waiting, self._lock)
        threading.Thread(target=_read_tasks, args=arguments, name="read-image", daemon=True).start()


@dataclasses.dataclass
class _Task(Generic[Result]):
    """One URI to read.

    Attributes:
        uri: The URI.
        read: The function that reads it.
        result: The result, or the exception that `read` raised.
        started: The time on the monotonic clock, in seconds, at which a thread began to read; None while the task waits for a
            thread, or for its turn to be decoded.
        is_abandoned: Whether nobody waits for the result any longer.
    """

    uri: str
    read: Callable[[str], Result]
    result: Future[Result] = dataclasses.field(default_factory=Future)
    started: float | None = None
    is_abandoned: bool = False

    def seconds_left(self, timeout_s: float) -> float:
        """Returns the seconds that the task may still take: `timeout_s` while it waits."""
        started = self.started  # The reading thread may change it at any time.
        return timeout_s if started is None else max(0.0, started + timeout_s - time.monotonic())


def _read_tasks(waiting: queue.SimpleQueue[_Task[Result] | None], lock: threading.Lock) -> None:
    """Reads the tasks in `waiting` until it holds None: then the prefetcher is gone, and every thread ends in turn."""
    while (task := waiting.get()) is not None:
        task.started, _thread.task = time.monotonic(), task
        set_outcome: Callable[[], None]
        try:
            set_outcome = functools.partial(task.result.set_result, task.read(task.uri))
        except BaseException as error:
            set_outcome = functools.partial(task.result.set_exception, error)
        with lock:
            set_outcome()
            if task.is_abandoned:
                return  # Another thread has replaced this one.
    waiting.put(None)
