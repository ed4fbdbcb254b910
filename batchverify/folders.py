"""A directory on any file system that Beam opens: names, small texts, and a lock where the directory is on this machine."""

from __future__ import annotations

import fcntl
import os

from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from batchverify.config import Refused


class Folder:
    """What run directories and stores of embeddings have in common.

    Args:
        path: of the directory.
    """

    OPTION = ""  # that names it on the command line

    def __init__(self, path: str):
        self.path = path.rstrip("/") or "/"

    def _lock(self) -> int:
        """Locks the directory itself, which leaves no file behind and ends with the process, however that ends.

        Raises:
            Refused: if another process has locked it.
        """
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise Refused(
                f"{self.OPTION} {self.path}: another run writes there now; wait for it, or name another one."
            ) from None
        return handle

    def _read(self, name: str) -> str:
        with FileSystems.open(self._join(name), compression_type=CompressionTypes.UNCOMPRESSED) as file:
            return file.read().decode()

    def _join(self, *names: str) -> str:
        return FileSystems.join(self.path, *names)

    def _match(self, pattern: str) -> list[FileMetadata]:
        return FileSystems.match([self._join(*pattern.split("/"))])[0].metadata_list

    def _write(self, name: str, text: str) -> None:
        with FileSystems.create(self._join(name), compression_type=CompressionTypes.UNCOMPRESSED) as file:
            file.write(text.encode())
