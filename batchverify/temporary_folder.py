"""Temporary folders that do not outlive their process for long, however it ends.

A folder is deleted when its block ends, and when a signal stops the program. A process that is killed cannot delete anything.
So each process locks its folders; the system releases the locks with the process, and whoever makes the next folder deletes
those that nobody locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from batchverify import shutdown
from batchverify.errors import PreflightError, short_reason

_PREFIX = "batchverify-run-"
# No space, a quota that is used up, a limit on the size of files (ulimit -f).
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDY = "free space there, or set TMPDIR to a folder that has some"
_current_folders: set[str] = set()


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Gives the path of a new folder, and deletes the folder at the end.

    Raises:
        PreflightError: If no folder can be made.
    """
    _delete_unlocked_folders()
    folder, lock = _make_locked_folder()
    _current_folders.add(folder)
    try:
        yield folder
    finally:
        _current_folders.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def temporary_copy(subject: str) -> Iterator[None]:
    """Turns the errors of a full disk, while a copy is written to a temporary folder, into a sentence.

    Args:
        subject: What is copied, for the sentence.

    Raises:
        PreflightError: If the disk is full, or files are limited to a size below that of the copy.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise PreflightError(
            f"{subject}: it cannot be copied to the temporary folder {tempfile.gettempdir()} ({error.strerror}); {_REMEDY}."
        ) from None


def _delete_current_folders() -> None:
    for folder in tuple(_current_folders):
        shutil.rmtree(folder, ignore_errors=True)


shutdown.register_clean_up(_delete_current_folders)


def _make_locked_folder() -> tuple[str, int]:
    """Returns a new folder and the handle that locks it."""
    while True:
        try:
            folder = tempfile.mkdtemp(prefix=_PREFIX)
        except OSError as error:
            raise PreflightError(f"no temporary folder can be made ({short_reason(error)}); {_REMEDY}.") from None
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            # On a file system without locks nobody else can lock the folder either, and so nobody deletes it.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.isdir(folder):
                return folder, lock
            os.close(lock)
        # Another process has deleted the folder before it was locked.


def _delete_unlocked_folders() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # A folder of another user cannot be opened, and the folder of a living process cannot be locked.
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
