"""Parquet manifests: their footers and their rows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchverify.errors import PreflightError, short_reason
from batchverify.io.filesystem import open_input, read_stream
from batchverify.manifest.columns import plain_type
from batchverify.manifest.memory import out_of_memory
from batchverify.manifest.parquet_schema import find_excess
from batchverify.manifest.shard import Shard

_MARK, _TAIL_BYTES = b"PAR1", 2**16
PARQUET_ROWS, _BYTES_AT_ONCE = 262_144, 64 * 2**20
# The largest number of rows with lists or structs, whose values may each stand for a large one that is stored once.
_MAX_NESTED_ROWS_AT_ONCE = 8192


def read_footer(path: str) -> ParquetFooter | None:
    """Returns the footer of a Parquet file, or None for any other file."""
    with open_input(path) as file:
        if file.read(4) != _MARK:
            if path.endswith((".parquet", ".pq")):
                raise PreflightError(f"{path}: it is no Parquet file in spite of its name; write it again or rename it.")
            return None
        with _refusing_damage(path):
            footer = _footer_bytes(file)
            excess = find_excess(footer)
            if not excess:
                length = len(footer).to_bytes(4, "little")
                return ParquetFooter(pq.ParquetFile(pa.BufferReader(b"".join((_MARK, footer, length, _MARK)))))
        raise PreflightError(f"{path}: it has {excess}; leave out what the run does not need.")


@contextlib.contextmanager
def _refusing_damage(path: str) -> Iterator[None]:
    try:
        yield
    except PreflightError:
        raise
    except MemoryError:
        raise PreflightError(out_of_memory(path)) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PreflightError(f"{path}: the Parquet file is damaged ({short_reason(error)}); write it again.") from None


def _footer_bytes(file: Any) -> bytes:
    """Returns the footer of a Parquet file, without its length and its mark."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    tail = _read_from(file, max(0, size - _TAIL_BYTES), size)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != _MARK or length + 12 > size:
        raise ValueError("its end is missing")
    if length + 8 > len(tail):
        tail = _read_from(file, size - length - 8, size)
    return tail[-length - 8 : -8]


def _read_from(file: Any, place: int, end: int) -> bytes:
    file.seek(place)
    return read_stream(file, end - place)


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


def read_parquet_batches(shard: Shard) -> Iterator[pa.Table]:
    """Yields the rows of a shard.

    Raises:
        PreflightError: If the file cannot be opened, is damaged, or holds rows that do not fit into memory.
    """
    with open_input(shard.path) as file, _refusing_damage(shard.path):
        reader = pq.ParquetFile(file)
        for groups, rows_at_once in _groups_at_once(file, reader.metadata, shard.row_groups):
            for batch in reader.iter_batches(rows_at_once, row_groups=groups):
                table = pa.Table.from_batches([batch])
                table.validate(full=True)
                yield _with_plain_types(table)


def _with_plain_types(table: pa.Table) -> pa.Table:
    for position, field in enumerate(table.schema):
        kind = plain_type(field.type)
        if kind != field.type:
            table = table.set_column(position, field.with_type(kind), _to_plain(table[field.name], kind))
    return table


def _to_plain(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        plain = column.cast(kind)
        plain.validate(full=True)
    except pa.ArrowInvalid:  # Arrow's cast of list views leaves out the last offset.
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])
    return plain


def _groups_at_once(file: Any, footer: pq.FileMetaData, groups: Iterable[int]) -> Iterator[tuple[list[int], int]]:
    """Yields row groups to read together, and how many of their rows may be read at a time.

    Groups without rows are left out. The others are together only until they have the rows that are read at a time, or might
    take too much memory, so that large values in one group do not slow down the reading of all.
    """
    together: list[int] = []
    rows, most_bytes, rows_at_once = 0, 0, PARQUET_ROWS
    for group in groups:
        row_group = footer.row_group(group)
        if not row_group.num_rows:
            continue
        together.append(group)
        rows, most_bytes = rows + row_group.num_rows, most_bytes + row_group.num_rows * row_group.total_byte_size
        rows_at_once = min(rows_at_once, _rows_at_once(file, footer, group))
        if rows >= rows_at_once or most_bytes > _BYTES_AT_ONCE:
            yield together, rows_at_once
            together, rows, most_bytes, rows_at_once = [], 0, 0, PARQUET_ROWS
    if together:
        yield together, rows_at_once


def _rows_at_once(file: Any, footer: pq.FileMetaData, group: int) -> int:
    """Returns how many rows of a row group may be read at a time.

    A column whose values are numbers in a dictionary may take a thousand times as much memory as its part of the file. The
    longest value of each dictionary shows how much at most; it is looked up where each value being as long as all of the group
    would take too much.
    """
    row_group = footer.row_group(group)
    chunks = [row_group.column(column) for column in range(row_group.num_columns)]
    rows = min(PARQUET_ROWS, _BYTES_AT_ONCE * row_group.num_rows // max(1, row_group.total_byte_size))
    coded = [chunk for chunk in chunks if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"]
    if any("." in chunk.path_in_schema for chunk in coded):
        rows = min(rows, _MAX_NESTED_ROWS_AT_ONCE)
    names = [chunk.path_in_schema for chunk in coded if "." not in chunk.path_in_schema]
    if names and min(rows, row_group.num_rows) * row_group.total_byte_size > _BYTES_AT_ONCE:
        longest = _longest_values(file, footer, group, names)
        rows = min(rows, _BYTES_AT_ONCE // max(1, longest))
    return max(1, int(rows))


def _longest_values(file: Any, footer: pq.FileMetaData, group: int, columns: list[str]) -> int:
    """Returns the length in bytes of the longest value in the dictionary of each column, summed."""
    reader = pq.ParquetFile(file, metadata=footer, read_dictionary=columns, buffer_size=2**16)
    for batch in reader.iter_batches(1, row_groups=[group], columns=columns):
        dictionaries = [column.dictionary for column in batch.columns if pa.types.is_dictionary(column.type)]
        lengths = [pc.max(pc.binary_length(dictionary)).as_py() for dictionary in dictionaries]
        return int(sum(length or 0 for length in lengths))
    return 0
