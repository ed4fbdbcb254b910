"""64-bit hashes of texts, such as URIs and names of subjects; the same in every process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.manifest.names import column_names

# pandas hashes texts as Python's objects, which take some ten times the memory of Arrow's.
_TEXTS_AT_ONCE = 2**18
_FACTOR, _LAST_FACTOR, _HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(32)


def hash_text(values: pa.Array) -> np.ndarray:
    """Returns a hash of each text, uint64 `(n,)`."""
    hashes = np.empty(len(values), np.uint64)
    for start in range(0, len(values), _TEXTS_AT_ONCE):
        texts = values.slice(start, _TEXTS_AT_ONCE).to_numpy(zero_copy_only=False)
        hashes[start : start + _TEXTS_AT_ONCE] = pd.util.hash_array(texts, categorize=False)
    return hashes


def hash_in_process(values: pa.Array) -> np.ndarray:
    """Returns a hash of each text, uint64 `(n,)`, in half the time of `hash_text`.

    Nothing that outlives the process may depend on it: it differs between processors, and who knows the factors can make
    texts of one hash. Eight bytes at a time are mixed in by an odd factor and a shift, as MurmurHash3's last step does it.

    Args:
        values: Text without nulls.
    """
    offsets, text = _bytes_of(values)
    # Each read of eight bytes that end with a text is inside the array.
    padded = np.concatenate([np.zeros(8, np.uint8), text])
    words = np.ndarray((len(padded) - 7,), np.uint64, padded, strides=(1,))
    starts, ends = offsets[:-1] + 8, offsets[1:]
    lengths = np.diff(offsets)
    whole, rest = np.divmod(lengths, 8)
    hashes: np.ndarray = lengths.astype(np.uint64) * _LAST_FACTOR
    for word in range(whole.max(initial=0)):
        rows = slice(None) if word < whole.min(initial=0) else np.flatnonzero(whole > word)
        hashes[rows] = _mix(hashes[rows], words[starts[rows] + 8 * word])
    last = words[ends] >> np.minimum(64 - 8 * rest, 63).astype(np.uint64)
    hashes = _mix(hashes, np.where(rest > 0, last, np.uint64(0))) * _LAST_FACTOR
    hashes ^= hashes >> _HALF
    return hashes


def _mix(hashes: np.ndarray, words: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = (hashes ^ words) * _FACTOR
    mixed ^= mixed >> _HALF
    return mixed


def _bytes_of(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each text begins and the last one ends, int64 `(n + 1,)`, and the bytes of all, uint8 `(m,)`."""
    kind = np.int64 if pa.types.is_large_string(values.type) else np.int32
    _, positions, content = values.buffers()
    if not len(values) or content is None:
        return np.zeros(len(values) + 1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(positions, kind)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    return offsets - offsets[0], np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]]


def hash_column(column: pa.ChunkedArray, hash_values: Callable[[pa.Array], np.ndarray] = hash_text) -> np.ndarray:
    """Returns the hashes of a column of texts without nulls, in which most values occur again and again; uint64 `(n,)`.

    Args:
        column: The texts.
        hash_values: The function that hashes the distinct ones.
    """
    values = pa.chunked_array(column.chunks, pa.string()).combine_chunks().dictionary_encode()
    hashes: np.ndarray = hash_values(values.dictionary)[values.indices.to_numpy()]
    return hashes


def hash_names(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of names, uint64 `(n,)`, and which of them are known, bool `(n,)`; see `column_names`."""
    names = column_names(column)
    return hash_column(pc.fill_null(names, "")), names.is_valid().to_numpy()
