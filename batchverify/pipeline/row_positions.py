"""The positions of the images that rows name, kept in a file from the first reading of a manifest to the second one."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import IO

import numpy as np

from batchverify.errors import short_reason

_LOG = logging.getLogger(__name__)
_LARGEST = np.iinfo(np.int32).max


class RowPositions:
    """Positions by block, in a temporary file without a name, which takes 8 bytes a row.

    A position that is not known, for whatever reason, is -1: whoever asks looks it up by the image's URI.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self._is_full = False

    def put(self, key: str, left: np.ndarray, right: np.ndarray) -> None:
        """Keeps the positions of a block's images.

        Args:
            key: The key of the block.
            left: The positions of the left images, int64 `(n,)`; -1 for one that is not known.
            right: Those of the right images.
        """
        if self._is_full:
            return
        positions = np.stack([left, right])
        positions[positions > _LARGEST] = -1
        try:
            place = self._append(positions.astype(np.int32).tobytes())
        except OSError as error:
            self._is_full = True
            _LOG.warning(
                "No more positions of images can be kept in a temporary file (%s), so that the second reading takes longer; "
                "free space, or set TMPDIR to a folder that has some.",
                short_reason(error),
            )
        else:
            self._places[key] = place, len(left)

    def get(self, key: str) -> np.ndarray | None:
        """Returns the positions of a block's left and right images, int64 `(2, n)`; None if they are not kept."""
        if self._file is None or key not in self._places:
            return None
        place, rows = self._places[key]
        kept = os.pread(self._file.fileno(), 8 * rows, place)
        return np.frombuffer(kept, np.int32).reshape(2, rows).astype(np.int64)

    def _append(self, content: bytes) -> int:
        """Writes at the end of the file, and returns where that was."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="batchverify-positions-", buffering=0)  # noqa: SIM115  # It is for the whole run.
        place = self._file.seek(0, os.SEEK_END)
        left = memoryview(content)
        while left:  # A disk that is nearly full takes a part.
            left = left[self._file.write(left) :]
        return place
