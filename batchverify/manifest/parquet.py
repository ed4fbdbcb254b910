"""Parquet manifests: their footers and their rows."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from batchverify.errors import PreflightError, short_reason
from batchverify.io.filesystem import open_input
from batchverify.manifest.shard import Shard

# The largest number of rows that are read at a time.
PARQUET_ROWS = 262_144


def read_footer(path: str) -> ParquetFooter | None:
    """Returns the footer of a Parquet file, or None for any other file."""
    with open_input(path) as file:
        if file.read(4) != b"PAR1":
            if path.endswith((".parquet", ".pq")):
                raise PreflightError(f"{path}: it is no Parquet file in spite of its name; write it again or rename it.")
            return None
        file.seek(0)
        try:
            return ParquetFooter(pq.ParquetFile(file))
        except (pa.ArrowException, OSError) as error:
            raise PreflightError(f"{path}: the Parquet file is damaged ({short_reason(error)}); write it again.") from None


class ParquetFooter:
    """A Parquet footer and its Arrow schema, without the open file.

    Attributes:
        schema_arrow: The columns.
        num_rows: The number of rows.
        num_row_groups: The number of row groups.
    """

    def __init__(self, file: pq.ParquetFile):
        self.schema_arrow, self._metadata = file.schema_arrow, file.metadata
        self.num_rows, self.num_row_groups = file.metadata.num_rows, file.metadata.num_row_groups

    def row_group(self, number: int) -> pq.RowGroupMetaData:
        """Returns the metadata of one row group."""
        return self._metadata.row_group(number)


def read_parquet_batches(shard: Shard, columns: list[str] | None) -> Iterator[pa.Table]:
    """Yields the rows of a shard; `columns` are the columns to read, None for all.

    Raises:
        PreflightError: If the file cannot be opened or is damaged.
    """
    with open_input(shard.path) as file:
        try:
            reader = pq.ParquetFile(file)
            for batch in reader.iter_batches(PARQUET_ROWS, row_groups=list(shard.row_groups or ()), columns=columns):
                table = pa.Table.from_batches([batch])
                table.validate(full=True)
                yield table
        except (pa.ArrowException, OSError) as error:
            raise PreflightError(
                f"{shard.path}: the Parquet file is damaged ({short_reason(error)}); write it again."
            ) from None
