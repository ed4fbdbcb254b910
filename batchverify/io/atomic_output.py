"""A file or folder that appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from batchverify.errors import PreflightError


def refuse_folder(option: str, path: str) -> None:
    """Refuses a folder where a file is to be written.

    Args:
        option: The option that names the file.
        path: The path or URI.

    Raises:
        PreflightError: With the remedy.
    """
    if path.endswith("/") or os.path.isdir(path):
        raise PreflightError(f"{option} {path} is a folder, and a file is to be written; name a file.")


def refuse_other_contents(option: str, path: str, names: Collection[str]) -> None:
    """Refuses a path whose folder is to be replaced, unless that holds nothing but some files or does not exist.

    Args:
        option: The option that names the folder.
        path: The path of the folder.
        names: The names of the files that it may hold.

    Raises:
        PreflightError: With the remedy.
    """
    if not os.path.isdir(path):
        if os.path.lexists(path):
            raise PreflightError(f"{option} {path} is no folder, and a folder is to be written; name another one.")
        return
    with os.scandir(path) as entries:
        if others := sorted(entry.name for entry in entries if entry.name not in names or entry.is_dir()):
            raise PreflightError(
                f"{option} {path} holds '{others[0]}', which would be deleted with the folder; move it, or name another one."
            )


@contextmanager
def atomic_output(path: str) -> Iterator[str]:
    """Gives a name beside `path` to write to; at the end what is written replaces `path`, and after an error it is deleted.

    Args:
        path: A file on this machine, which may exist.

    Raises:
        OSError: If `path` is a folder, which stays as it is.
    """
    with _unfinished(path) as unfinished:
        yield unfinished
        os.replace(unfinished, path)


@contextmanager
def atomic_folder(option: str, path: str, names: Collection[str]) -> Iterator[str]:
    """Gives a new folder beside `path` to write to; at the end it replaces `path`, and after an error it is deleted.

    Args:
        option: The option that names the folder.
        path: A folder on this machine, which may exist, and may hold only files of the same names then.
        names: The names of the files that are written.

    Raises:
        PreflightError: If `path` is no folder, or holds other files.
    """
    refuse_other_contents(option, path, names)
    place = os.path.realpath(path)
    with _unfinished(place) as unfinished:
        os.mkdir(unfinished)
        yield unfinished
        refuse_other_contents(option, path, names)
        _replace_folder(unfinished, place)


def _replace_folder(folder: str, path: str) -> None:
    """Moves a folder to a path; if that fails, the folder that was there is moved back."""
    replaced = f"{folder}.replaced"
    try:
        if os.path.isdir(path):
            os.rename(path, replaced)
        os.rename(folder, path)
    except BaseException:
        if os.path.isdir(replaced) and not os.path.lexists(path):
            os.rename(replaced, path)
        raise


@contextmanager
def _unfinished(path: str) -> Iterator[str]:
    """Gives a name in a new folder beside `path`, and deletes that folder at the end."""
    beside = os.path.dirname(os.path.abspath(path))
    os.makedirs(beside, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".batchverify-", dir=beside) as temporary:
        yield os.path.join(temporary, "unfinished")
