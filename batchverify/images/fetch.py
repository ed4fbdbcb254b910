"""The bytes of an image file, from any file system that Beam opens."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from typing import NamedTuple

from apache_beam.io.filesystems import FileSystems

from batchverify import errors
from batchverify.errors import short_reason
from batchverify.images.failure import ImageFailure
from batchverify.io import object_store
from batchverify.io.filesystem import open_for_reading, read_stream
from batchverify.io.storage_options import current_storage_options
from batchverify.schema import ImageStatus
from batchverify.uris import is_remote

_MISSING = {errno.ENOENT, errno.ENOTDIR}
_DENIED = {errno.EACCES, errno.EPERM}
_ABSENT, _FORBIDDEN = re.compile(r"\b404\b|Not Found|NoSuch"), re.compile(r"\b(401|403)\b|Forbidden")
_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.2
# How long two changes may bear the same time: of the systems that count in seconds, and of all others.
_COARSE_TICK_NS, _TICK_NS = 2 * 10**9, 50 * 10**6


_NO_OBJECT = ImageFailure(ImageStatus.MISSING, "there is no such object")
_NO_ACCESS = ImageFailure(ImageStatus.DENIED, "it may not be read")
_BY_CODE: dict[int | None, ImageFailure] = {404: _NO_OBJECT, 401: _NO_ACCESS, 403: _NO_ACCESS}


class FetchedFile(NamedTuple):
    """What a file system gave.

    Attributes:
        data: the file's bytes; none if they were not asked for.
        version: see `Read`.
    """

    data: bytes
    version: str | None


def fetch_bytes(uri: str, max_bytes: int, root: str | None = None, limit_s: float = 60.0) -> bytes | ImageFailure:
    """Returns the bytes of the file at `uri`: a local path, or a URI of any file system that Beam opens.

    Args:
        uri: of the file.
        max_bytes: a file of more is `too_large`.
        root: folder outside of which nothing is opened, or None.
        limit_s: seconds that it may take in all; after half of them nothing is tried again.
    """
    file = fetch_file(uri, max_bytes, root, limit_s, want_version=False)
    return file if isinstance(file, ImageFailure) else file.data


def fetch_file(
    uri: str, max_bytes: int, root: str | None = None, limit_s: float = 60.0, want_version: bool = True, want_data: bool = True
) -> FetchedFile | ImageFailure:
    """Returns bytes and version of the file at `uri`, as much of both as is wanted.

    The version is that of the bytes or an older one, so that a file that changes meanwhile is never filed as what it became.
    """
    if root is not None:
        confined = _confined(uri, root)
        if confined is None:
            return ImageFailure(ImageStatus.OUTSIDE_ROOT, f"it lies outside of {root}")
        uri = confined
    pause, last_try = _FIRST_PAUSE_S, time.monotonic() + limit_s / 2
    for attempt in range(_ATTEMPTS):
        if is_remote(uri):
            file = _find_in_store(uri, max_bytes, last_try, want_version, want_data)
        else:
            file = _find_local(uri, max_bytes, want_data)
        if isinstance(file, FetchedFile) or file.status is not ImageStatus.UNAVAILABLE:
            break
        if attempt + 1 < _ATTEMPTS and time.monotonic() + pause < last_try:
            time.sleep(pause)
            pause *= 4
    if want_data and isinstance(file, FetchedFile) and not file.data:
        return ImageFailure(ImageStatus.EMPTY, "the file has no bytes")
    return file


def _find_local(path: str, max_bytes: int, want_data: bool) -> FetchedFile | ImageFailure:
    try:
        # Without O_NONBLOCK the opening of a FIFO would wait for a writer that never comes.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                return ImageFailure(ImageStatus.UNREADABLE, "it is not a file")
            if found.st_size > max_bytes:
                return _too_many_bytes(found.st_size, max_bytes)
            version = _version(found.st_size, found.st_mtime_ns)
            if not want_data:
                return FetchedFile(b"", version)
            with open(handle, "rb", closefd=False) as file:
                data = file.read(found.st_size + 2**16)  # It may have grown; and /proc gives all its files a size of 0.
                return FetchedFile(data, version) if len(data) <= max_bytes else _too_many_bytes(None, max_bytes)
        finally:
            os.close(handle)
    except ValueError as error:  # a NUL in the path
        return ImageFailure(ImageStatus.MISSING, str(error))
    except OSError as error:
        if error.errno in _MISSING:
            return ImageFailure(ImageStatus.MISSING, "there is no such file")
        if error.errno in _DENIED:
            return ImageFailure(ImageStatus.DENIED, "it may not be read")
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO):
            return ImageFailure(ImageStatus.MISSING, os.strerror(error.errno))
        return ImageFailure(ImageStatus.UNAVAILABLE, short_reason(error))


def _version(size: int, changed_ns: int) -> str | None:
    """Returns a version made of a file's size and the time of its last change.

    None if that is so recent that a change after this one might get the same time, which git calls racily clean.
    """
    tick_ns = _COARSE_TICK_NS if changed_ns % 10**9 == 0 else _TICK_NS
    return None if abs(time.time_ns() - changed_ns) <= tick_ns else f"{size}-{changed_ns}"


def _find_in_store(
    uri: str, max_bytes: int, last_try: float, want_version: bool, want_data: bool
) -> FetchedFile | ImageFailure:
    version = _store_version(uri) if want_version else None
    if not want_data:
        return version if isinstance(version, ImageFailure) else FetchedFile(b"", version)
    data = _read_store(uri, max_bytes, last_try)
    return data if isinstance(data, ImageFailure) else FetchedFile(data, None if isinstance(version, ImageFailure) else version)


def _store_version(uri: str) -> str | ImageFailure | None:
    try:
        if uri.startswith("s3://"):
            return FileSystems.checksum(uri)  # The etag; S3 tells times by the second.
        found = FileSystems.get_filesystem(uri).metadata(uri)
    except NotImplementedError:  # nor does every file system have to
        return None
    except Exception as error:  # Beam wraps whatever the store's client raises.
        return _store_failure(uri, error)
    if found is None or not found.last_updated_in_seconds:
        return None
    return _version(found.size_in_bytes, round(found.last_updated_in_seconds * 1e6) * 1000)


def _read_store(uri: str, max_bytes: int, last_try: float) -> bytes | ImageFailure:
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
    except Exception as error:  # Beam wraps whatever the store's client raises.
        return _store_failure(uri, error)
    return data if len(data) <= max_bytes else _too_many_bytes(None, max_bytes)


def _store_failure(uri: str, error: Exception) -> ImageFailure:
    words = short_reason(error)
    if isinstance(error, ValueError) and "filesystem" in words.lower():
        return ImageFailure(ImageStatus.UNSUPPORTED, f"no file system is installed for {uri.split('://')[0]}://")
    # Numbers in the URI itself, a port or a name, are no status of the store's.
    said = str(error).replace(uri, "")
    if isinstance(error, FileNotFoundError) or _ABSENT.search(said):
        return _NO_OBJECT
    if isinstance(error, PermissionError) or _FORBIDDEN.search(said):
        return _NO_ACCESS
    return ImageFailure(ImageStatus.UNAVAILABLE, words)


def _too_many_bytes(size: int | None, max_bytes: int) -> ImageFailure:
    found = f"{size} bytes, more than {max_bytes}" if size else f"more than {max_bytes} bytes"
    return ImageFailure(ImageStatus.TOO_LARGE, f"{found} (--max-image-bytes)")


def _confined(uri: str, root: str) -> str | None:
    """Returns where to open `uri`, every link in it resolved, or None if that is outside of `root`."""
    if is_remote(uri):
        return uri if uri.startswith(root.rstrip("/") + "/") and ".." not in uri.split("/") else None
    try:
        real_root, real = os.path.realpath(root), os.path.realpath(uri)
        return real if not is_remote(root) and os.path.commonpath([real_root, real]) == real_root else None
    except ValueError:  # a NUL in the path, or what no file name can be; there is no such file anywhere
        return uri
