"""Images read in threads, some batches before they are used; an image that takes too long is abandoned."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, cast

Result = TypeVar("Result")
_thread = threading.local()  # What the current thread reads.


@contextlib.contextmanager
def stopped_clock() -> Iterator[None]:
    """Leaves the time within this context out of the time that the image may take which the current thread reads, if any."""
    reading: _Reading | None = getattr(_thread, "reading", None)
    if reading is None or reading.started is None:
        yield
        return
    spent_s, reading.started = time.monotonic() - reading.started, None
    try:
        yield
    finally:
        reading.started = time.monotonic() - spent_s


def release_when_abandoned(release: Callable[[], None]) -> None:
    """Has `release` called, also in another thread, when the image is abandoned which the current thread reads, if any."""
    reading: _Reading | None = getattr(_thread, "reading", None)
    if reading is not None:
        reading.release = release
        if reading.is_abandoned:  # The other thread may have looked for `release` before it was there.
            release()


class Prefetcher(Generic[Result]):
    """Reads URIs in threads of its own, which do not keep the process alive.

    An executor of the standard library does not serve here: it waits at the end of the process for a thread that hangs, and
    it starts no other thread in its place meanwhile.

    Args:
        read: Reads one URI. An exception that it raises is raised where the result is taken.
        on_timeout: Makes the result for a URI that took longer than `timeout_s` to read.
        threads: The number of URIs that are read at the same time.
        timeout_s: The seconds that one URI may take, counted from when a thread begins to read it.
        together: The number of URIs that a thread takes at once, to read one after another. Several save time where reading
            is quick; one keeps all threads busy where it waits for a network.
    """

    def __init__(
        self,
        read: Callable[[str], Result],
        on_timeout: Callable[[str], Result],
        threads: int,
        timeout_s: float,
        together: int = 1,
    ):
        self._read, self._on_timeout, self._timeout_s, self._together = read, on_timeout, timeout_s, together
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
            pending.append(self._submit(uris[start : start + size], read or self._read))
            if len(pending) > ahead:
                yield self._wait_for(pending.popleft(), pending)
        while pending:
            yield self._wait_for(pending.popleft(), pending)

    def _submit(self, uris: Sequence[str], read: Callable[[str], Result]) -> list[_Task[Result]]:
        tasks = [_Task(uris[start : start + self._together], read) for start in range(0, len(uris), self._together)]
        for task in tasks:
            self._waiting.put(task)
        return tasks

    def _wait_for(self, tasks: list[_Task[Result]], later: Iterable[list[_Task[Result]]]) -> list[Result]:
        for place, task in enumerate(tasks):
            while not task.is_finished.wait(min(one.seconds_left(self._timeout_s) for one in tasks[place:])):
                # These tasks may wait for what a later one holds.
                self._abandon_overdue(itertools.chain(tasks[place:], *later))
        return [outcome.get() for task in tasks for outcome in task.outcomes]

    def _abandon_overdue(self, tasks: Iterable[_Task[Result]]) -> None:
        """Gives up the URIs that have taken too long; a new thread reads the rest of their tasks."""
        with self._lock:
            for task in tasks:
                if task.reading is not None and task.seconds_left(self._timeout_s) <= 0:
                    task.reading.abandon()
                    task.reading = None
                    task.outcomes.append(_Outcome(self._on_timeout(task.uris[len(task.outcomes)])))
                    self._add_thread(task)

    def _add_thread(self, first: _Task[Result] | None = None) -> None:
        arguments = (self._waiting, self._lock, first)
        threading.Thread(target=_read_tasks, args=arguments, name="read-image", daemon=True).start()


@dataclasses.dataclass
class _Reading:
    """The reading of one URI.

    Attributes:
        started: The time on the monotonic clock, in seconds, at which it began; None while it waits for its turn to be decoded.
        is_abandoned: Whether nobody waits for the result any longer.
        release: The function that gives back what the reading thread holds; it may be called twice.
    """

    started: float | None
    is_abandoned: bool = False
    release: Callable[[], None] | None = None

    def abandon(self) -> None:
        """Notes that nobody waits for the result any longer."""
        self.is_abandoned = True
        if self.release is not None:
            self.release()


class _Outcome(Generic[Result]):
    """The result of reading one URI, or the exception that was raised."""

    __slots__ = ("_error", "_result")

    def __init__(self, result: Result | None, error: BaseException | None = None):
        self._result, self._error = result, error

    def get(self) -> Result:
        if self._error is not None:
            raise self._error
        return cast(Result, self._result)


@dataclasses.dataclass
class _Task(Generic[Result]):
    """A few URIs that one thread reads, one after another.

    Attributes:
        uris: The URIs.
        read: The function that reads one.
        outcomes: The outcomes of the first URIs, those that have been read or given up.
        reading: The reading of the next URI; None if no thread reads it now.
        is_finished: Whether there is an outcome for each URI.
    """

    uris: Sequence[str]
    read: Callable[[str], Result]
    outcomes: list[_Outcome[Result]] = dataclasses.field(default_factory=list)
    reading: _Reading | None = None
    is_finished: threading.Event = dataclasses.field(default_factory=threading.Event)

    def seconds_left(self, timeout_s: float) -> float:
        """Returns the seconds that the next URI may still take: `timeout_s` while it waits, or after the last one."""
        reading = self.reading  # The reading thread may change both at any time.
        started = None if reading is None else reading.started
        return timeout_s if started is None else max(0.0, started + timeout_s - time.monotonic())


def _read_tasks(waiting: queue.SimpleQueue[_Task[Result] | None], lock: threading.Lock, first: _Task[Result] | None) -> None:
    """Reads a first task, then those in `waiting` until it holds None: then the prefetcher is gone, and all threads end."""
    task = first or waiting.get()
    while task is not None:
        if not _read_task(task, lock):
            return  # Another thread has replaced this one.
        del task  # Its results may be large, and the next one may be long in coming.
        task = waiting.get()
    waiting.put(None)


def _read_task(task: _Task[Result], lock: threading.Lock) -> bool:
    """Reads the URIs of a task that have no outcome; returns False once one of them has been given up meanwhile."""
    while len(task.outcomes) < len(task.uris):
        uri = task.uris[len(task.outcomes)]
        task.reading = _thread.reading = reading = _Reading(time.monotonic())
        outcome: _Outcome[Result]
        try:
            outcome = _Outcome(task.read(uri))
        except BaseException as error:
            outcome = _Outcome(None, error)
        with lock:
            if reading.is_abandoned:
                return False
            task.outcomes.append(outcome)
            task.reading = None
    task.is_finished.set()
    return True
