"""CSV manifests: every column as text, just as it stands in the file."""

from __future__ import annotations

import collections
import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.io.filesystem import open_input
from batchverify.schema import BAD_ROW_COLUMN

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# First bytes, the compression that they are right for, and what to say.
_FOREIGN = (
    (b"\xff\xfe", None, "it is not UTF-8 but UTF-16; save the file as UTF-8"),
    (b"\xfe\xff", None, "it is not UTF-8 but UTF-16; save the file as UTF-8"),
    (b"\x1f\x8b", "gzip", "it is compressed with gzip; give its name the ending .gz"),
    (b"BZh", "bz2", "it is compressed with bzip2; give its name the ending .bz2"),
    (b"\x28\xb5\x2f\xfd", "zstd", "it is compressed with Zstandard; give its name the ending .zst"),
    (b"PK\x03\x04", None, "it is a ZIP archive or an Excel workbook; unpack it, or save the sheet as CSV in UTF-8"),
    (b"PAR1", None, "it is a Parquet file; give its name the ending .parquet"),
)
_CSV_BLOCK_BYTES = 64 * 2**20
_MAX_PROBLEMS = 20


def read_csv_schema(path: str, config: VerificationConfig) -> pa.Schema:
    """Returns the columns that the header names, all of them text."""
    names = _csv_header(path)
    if names is None:  # An empty file has no rows, so its columns cannot disagree with those of other files.
        names = [config.left_column, config.right_column]
    return pa.schema([(name, pa.string()) for name in names])


def _csv_header(path: str) -> list[str] | None:
    with open_input(path) as file:
        if description := _find_foreign_content(file.read(4), compression_of(path)):
            raise PreflightError(f"{path}, header: {description}.")
        file.seek(0)
        text = io.TextIOWrapper(
            io.BufferedReader(_Decompressed(path, file)), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        try:
            names = next(csv.reader(text), None)
            # The text is decoded beyond the header, where `read_csv_batches` reports mistakes with their row numbers.
            "".join(names or []).encode("utf-8")
            return names
        except UnicodeEncodeError:
            raise PreflightError(f"{path}, header: it is not UTF-8; save the file as UTF-8.") from None
        except (csv.Error, OSError) as error:
            raise PreflightError(f"{path}, header: it cannot be read ({short_reason(error)}); save the file again.") from None


def _find_foreign_content(start: bytes, compression: str | None) -> str | None:
    """Returns what a file is that is no CSV file, by its first bytes, and what to do; None if they show nothing."""
    for beginning, name, description in _FOREIGN:
        if start.startswith(beginning) and (name is None or name != compression):
            return description
    return None


def read_csv_batches(path: str, columns: list[str] | None, keep: bool) -> Iterator[pa.Table]:
    """Reads a CSV file with every column as text, just as it stands in the file.

    Args:
        path: The file.
        columns: The columns to read; None for all.
        keep: Whether rows that do not fit the header or are not UTF-8 are kept, with the reason in `BAD_ROW_COLUMN`.

    Raises:
        PreflightError: If the file cannot be read, or has such rows and they are not to be kept.
    """
    names = _csv_header(path)
    if names is None:
        return
    misfits = _MisfitRows(columns or names, names)
    with open_input(path) as file:
        stream = _Decompressed(path, file)
        row = 0
        try:
            reader = pa.csv.open_csv(
                pa.PythonFile(stream, mode="r"),
                # The reader knows row numbers only with one thread; workers read several files at a time.
                read_options=pa.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES),
                parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=misfits),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.binary()), null_values=[], strings_can_be_null=False,
                    include_columns=columns or names,
                ),
            )  # fmt: skip
            for batch in reader:
                if misfits.rows and not keep:
                    break
                rows = pa.Table.from_batches([batch])
                rows = misfits.put_back(_text_or_bad(rows), row) if keep else _as_text(rows, path, row)
                yield rows
                row += rows.num_rows
        except (pa.ArrowException, OSError) as error:
            if not _is_header_only(error):
                raise PreflightError(f"{path}: {_why_unreadable(error)}.") from None
    if misfits.rows and not keep:
        raise PreflightError([_describe_misfit(path, misfit) for misfit in list(misfits.rows)[:_MAX_PROBLEMS]])
    if stream.quotes % 2:
        raise PreflightError(f"{path}: a quote is opened and never closed; close it, or double quotes inside a field.")
    if misfits.rows:
        yield misfits.put_back(misfits.empty_table(), row)


class _MisfitRows:
    """Rows with too few or too many fields. Arrow's reader leaves them out, and `put_back` inserts them where they stood.

    Args:
        columns: The columns that are read.
        names: The columns that the header names.
    """

    def __init__(self, columns: list[str], names: list[str]):
        self._columns, self._names = columns, names
        self.rows: collections.deque[Any] = collections.deque()

    def __call__(self, row: Any) -> str:
        self.rows.append(row)
        return "skip"

    def empty_table(self) -> pa.Table:
        """Returns a table of no rows."""
        return pa.table({name: pa.array([], pa.string()) for name in (*self._columns, BAD_ROW_COLUMN)})

    def put_back(self, rows: pa.Table, first_row: int) -> pa.Table:
        """Returns `rows` with the misfit rows among them; `first_row` is the number of the first row in the file."""
        due: list[Any] = []
        # Each row that is put back moves the end of this batch by one row. The last batch is empty and takes all that remain.
        while self.rows and (not rows.num_rows or _row_of(self.rows[0]) < first_row + rows.num_rows + len(due)):
            due.append(self.rows.popleft())
        if not due:
            return rows
        bad = np.zeros(rows.num_rows + len(due), bool)
        bad[[_row_of(misfit) - first_row for misfit in due]] = True
        place = np.empty(len(bad), np.int64)
        place[~bad], place[bad] = np.arange(rows.num_rows), rows.num_rows + np.arange(len(due))
        return pa.concat_tables([rows, self._as_table(due)]).take(place)

    def _as_table(self, misfits: list[Any]) -> pa.Table:
        fields = [dict(zip(self._names, next(csv.reader([misfit.text]), []), strict=False)) for misfit in misfits]
        columns: dict[str, list[str]] = {name: [row.get(name, "") for row in fields] for name in self._columns}
        columns[BAD_ROW_COLUMN] = [_field_count(misfit) for misfit in misfits]
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _row_of(misfit: Any) -> int:
    """Returns the row's number, counted from 0 below the header; Arrow counts the header as row 1."""
    return int(misfit.number) - 2


def _field_count(misfit: Any) -> str:
    return f"there are {misfit.actual_columns} fields where the header has {misfit.expected_columns}"


def _describe_misfit(path: str, misfit: Any) -> str:
    row = f", row {_row_of(misfit)}" if misfit.number else ""
    return f"{path}{row}: {_field_count(misfit)}; quote fields that hold commas."


def _is_header_only(error: Exception) -> bool:
    return "Empty CSV file" in str(error)


def _why_unreadable(error: Exception) -> str:
    if "straddling object" in str(error):
        limit = _CSV_BLOCK_BYTES // 2**20
        return f"a row is longer than {limit} MiB, or a quote is opened and never closed; shorten it, or close the quote"
    return f"it cannot be read ({short_reason(error)}); save the file again"


def _text_or_bad(batch: pa.Table) -> pa.Table:
    """Returns the batch as text with `BAD_ROW_COLUMN`; bytes that are not UTF-8 are replaced, and their rows are bad."""
    text = pa.schema([(name, pa.string()) for name in batch.column_names])
    problems: list[str | None] = [None] * batch.num_rows
    try:
        batch = batch.cast(text)
    except pa.ArrowInvalid:
        columns = {name: [value.decode("utf-8", "replace") for value in batch[name].to_pylist()] for name in text.names}
        for name in text.names:
            for row, (value, text_value) in enumerate(zip(batch[name].to_pylist(), columns[name], strict=True)):
                if value != text_value.encode():
                    problems[row] = f"column '{name}' is not UTF-8"
        batch = pa.table(columns, text)
    return batch.append_column(BAD_ROW_COLUMN, pa.array(problems, pa.string()))


def _as_text(batch: pa.Table, path: str, first_row: int) -> pa.Table:
    try:
        return batch.cast(pa.schema([(name, pa.string()) for name in batch.column_names]))
    except pa.ArrowInvalid:
        raise PreflightError(_undecodable(batch, path, first_row)) from None


def _undecodable(batch: pa.Table, path: str, first_row: int) -> str:
    for row, values in enumerate(zip(*(column.to_pylist() for column in batch.columns), strict=True)):
        for name, value in zip(batch.column_names, values, strict=True):
            try:
                value.decode("utf-8")
            except UnicodeDecodeError:
                return f"{path}, row {first_row + row}: column '{name}' is not UTF-8 ({value[:40]!r}); save the file as UTF-8."
    return f"{path}: it is not UTF-8; save the file as UTF-8."


def compression_of(path: str) -> str | None:
    """Returns the compression that the ending of a file's name stands for, or None."""
    return next((kind for ending, kind in _COMPRESSIONS.items() if path.endswith(ending)), None)


class _Decompressed(io.RawIOBase):
    """The bytes of a CSV file, decompressed according to the ending of its name.

    Attributes:
        quotes: The number of quotes in the bytes that were read.
    """

    def __init__(self, path: str, file: Any):
        super().__init__()
        kind = compression_of(path)
        # Arrow's decompressors report a truncated file; Beam's file systems end such a file without an error.
        self._source = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), kind) if kind else file
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._source.read(size))
        self.quotes += data.count(b'"')
        return data
