"""The table of encoded images: one row for each image, with its embedding, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from batchverify.evaluation.candidate import IMAGE_COLUMNS
from batchverify.schema import STATUSES, ImageStatus

OK_CODE = STATUSES.index(ImageStatus.OK)


def encoded_images(
    uris: pa.Array,
    status: np.ndarray,
    error: Sequence[str | None] | pa.Array,
    digest: Sequence[bytes | None] | pa.Array,
    identity: np.ndarray,
    embeddings: np.ndarray,
    traits: Sequence[int] | pa.Array | None = None,
) -> pa.Table:
    """Returns the table that `Network.encode` returns.

    Args:
        uris: Text `(n,)`.
        status: int8 `(n,)`, positions in `schema.STATUSES`.
        error: Text `(n,)`, None where the status is `ok`.
        digest: 16 bytes of the digest of each file's content `(n,)`; None where it could not be read.
        identity: float32 `(n,)`, the identity scores; NaN where there is no embedding.
        embeddings: float32 or uint8 `(n, d)`.
        traits: uint8 `(n,)`, the `schema.ImageTraits` of each file; None where no file has any.
    """
    values = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
    return pa.table(
        {
            "uri": uris.cast(pa.string()),
            "status": pa.array(status, pa.int8()),
            "error": pa.array(error, pa.string()),
            "digest": pa.array(digest, pa.binary(16)),
            "identity": pa.array(np.asarray(identity, np.float32)),
            "traits": pa.array(np.zeros(len(uris), np.uint8) if traits is None else traits, pa.uint8()),
            "embedding": pa.FixedSizeListArray.from_arrays(values, embeddings.shape[1]),
        }
    )


def no_encoded_images() -> pa.Table:
    """Returns the table of encoded images without a row."""
    return encoded_images(pa.array([], pa.string()), np.zeros(0, np.int8), [], [], np.zeros(0), np.zeros((0, 1)))


def with_candidate(images: pa.Table, candidate: pa.Table) -> pa.Table:
    """Returns encoded images with the columns of a second network, whose own table has the same images in the same order."""
    for name, in_both in IMAGE_COLUMNS.items():
        images = images.append_column(in_both, candidate[name])
    return images


def is_with_candidate(images: pa.Table) -> bool:
    """Returns whether encoded images have the candidate's columns; a table without a row may lack them."""
    return IMAGE_COLUMNS["status"] in images.column_names


def without_embeddings(images: pa.Table) -> pa.Table:
    """Returns encoded images without the columns that hold embeddings."""
    return images.select([name for name in images.column_names if name not in ("embedding", IMAGE_COLUMNS["embedding"])])


def embedding_matrix(images: pa.Table) -> np.ndarray:
    """Returns the embeddings of a table of encoded images, `(n, d)`; `(0, 1)` for a table without a row."""
    column = images["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1) if len(column) else np.zeros((0, 1), np.float32)
