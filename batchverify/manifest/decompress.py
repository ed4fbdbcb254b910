"""The bytes of CSV files, decompressed according to the endings of their names."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from batchverify.io.filesystem import open_input, read_stream

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_MEASURED_BYTES, _MAX_MEASURED_TEXT_BYTES = 2**18, 2**28
_TAKE_BACK_WITHIN_S = 10.0
# Arrow's reader of CSV files reads up to 32 blocks ahead, which would be most of a large file.
_BLOCKS_AHEAD = 2
_WITHOUT_ROWS_S = 0.5

Lent = TypeVar("Lent")


def compression_of(path: str) -> str | None:
    """Returns the compression that the ending of a file's name stands for, or None."""
    return next((kind for ending, kind in _COMPRESSIONS.items() if path.lower().endswith(ending)), None)


def measure_expansion(path: str) -> float:
    """Returns how many bytes of text a byte of a compressed file gives at its start; 1 for other files.

    It stops at a thousand bytes for a byte, which is what gzip reaches with one byte repeated.
    """
    kind = compression_of(path)
    if kind is None:
        return 1.0
    with open_input(path) as file:
        start = read_stream(file, _MEASURED_BYTES)
    text, size = pa.CompressedInputStream(pa.BufferReader(start), kind), 0
    try:
        while size < _MAX_MEASURED_TEXT_BYTES and (data := text.read(2**14)):
            size += len(data)
    except (pa.ArrowException, OSError):  # The rest of the file is missing here.
        pass
    return size / max(1, len(start))


class DecompressedFile(io.RawIOBase):
    """The bytes of a CSV file, decompressed according to the ending of its name.

    Args:
        path: The name of the file.
        file: The file, open at its start.

    Attributes:
        quotes: The number of quotes in the bytes that were read. Where it is odd, one may be open at the end.
    """

    def __init__(self, path: str, file: Any):
        super().__init__()
        kind = compression_of(path)
        # Arrow's decompressors report a truncated file; Beam's file systems end such a file without an error.
        self._source = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), kind) if kind else file
        self._stopped = False
        self._lent: list[weakref.ref[Any]] = []
        self._returned: queue.SimpleQueue[weakref.ref[Any]] = queue.SimpleQueue()
        self._progress, self._lead, self._is_awaited = threading.Condition(), 0, True
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        data = b"" if self._stopped else bytes(self._source.read(size))
        self.quotes += data.count(b'"')
        return data

    def lend(self) -> pa.PythonFile:
        """Returns a file for Arrow that reads from this one; call `stop`, delete Arrow's reader, and call `take_back`."""
        return pa.PythonFile(self.lend_object(_Borrower(self)), mode="r")

    def lend_object(self, lent: Lent) -> Lent:
        """Has `take_back` wait until Arrow no longer holds an object, which the caller must not keep."""
        # The callback is not written in Python, so that no other thread can run, and end the process, before it has returned.
        self._lent.append(weakref.ref(lent, self._returned.put))
        return lent

    @contextlib.contextmanager
    def next_block(self) -> Iterator[None]:
        """A context in which Arrow's reader is asked for one batch. It reads only a few blocks ahead of these."""
        self._advance(is_awaited=True)
        yield
        self._advance(is_awaited=False, blocks=1)

    def stop(self) -> None:
        """Has Arrow find the end of the file from now on. When its reader is deleted, that waits for a read which has begun."""
        self._stopped = True
        self._advance(is_awaited=False)

    def take_back(self) -> None:
        """Waits until Arrow no longer uses anything that was lent.

        Arrow reads ahead in a thread of its own, also after its reader has failed. If that thread needs Python when the process
        ends, the process aborts.
        """
        give_up_at = time.monotonic() + _TAKE_BACK_WITHIN_S
        with contextlib.suppress(queue.Empty):
            for _ in self._lent:
                self._returned.get(timeout=max(0.0, give_up_at - time.monotonic()))

    def _advance(self, is_awaited: bool, blocks: int = 0) -> None:
        with self._progress:
            self._is_awaited = is_awaited
            # Blocks without rows, for which there was no batch, must not slow down those after them.
            self._lead = min(self._lead - blocks, _BLOCKS_AHEAD - 1) if blocks else self._lead
            self._progress.notify_all()

    def _wait_for_turn(self) -> None:
        """Waits until Arrow may read another block.

        A block may give no rows, so that Arrow needs another one: somebody who waits for rows does not wait for long.
        """
        with self._progress:
            while self._lead >= _BLOCKS_AHEAD and not self._stopped:
                if not self._progress.wait(_WITHOUT_ROWS_S) and self._is_awaited:
                    break
            self._lead += 1


class _Borrower(io.RawIOBase):
    """What Arrow holds of a `DecompressedFile`; it is deleted when Arrow's last thread is done with it."""

    def __init__(self, file: DecompressedFile):
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> np.ndarray:
        self._file._wait_for_turn()
        return self._file.lend_object(np.frombuffer(self._file.read(size), np.uint8))
