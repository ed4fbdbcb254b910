"""64-bit hashes of texts, such as URIs and names of subjects; the same in every process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.manifest.names import column_names


def hash_text(values: pa.Array) -> np.ndarray:
    """Returns a hash of each text, uint64 `(n,)`."""
    hashes: np.ndarray = pd.util.hash_array(values.to_numpy(zero_copy_only=False), categorize=False)
    return hashes


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
