"""A directory on any file system that Beam opens: small texts in it, and the claim that a run has on it while it writes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems

from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.io.filesystem import read_text, write_text
from batchverify.uris import is_remote

_CLAIMED: dict[str, ClaimedDirectory] = {}  # by the claim's name


class ClaimedDirectory:
    """What run directories and stores of embeddings have in common.

    Args:
        path: of the directory.
    """

    OPTION = ""  # that names it on the command line

    def __init__(self, path: str):
        self.path = path.rstrip("/") or "/"

    def discard(self, claim: str) -> None:
        """Deletes what was written under a claim and is not finished."""
        raise NotImplementedError

    def detach(self, claim: str) -> None:
        """Leaves what was written to the run's job, which goes on elsewhere: from now on this process sweeps nothing."""
        _CLAIMED.pop(claim, None)

    @contextmanager
    def _claimed(self, claim: str, take: Callable[[], None]) -> Iterator[None]:
        """Makes the directory if need be and holds it; abandons the claim at the end, unless it was handed over.

        Args:
            claim: its name, of which there is one in a process.
            take: what else there is to do before anything is written under the claim.

        Raises:
            PreflightError: if another run on this machine holds it.
            RunError: if it cannot be written to.
        """
        with ExitStack() as held:
            try:
                if not is_remote(self.path) and not FileSystems.exists(self.path):  # A store knows no folders.
                    FileSystems.mkdirs(self.path)
                if os.path.isdir(self.path):
                    held.callback(os.close, self._lock())
                take()
            except PreflightError:
                raise
            except Exception as error:  # Beam wraps whatever the store's client raises.
                raise RunError(
                    f"{self.OPTION} {self.path} cannot be written ({short_reason(error)}); check the path."
                ) from None
            _CLAIMED[claim] = self
            held.callback(self._let_go, claim)
            yield

    def _let_go(self, claim: str) -> None:
        if claim in _CLAIMED:
            self.discard(claim)
            del _CLAIMED[claim]

    def _lock(self) -> int:
        """Locks the directory itself, which leaves no file behind and ends with the process, however that ends.

        Raises:
            PreflightError: if another process has locked it.
        """
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise PreflightError(
                f"{self.OPTION} {self.path}: another run writes there now; wait for it, or name another one."
            ) from None
        return handle

    def _read(self, name: str) -> str:
        return read_text(self._join(name))

    def _join(self, *names: str) -> str:
        return str(FileSystems.join(self.path, *names))

    def _match(self, pattern: str) -> list[FileMetadata]:
        return list(FileSystems.match([self._join(*pattern.split("/"))])[0].metadata_list)

    def _write(self, name: str, text: str) -> None:
        write_text(self._join(name), text)


def discard_all_claims() -> None:
    """Abandons all claims of this process."""
    for claim, folder in _CLAIMED.items():
        folder.discard(claim)
