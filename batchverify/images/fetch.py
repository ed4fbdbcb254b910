"""The bytes of an image file, from any file system that Beam opens."""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
import time
from typing import NamedTuple, cast

from apache_beam.io.filesystems import FileSystems

from batchverify import errors
from batchverify.errors import short_reason
from batchverify.images.failure import ImageFailure
from batchverify.io import object_store
from batchverify.io.filesystem import open_for_reading, read_stream, says_not_found, system_devices
from batchverify.io.storage_options import current_storage_options
from batchverify.schema import ImageStatus
from batchverify.uris import is_remote

_MISSING = {errno.ENOENT, errno.ENOTDIR}
_DENIED = {errno.EACCES, errno.EPERM}
_DENIED_TEXT = re.compile(r"\b(401|403)\b|Forbidden")
_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.2
# Two changes within this time may have the same time stamp: on file systems that count whole seconds, and on all others.
_COARSE_TICK_NS, _TICK_NS = 2 * 10**9, 50 * 10**6
_SPARE_BYTES = 2**16
_OPEN_FILES = "/proc/self/fd"
_BLANK = re.compile(r"/\s")
_HOME_FOLDER = re.compile("(^|/)~[^/]*/")

_NO_OBJECT = ImageFailure(ImageStatus.MISSING, "there is no such object")
_NO_ACCESS = ImageFailure(ImageStatus.DENIED, "it may not be read")
_BY_CODE: dict[int | None, ImageFailure] = {404: _NO_OBJECT, 401: _NO_ACCESS, 403: _NO_ACCESS}


class FetchedFile(NamedTuple):
    """The content and the version of a file.

    Attributes:
        data: The file's bytes; empty if they were not asked for.
        version: The file system's version of the file; see `ReadResult.version`.
    """

    data: bytes
    version: str | None


def fetch_bytes(uri: str, max_bytes: int, root: str | None = None, timeout_s: float = 60.0) -> bytes | ImageFailure:
    """Returns the bytes of the file at `uri`.

    Args:
        uri: A local path, or a URI of any file system that Beam opens.
        max_bytes: The largest size; a file with more bytes is `too_large`.
        root: The folder that the file must lie in; None allows all places.
        timeout_s: The seconds that it may take in all; no further attempt begins after half of them.
    """
    file = fetch_file(uri, max_bytes, root, timeout_s, with_version=False)
    return file if isinstance(file, ImageFailure) else file.data


def fetch_file(
    uri: str,
    max_bytes: int,
    root: str | None = None,
    timeout_s: float = 60.0,
    with_version: bool = True,
    with_data: bool = True,
) -> FetchedFile | ImageFailure:
    """Returns the bytes of the file at `uri`, its version, or both.

    The version is never newer than the bytes, so that the embedding of an old content is never stored under a new version.
    """
    if root is not None and (is_remote(uri) or is_remote(root)) and not _is_below(uri, root):
        return _outside(root)
    file = _fetch_with_retries(uri, max_bytes, root, time.monotonic() + timeout_s / 2, with_version, with_data)
    if with_data and isinstance(file, FetchedFile) and not file.data:
        return ImageFailure(ImageStatus.EMPTY, "the file has no bytes")
    return file


def _fetch_with_retries(
    uri: str, max_bytes: int, root: str | None, last_try: float, with_version: bool, with_data: bool
) -> FetchedFile | ImageFailure:
    pause = _FIRST_PAUSE_S
    for attempt in range(_ATTEMPTS):
        if is_remote(uri):
            file = _fetch_from_store(uri, max_bytes, last_try, with_version, with_data)
        else:
            file = _fetch_local(uri, max_bytes, root, with_data)
        if isinstance(file, FetchedFile) or file.status is not ImageStatus.UNAVAILABLE:
            break
        if attempt + 1 < _ATTEMPTS and time.monotonic() + pause < last_try:
            time.sleep(pause)
            pause *= 4
    return _with_blanks_told(file, uri)


def _with_blanks_told(file: FetchedFile | ImageFailure, uri: str) -> FetchedFile | ImageFailure:
    """Returns what was fetched; a missing file's error says where a blank, which nobody sees, stands in its name."""
    if isinstance(file, FetchedFile) or file.status is not ImageStatus.MISSING:
        return file
    name = uri.rpartition("/")[2]
    if uri[-1:].isspace():
        return ImageFailure(file.status, f"{file.error}; its name ends with a blank")
    if name[:1].isspace():
        return ImageFailure(file.status, f"{file.error}; its name begins with a blank")
    # A blank before a whole path or URI makes it one that begins in the manifest's folder.
    return ImageFailure(file.status, f"{file.error}; a part of its path begins with a blank") if _BLANK.search(uri) else file


def _fetch_local(path: str, max_bytes: int, root: str | None, with_data: bool) -> FetchedFile | ImageFailure:
    try:
        real_root = None if root is None else os.path.realpath(root)
        place = path if real_root is None else _resolve_within(path, real_root)
        file = None if place is None else _open_and_read(place, max_bytes, real_root, with_data)
        return file or _outside(root)
    except ValueError as error:  # The path holds a NUL.
        return ImageFailure(ImageStatus.MISSING, str(error))
    except RecursionError:  # Python resolves links by recursion, and Linux follows 40 at most.
        return _local_failure(OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
    except MemoryError:
        return ImageFailure(ImageStatus.TOO_LARGE, "there is not enough memory to read it")
    except OSError as error:
        failure = _local_failure(error)
        if failure.status is ImageStatus.MISSING and _HOME_FOLDER.search(path):
            return ImageFailure(ImageStatus.MISSING, f"{failure.error} (~ stands for no folder in a manifest)")
        return failure


def _open_and_read(path: str, max_bytes: int, real_root: str | None, with_data: bool) -> FetchedFile | ImageFailure | None:
    """Returns a file or its failure; None if the file turns out to lie outside of `real_root` once it is open."""
    # Without O_NONBLOCK, opening a FIFO would wait for a writer that never comes.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Somebody may have put a link in the place of a folder since `path` was resolved.
        if real_root is not None and _has_open_files() and not _is_within(os.readlink(f"{_OPEN_FILES}/{handle}"), real_root):
            return None
        return _read_local(handle, max_bytes, with_data)
    finally:
        os.close(handle)


@functools.cache
def _has_open_files() -> bool:
    """Returns whether the system shows where each open file lies, as Linux does."""
    return os.path.isdir(_OPEN_FILES)


def _read_local(handle: int, max_bytes: int, with_data: bool) -> FetchedFile | ImageFailure:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        return ImageFailure(ImageStatus.UNREADABLE, "it is not a file")
    if status.st_dev in system_devices():
        return ImageFailure(ImageStatus.UNREADABLE, "it is not a file, but text that the system makes up")
    if status.st_size > max_bytes:
        return _too_many_bytes(status.st_size, max_bytes)
    version = _version(status.st_size, status.st_mtime_ns)
    if not with_data:
        return FetchedFile(b"", version)
    data = _read_up_to(handle, status.st_size + _SPARE_BYTES)  # The file may have grown since.
    return FetchedFile(data, version) if len(data) <= max_bytes else _too_many_bytes(None, max_bytes)


def _read_up_to(handle: int, size: int) -> bytes:
    """Reads a file up to its end, or `size` bytes; a file object would cost more than the reading of a small file."""
    data = part = os.read(handle, size)
    while part and len(data) < size:
        part = os.read(handle, size - len(data))
        data += part
    return data


def _local_failure(error: OSError) -> ImageFailure:
    if error.errno in _MISSING:
        return ImageFailure(ImageStatus.MISSING, "there is no such file")
    if error.errno in _DENIED:
        return ImageFailure(ImageStatus.DENIED, "it may not be read")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO):
        return ImageFailure(ImageStatus.MISSING, os.strerror(error.errno))
    return ImageFailure(ImageStatus.UNAVAILABLE, short_reason(error))


def _version(size: int, changed_ns: int) -> str | None:
    """Returns a version made of a file's size and the time of its last change.

    Returns None if that time is so recent that a later change might get the same time stamp; git calls such a file racily
    clean.
    """
    tick_ns = _COARSE_TICK_NS if changed_ns % 10**9 == 0 else _TICK_NS
    return None if abs(time.time_ns() - changed_ns) <= tick_ns else f"{size}-{changed_ns}"


def _fetch_from_store(
    uri: str, max_bytes: int, last_try: float, with_version: bool, with_data: bool
) -> FetchedFile | ImageFailure:
    version = _store_version(uri) if with_version else None
    if not with_data:
        return version if isinstance(version, ImageFailure) else FetchedFile(b"", version)
    data = _read_from_store(uri, max_bytes, last_try)
    return data if isinstance(data, ImageFailure) else FetchedFile(data, None if isinstance(version, ImageFailure) else version)


def _store_version(uri: str) -> str | ImageFailure | None:
    try:
        if uri.startswith("s3://"):
            # The checksum is the ETag; S3's times count whole seconds.
            return cast(str, FileSystems.checksum(uri))
        metadata = FileSystems.get_filesystem(uri).metadata(uri)
    except NotImplementedError:  # A file system need not have metadata.
        return None
    except Exception as error:  # Beam wraps every exception of the store's client.
        return _store_failure(uri, error)
    if metadata is None or not metadata.last_updated_in_seconds:
        return None
    return _version(metadata.size_in_bytes, round(metadata.last_updated_in_seconds * 1e6) * 1000)


def _read_from_store(uri: str, max_bytes: int, last_try: float) -> bytes | ImageFailure:
    try:
        if object_store.has_client(uri):
            data = object_store.read_object(uri, max_bytes, max(1.0, last_try - time.monotonic()), current_storage_options())
        else:
            with open_for_reading(uri) as file:
                data = read_stream(file, max_bytes)
    except errors.StoreError as failure:
        return _BY_CODE.get(
            failure.code, ImageFailure(ImageStatus.UNAVAILABLE, f"the store gave no image ({failure.description})")
        )
    except ModuleNotFoundError as error:
        return ImageFailure(ImageStatus.UNSUPPORTED, str(error))
    except Exception as error:  # Beam wraps every exception of the store's client.
        return _store_failure(uri, error)
    return data if len(data) <= max_bytes else _too_many_bytes(None, max_bytes)


def _store_failure(uri: str, error: Exception) -> ImageFailure:
    reason = short_reason(error)
    if isinstance(error, ValueError) and "filesystem" in reason.lower():
        return ImageFailure(ImageStatus.UNSUPPORTED, f"no file system is installed for {uri.split('://')[0]}://")
    if says_not_found(error, uri):
        return _NO_OBJECT
    if isinstance(error, PermissionError) or _DENIED_TEXT.search(str(error).replace(uri, "")):
        return _NO_ACCESS
    return ImageFailure(ImageStatus.UNAVAILABLE, reason)


def _too_many_bytes(size: int | None, max_bytes: int) -> ImageFailure:
    excess = f"{size} bytes, more than {max_bytes}" if size else f"more than {max_bytes} bytes"
    return ImageFailure(ImageStatus.TOO_LARGE, f"{excess} (--max-image-bytes)")


def _outside(root: str | None) -> ImageFailure:
    return ImageFailure(ImageStatus.OUTSIDE_ROOT, f"it lies outside of {root}")


def _is_below(uri: str, root: str) -> bool:
    """Returns whether a URI lies below another one."""
    return uri.startswith(root.rstrip("/") + "/") and ".." not in uri.split("/")


def _resolve_within(path: str, real_root: str) -> str | None:
    """Returns a path with all links resolved, or None if it is outside of `real_root`.

    Raises:
        OSError: If a link within `real_root` cannot be read.
    """
    try:
        place = os.path.realpath(path)
    except OSError as error:  # It names the link that cannot be read, such as those of other users' processes in /proc.
        if error.filename and not _is_within(os.path.abspath(error.filename), real_root):
            return None
        raise
    return place if _is_within(place, real_root) else None


def _is_within(place: str, real_root: str) -> bool:
    return place == real_root or place.startswith(os.path.join(real_root, ""))
