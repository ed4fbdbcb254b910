"""The rows of a store of embeddings: their columns, which of them still hold, and which of them are kept."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.schema import STATUSES, ImageStatus

# A row that is used is not written again for its date alone before its date is older than so many days.
DATES_LAG_DAYS = 6
_OK = STATUSES.index(ImageStatus.OK)


def stored_schema(embedding_size: int) -> pa.Schema:
    """Returns the columns of a store.

    - `uri`: the absolute URI of the image.
    - `version`: the version of the file as its file system reports it; null if that is not known for certain.
    - `digest`: the first 16 bytes of the SHA-256 of the file's content.
    - `identity`: the score of the image against itself.
    - `traits`: what the file holds beyond the colours of one upright picture, as `schema.ImageTraits`.
    - `embedding`: float32 `(embedding_size,)`.
    - `last_used`: the date of the last run whose manifest named the image, or one up to `DATES_LAG_DAYS` days before.
    """
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("version", pa.string()),
            pa.field("digest", pa.binary(16), nullable=False),
            pa.field("identity", pa.float32(), nullable=False),
            pa.field("traits", pa.uint8(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), embedding_size), nullable=False),
            pa.field("last_used", pa.date32(), nullable=False),
        ]
    )


def is_unchanged(stored: pa.Table, now: pa.Table) -> np.ndarray:
    """Returns bool `(n,)`: which images are the same as when they were encoded.

    Args:
        stored: Rows of a store.
        now: The same images as they are now: the columns `version` and `digest`, one of which is all null.
    """
    equal = [pc.fill_null(pc.equal(stored[name], now[name]), False) for name in ("version", "digest")]
    return np.asarray(pc.or_(*equal).to_numpy(zero_copy_only=False))


def current_rows(images: pa.Table, today: datetime.date) -> pa.Table:
    """Returns the rows to store for images that this run could read.

    Args:
        images: Images with `uri`, `status`, `version`, `digest`, `identity` and `embedding`.
        today: The date of the run, which becomes their `last_used`.
    """
    readable = images.filter(pc.equal(images["status"], _OK))
    schema = stored_schema(readable.schema.field("embedding").type.list_size)
    dated = readable.append_column("last_used", pa.array([today] * readable.num_rows, pa.date32()))
    return dated.select(schema.names).cast(schema)


def retained_rows(stored: pa.Table, today: datetime.date, days: int | None) -> pa.Table:
    """Returns those rows to keep of stored images that this run did not name or could not read.

    Args:
        stored: The rows of these images.
        today: The date of the run.
        days: The number of days after which a row that no run has used is dropped; None to keep all rows.
    """
    if days is None:
        return stored
    oldest = today - datetime.timedelta(days + DATES_LAG_DAYS)
    return stored.filter(pc.greater_equal(stored["last_used"], pa.scalar(oldest, pa.date32())))


def has_recent_date(stored: pa.Table, today: datetime.date) -> pa.ChunkedArray:
    """Returns bool `(n,)`: which rows need not be written again for their dates."""
    oldest = today - datetime.timedelta(DATES_LAG_DAYS)
    return pc.greater_equal(stored["last_used"], pa.scalar(oldest, pa.date32()))
