"""Opens, reads and writes files on any file system that Beam knows: the only place that opens one through Beam.

All functions but `open_input` let the errors of the file system through. Beam wraps whatever the store's client raises, so
callers that must report a failure catch `Exception`.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import glob
import os
import re
import stat
import uuid
from collections.abc import Callable, Collection, Iterable
from typing import Any

from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from batchverify.errors import PreflightError, short_reason
from batchverify.uris import is_remote

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
# Files in these folders have no size that is true, and may have another content whenever they are read.
_SYSTEM_FOLDERS = ("/proc/", "/sys/")
# What a file system answers that cannot sync a file or a folder, such as one that shows a bucket.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NOT_FOUND = re.compile(r"\b404\b|Not ?Found|NoSuch")


def open_for_reading(path: str) -> Any:
    """Returns a binary file with the bytes as they are stored; without this setting, Beam decompresses by the file's name.

    Raises:
        OSError: If it is a pipe, or another file on this machine that cannot be read twice. A run reads some files several
            times, and to open a pipe would wait for a writer that may never come.
    """
    if not is_remote(path):
        _refuse_special_file(path)
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def _refuse_special_file(path: str) -> None:
    """Raises an error if a path on this machine names neither a file nor a folder, or lies in a folder of the system."""
    try:
        kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):  # To open it fails too, with the better message.
        return
    if kind is None and os.path.realpath(path).startswith(_SYSTEM_FOLDERS):
        kind = "a file that the system makes up"
    if kind is not None:
        raise OSError(f"it is {kind}, which can be read only once; save its content as a file and name that")


@functools.cache
def system_devices() -> frozenset[int]:
    """Returns the devices, as `os.stat_result.st_dev` names them, whose files the system makes up."""
    return frozenset(os.stat(folder).st_dev for folder in _SYSTEM_FOLDERS if os.path.ismount(folder))


def open_input(path: str) -> Any:
    """Returns a binary file that the user has named, with the bytes as they are stored.

    Raises:
        PreflightError: If it cannot be opened.
    """
    try:
        return open_for_reading(path)
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"{path}: it cannot be opened ({short_reason(error)}); check the path and your access.") from None


def open_for_writing(path: str) -> Any:
    """Returns a new binary file, which stores the bytes as they are given."""
    return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_bytes(path: str, max_bytes: int = -1) -> bytes:
    """Returns the content of a file, or its first `max_bytes` bytes."""
    with open_for_reading(path) as file:
        return bytes(file.read(max_bytes))


def read_stream(file: Any, max_bytes: int) -> bytes:
    """Returns the content of a file, or its first `max_bytes` + 1 bytes; a store's client may return less than is requested."""
    data = b""
    while len(data) <= max_bytes and (more := file.read(max_bytes + 1 - len(data))):
        data += more
    return data


def read_text(path: str) -> str:
    """Returns the content of a UTF-8 file."""
    return read_bytes(path).decode()


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file, in place of any that is there."""
    with open_for_writing(path) as file:
        file.write(data)


def write_text(path: str, text: str) -> None:
    """Writes a UTF-8 file, in place of any that is there."""
    write_bytes(path, text.encode())


def write_whole(path: str, data: bytes) -> None:
    """Writes a file that appears whole or not at all, also after a loss of power, in place of any that is there.

    An object store shows a new object only once it is complete.
    """
    if is_remote(path):
        write_bytes(path, data)
        return
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    unfinished = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        raise
    _sync(folder or ".")


def sync_files(paths: Iterable[str]) -> None:
    """Waits until files on this machine, and their places in their folders, outlast a loss of power; a store needs no wait."""
    local = [path for path in paths if not is_remote(path)]
    for path in (*local, *{os.path.dirname(path) or "." for path in local}):
        _sync(path)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(handle)


def list_files(pattern: str) -> list[str]:
    """Returns the paths of the files that a pattern matches; none where the store has no such file, folder or bucket.

    A file on this machine that is named just so is the only match, whatever brackets its name has.
    """
    if not is_remote(pattern):
        found = [pattern] if os.path.lexists(pattern) else glob.glob(pattern, recursive=True)
        return [path for path in found if not os.path.isdir(path)]
    try:
        return [match.path for match in FileSystems.match([pattern])[0].metadata_list]
    except Exception as error:  # Some stores raise an error for a bucket that is not there, others match nothing.
        if says_not_found(error, pattern):
            return []
        raise


def list_folder(folder: str, pattern: str) -> list[FileMetadata]:
    """Returns the files in a folder that a pattern matches; brackets and stars in the folder's own name mean themselves."""
    path = f"{glob.escape(folder.rstrip('/'))}/{pattern}"
    if is_remote(folder):
        return list(FileSystems.match([path])[0].metadata_list)
    # Beam would walk through every folder beside one with a bracket in its name.
    files = filter(os.path.isfile, sorted(glob.glob(path, recursive=True, include_hidden=True)))
    return [FileMetadata(file, os.path.getsize(file), os.path.getmtime(file)) for file in files]


def walk_folders(pattern: str) -> list[str]:
    """Returns the paths of all files in the folders that a pattern matches, and in their folders, also those behind links."""
    if is_remote(pattern):
        return list_files(f"{pattern.rstrip('/')}/**")
    seen, files = set(), []
    for folder in [pattern] if os.path.isdir(pattern) else glob.glob(pattern, recursive=True):
        for path, folders, names in os.walk(folder, followlinks=True):
            if os.path.realpath(path) in seen:  # A link may lead to a folder above it.
                folders.clear()
                continue
            seen.add(os.path.realpath(path))
            files += [os.path.join(path, name) for name in names]
    return files


def files_by_folder(folder: str, is_leaf: Callable[[Collection[str]], bool]) -> dict[str, list[str]]:
    """Returns the names of the files in each folder below `folder`, by the folder's path relative to it.

    On this machine, empty folders are among them, links to folders are not followed, and folders within one whose files
    satisfy `is_leaf` are not looked into. A store has no empty folders; it lists all its objects' names.

    Raises:
        FileNotFoundError: If there is no such folder on this machine.
    """
    if is_remote(folder):
        prefix, found = f"{folder.rstrip('/')}/", collections.defaultdict(list)
        for match in list_folder(folder, "**"):
            parent, _, name = match.path.removeprefix(prefix).rpartition("/")
            found[parent].append(name)
        return dict(found)
    files = {}
    for path, folders, names in os.walk(folder, onerror=_raise):
        files["" if path == folder else os.path.relpath(path, folder)] = names
        if is_leaf(names):
            folders.clear()
    return files


def _raise(error: OSError) -> None:
    raise error


def says_not_found(error: Exception, uri: str) -> bool:
    """Returns whether an error of a store's client says that there is no file, folder or bucket of that name."""
    # A number within the URI itself, such as a port, is no status of the store.
    return isinstance(error, FileNotFoundError) or _NOT_FOUND.search(str(error).replace(uri, "")) is not None


def file_size(path: str) -> int:
    """Returns the size of a file in bytes."""
    return int(FileSystems.get_filesystem(path).metadata(path).size_in_bytes)
