"""A folder of small files for this user alone, in the user's cache: nobody else can have written what is read from it."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class PrivateFolder:
    """An open folder. Its files are found from the folder itself, so that it does not matter who renames it.

    Args:
        descriptor: The folder, open.
        max_bytes: The size that all files together may have; the files that were used the longest time ago go first.
    """

    def __init__(self, descriptor: int, max_bytes: int):
        self._folder, self._max_bytes = descriptor, max_bytes

    def read(self, name: str) -> bytes | None:
        """Returns a file's content, and marks the file as used; None if there is no such file, or it is too large.

        Raises:
            OSError: If it cannot be read.
            PermissionError: If another user can have written it.
        """
        try:
            descriptor = os.open(name, _READ, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not _is_private(status):
                raise PermissionError(f"{name} is not a file of this user alone")
            if status.st_size > self._max_bytes:
                return None
            with contextlib.suppress(OSError):  # It is then among the first to go.
                os.utime(file.fileno())
            return file.read()

    def write(self, name: str, data: bytes) -> bool:
        """Writes a file whole, or not at all, and returns whether it was written; what is too large is not.

        Raises:
            OSError: If it cannot be written.
        """
        if len(data) > self._max_bytes:
            return False
        self._make_room(len(data))
        unfinished = f".{secrets.token_hex(8)}"
        try:
            with open(os.open(unfinished, _CREATE, 0o600, dir_fd=self._folder), "wb") as file:
                file.write(data)
            os.rename(unfinished, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except BaseException:
            self.remove(unfinished)
            raise
        return True

    def remove(self, name: str) -> None:
        """Removes a file, if it is there and can be removed."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._folder)

    def _make_room(self, size: int) -> None:
        files = []
        for name in os.listdir(self._folder):
            with contextlib.suppress(FileNotFoundError):  # Another process has removed it.
                status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
                files.append((status.st_mtime, name, status.st_size))
        total = size + sum(each for *_, each in files)
        for _, name, each in sorted(files):
            if total <= self._max_bytes:
                return
            self.remove(name)
            total -= each


@contextlib.contextmanager
def private_folder(name: str, max_bytes: int) -> Iterator[PrivateFolder]:
    """Opens the folder `batchverify/NAME` in the user's cache, and makes it if it is not there.

    The cache is `$XDG_CACHE_HOME`, or `~/.cache` where that is not set or no absolute path, as the XDG Base Directory
    Specification says.

    Args:
        name: The name of the folder.
        max_bytes: The size that its files may have together.

    Raises:
        OSError: If there is no such folder, and none can be made.
        PermissionError: If it belongs to another user, or others may read or write it.
    """
    path = _cache_home() / "batchverify"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(path) as parent:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        with _opened(path / name, parent) as folder:
            if not os.access(path / name, os.W_OK | os.X_OK):
                raise PermissionError(f"{path / name} cannot be written")
            yield PrivateFolder(folder, max_bytes)


@contextlib.contextmanager
def _opened(path: Path, parent: int | None = None) -> Iterator[int]:
    """Opens a folder of this user alone, by its name in `parent` if that is given."""
    folder = os.open(path if parent is None else path.name, _OPEN_FOLDER, dir_fd=parent)
    try:
        if not _is_private(os.fstat(folder)):
            raise PermissionError(f"{path} is open to other users; remove it, or take their rights away")
        yield folder
    finally:
        os.close(folder)


def _cache_home() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if home.is_absolute():
        return home
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from None


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
