"""A lock on a folder of an object store that has conditional writes: an object that only one run can make.

Amazon S3 takes `If-None-Match` and `If-Match`, Google Cloud Storage takes generations. The holder renews the object every few
seconds, so that the lock of a run that died is told from that of a run that lives without comparing clocks: whoever wants it
watches whether it changes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid

from batchverify.errors import StoreError, short_reason
from batchverify.io.object_store import ConditionalObject, conditional_object, has_client

_LOG = logging.getLogger(__name__)
_NAME = "_LOCK"
_RENEW_S = 10.0
# A holder that has missed that many renewals is dead.
_DEAD_AFTER_S = 4 * _RENEW_S
_WATCH_S = 1.0
# Versions of locks that this process has seen unchanged for so long that their holders are dead, by folder.
_dead: dict[str, str] = {}


class LockedError(Exception):
    """Another run that lives holds the folder."""


class StoreLock:
    """The lock on a folder, held by this process until `release`. `hold` makes one.

    Args:
        lock: The object.
        token: What this process has written into it.
    """

    def __init__(self, lock: ConditionalObject, token: bytes):
        self._lock, self._token = lock, token
        self._released = threading.Event()
        threading.Thread(target=self._renew, name="renew-lock", daemon=True).start()

    def release(self) -> None:
        """Deletes the object, unless another run has taken the lock."""
        if not self._released.is_set():
            self._released.set()
            with contextlib.suppress(StoreError):  # Whoever comes next sees that nobody renews it.
                if (found := self._lock.read()) and found[0].startswith(self._token):
                    self._lock.delete()

    def _renew(self) -> None:
        number = 0
        while not self._released.wait(_RENEW_S):
            number += 1
            with contextlib.suppress(StoreError):  # The next time comes soon.
                found = self._lock.read()
                if found is None or not found[0].startswith(self._token):
                    _LOG.warning("Another run has taken the lock %s; this run fails before it finishes.", _NAME)
                    return
                if not self._released.is_set():
                    self._lock.replace(_content(self._token, number), found[1])


def hold(folder: str) -> StoreLock | None:
    """Takes the lock on a folder of an object store.

    Args:
        folder: The URI or path.

    Returns:
        The lock; None where there is no such store, or its writes are not conditional.

    Raises:
        LockedError: If a run that lives holds it.
    """
    lock = _lock_of(folder)
    if lock is None:
        return None
    token = uuid.uuid4().hex.encode()
    try:
        if not _is_conditional(lock, token):
            return None
        while not _take(folder, lock, token):
            wait_for_death(folder)
    except StoreError as error:
        _LOG.info("%s cannot be locked (%s); of two runs at once, the earlier one fails.", folder, short_reason(error))
        return None
    return StoreLock(lock, token)


def wait_for_death(folder: str) -> None:
    """Returns if nobody holds a folder, or once its holder has shown no life for a while.

    Raises:
        LockedError: If the holder lives.
    """
    lock = _lock_of(folder)
    try:
        found = lock.read() if lock else None
        started = time.monotonic()
        while lock and found and _dead.get(folder) != found[1]:
            if time.monotonic() - started > _DEAD_AFTER_S:
                _dead[folder] = found[1]
                return
            time.sleep(_WATCH_S)
            before, found = found, lock.read()
            if found and found[1] != before[1]:
                raise LockedError
    except StoreError:  # Whoever takes the lock says it.
        return


def _take(folder: str, lock: ConditionalObject, token: bytes) -> bool:
    """Takes the lock if it is free, or its holder is known to be dead."""
    if lock.create(_content(token, 0)):
        return True
    found = lock.read()
    if found is None:
        return False
    if found[0].startswith(token):  # The store has taken a request twice that the client had to repeat.
        return True
    return _dead.get(folder) == found[1] and lock.replace(_content(token, 0), found[1])


def _is_conditional(lock: ConditionalObject, token: bytes) -> bool:
    """Returns whether the store honours conditions: it must refuse to make an object that exists."""
    if not lock.create(_content(token, 0)):
        return True
    honours = not lock.create(_content(token, 1))
    if not honours:
        lock.delete()
    return honours


def _lock_of(folder: str) -> ConditionalObject | None:
    return conditional_object(f"{folder.rstrip('/')}/{_NAME}") if has_client(folder) else None


def _content(token: bytes, number: int) -> bytes:
    """Returns the lock's content, another one each time, because a store's version may be a digest of it."""
    return token + b" %d\n" % number
