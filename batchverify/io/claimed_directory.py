"""A directory on any file system that Beam opens, and the claim that a run has on it while it writes."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems

from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.io import store_lock
from batchverify.io.filesystem import list_folder, read_text, write_text, write_whole
from batchverify.io.store_lock import StoreLock
from batchverify.uris import is_remote

_LOG = logging.getLogger(__name__)
# What a file system without locks answers; EBADF comes from one that locks only files which are open for writing.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF)
_claims: dict[str, ClaimedDirectory] = {}  # The directories that this process has claimed, by the name of the claim.
_locks: dict[str, StoreLock] = {}  # The locks on those that lie in a store.


class ClaimedDirectory:
    """The common part of run directories and stores of embeddings.

    Attributes:
        OPTION: The option that names the directory on the command line.
        path: The directory.

    Args:
        path: The directory, with or without a slash at its end.
    """

    OPTION = ""

    def __init__(self, path: str):
        self.path = path.rstrip("/") or "/"

    def discard(self, claim: str) -> None:
        """Deletes the files that were written under a claim, unless they are finished."""
        raise NotImplementedError

    def detach(self, claim: str) -> None:
        """Leaves the files to a job that runs on elsewhere: this process will not discard them."""
        _claims.pop(claim, None)

    @contextmanager
    def _claimed(self, claim: str, prepare: Callable[[], None]) -> Iterator[None]:
        """Makes the directory if it does not exist and holds it; discards the claim at the end, unless it was detached.

        Args:
            claim: The name of the claim, unique in this process.
            prepare: A function to call before anything is written under the claim.

        Raises:
            PreflightError: If another run on this machine holds the directory.
            RunError: If the directory cannot be written to.
        """
        with ExitStack() as stack:
            try:
                if not is_remote(self.path) and not FileSystems.exists(self.path):  # An object store has no folders.
                    FileSystems.mkdirs(self.path)
                if os.path.isdir(self.path):
                    stack.callback(os.close, self._lock())
                elif lock := self._hold_store():
                    _locks[claim] = lock
                    stack.callback(_unlock, claim)
                _claims[claim] = self
                stack.callback(self._release, claim)  # If this process is stopped from now on, what it writes is deleted.
                prepare()
            except PreflightError:
                raise
            except Exception as error:  # Beam wraps whatever the store's client raises.
                raise RunError(
                    f"{self.OPTION} {self.path} cannot be written ({short_reason(error)}); check the path."
                ) from None
            yield

    def refuse_unwritable(self) -> None:
        """Refuses a directory on this machine that cannot be listed, or no file be made in; looks only, and changes nothing.

        Raises:
            PreflightError: With the reason.
        """
        if is_remote(self.path):
            return
        folder = os.path.abspath(self.path)
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder):
            raise PreflightError(
                f"{self.OPTION} {self.path} cannot be written ({folder} is not a directory); name another directory."
            )
        if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise PreflightError(
                f"{self.OPTION} {self.path} cannot be written (no file can be made in {folder}); check the path and your "
                "rights."
            )
        if folder == os.path.abspath(self.path) and not os.access(folder, os.R_OK):
            raise PreflightError(f"{self.OPTION} {self.path} cannot be listed; check the path and your rights.")

    def _release(self, claim: str) -> None:
        if claim in _claims:
            self.discard(claim)
            del _claims[claim]

    def _lock(self) -> int:
        """Locks the directory itself and returns the handle. No file stays behind, and the lock ends with the process.

        On a file system without locks nothing is locked. Of two runs at once, the earlier one notices the later one, and fails.

        Raises:
            PreflightError: If another process has locked it.
            OSError: If it cannot be opened.
        """
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise self._held_error() from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise
            _LOG.info("%s cannot be locked (%s); of two runs at once, the earlier one fails.", self.path, short_reason(error))
        return handle

    def _is_locked(self, claim: str) -> bool:
        """Returns whether a claim holds the lock of a store, so that no other run writes there."""
        return claim in _locks

    def _hold_store(self) -> StoreLock | None:
        """Locks a directory in a store, where the store can do that.

        Raises:
            PreflightError: If another run holds it.
        """
        try:
            return store_lock.hold(self.path)
        except store_lock.LockedError:
            raise self._held_error() from None

    def _refuse_held(self) -> None:
        """Refuses a directory that another run on this machine, or any run in a store with locks, writes to now.

        Raises:
            PreflightError: With the remedy.
        """
        if os.path.isdir(self.path):
            try:
                os.close(self._lock())
            except OSError as error:
                raise self._unread_error(error) from None
            return
        try:
            store_lock.wait_for_death(self.path)
        except store_lock.LockedError:
            raise self._held_error() from None

    def _held_error(self) -> PreflightError:
        return PreflightError(f"{self.OPTION} {self.path}: another run writes there now; wait for it, or name another one.")

    def _unread_error(self, error: Exception) -> PreflightError:
        return PreflightError(f"{self.OPTION} {self.path} cannot be read ({short_reason(error)}); check the path.")

    def _read(self, name: str) -> str:
        return read_text(self._join(name))

    def _join(self, *names: str) -> str:
        return str(FileSystems.join(self.path, *names))

    def _match(self, pattern: str) -> list[FileMetadata]:
        return list_folder(self.path, pattern)

    def _write(self, name: str, text: str) -> None:
        write_text(self._join(name), text)

    def _write_whole(self, name: str, text: str) -> None:
        write_whole(self._join(name), text.encode())


def discard_all_claims() -> None:
    """Discards all claims of this process."""
    for claim, directory in _claims.items():
        directory.discard(claim)
        _unlock(claim)


def _unlock(claim: str) -> None:
    if lock := _locks.pop(claim, None):
        lock.release()
