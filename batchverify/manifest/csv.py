"""CSV manifests: every column as text, just as it stands in the file."""

from __future__ import annotations

import collections
import csv
import functools
import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from batchverify.errors import PreflightError, short_reason
from batchverify.io.filesystem import open_input
from batchverify.manifest.csv_header import CsvHeader
from batchverify.manifest.decompress import DecompressedFile
from batchverify.manifest.memory import out_of_memory
from batchverify.schema import BAD_ROW_COLUMN

_CSV_BLOCK_BYTES = 16 * 2**20
_MAX_PROBLEMS = 20
_END = "end"
csv.field_size_limit(_CSV_BLOCK_BYTES)  # The limit is one for the process; Python's own of 128 KiB is below Arrow's.


def read_csv_batches(path: str, header: CsvHeader, keep: bool) -> Iterator[pa.Table]:
    """Reads a CSV file with every column as text, just as it stands in the file.

    Args:
        path: The file.
        header: Its header.
        keep: Whether rows that do not fit the header or are not UTF-8 are kept, with the reason in `BAD_ROW_COLUMN`.

    Raises:
        PreflightError: If the file cannot be read, or has such rows and they are not to be kept.
    """
    misfits = _MisfitRows(header, None if keep else _MAX_PROBLEMS)
    with open_input(path) as file:
        stream = DecompressedFile(path, file)
        row = 0
        reader = None
        try:
            reader = pa.csv.open_csv(
                stream.lend(),
                # The reader knows row numbers only with one thread; workers read several files at a time.
                read_options=pa.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES, skip_rows=header.first_line),
                parse_options=pa.csv.ParseOptions(
                    delimiter=header.separator,
                    newlines_in_values=True,
                    invalid_row_handler=stream.lend_object(functools.partial(misfits)),
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(header.names, pa.binary()), null_values=[], strings_can_be_null=False
                ),
            )
            while True:
                with stream.next_block():
                    batch = next(reader, None)
                if batch is None or (misfits.rows and not keep):
                    break
                rows = pa.Table.from_batches([batch])
                rows = misfits.put_back(_text_or_bad(rows), row) if keep else _as_text(rows, path, row)
                yield rows
                row += rows.num_rows
        except MemoryError:
            raise PreflightError(out_of_memory(path)) from None
        except (pa.ArrowException, OSError) as error:
            if not _is_header_only(error) and not misfits.are_too_many:
                raise PreflightError(f"{path}: {_why_unreadable(error)}.") from None
        finally:
            stream.stop()
            del reader
            stream.take_back()
    if misfits.rows and not keep:
        raise PreflightError(misfits.describe(path))
    if stream.quotes % 2 and _ends_in_quotes(path, header):
        raise PreflightError(f"{path}: a quote is opened and never closed; close it, or double quotes inside a field.")
    if misfits.rows:
        yield misfits.put_back(misfits.empty_table(), row, is_last=True)


def _ends_in_quotes(path: str, header: CsvHeader) -> bool:
    """Returns whether a quote is open at the end of a file. An odd number of quotes may be due to an inch mark in a field."""
    with (
        open_input(path) as file,
        io.TextIOWrapper(io.BufferedReader(DecompressedFile(path, file)), "latin-1", newline="") as lines,
    ):
        # A quote that is open takes this line in, too.
        rows = csv.reader(itertools.chain(lines, ["\n", _END]), delimiter=header.separator)
        return collections.deque(rows, maxlen=1).pop() != [_END]


class _MisfitRows:
    """Rows with too few or too many fields. Arrow's reader leaves them out, and `put_back` inserts them where they stood.

    Args:
        header: The header of the file.
        most: The number of rows at which the reader gives up, or None.
    """

    def __init__(self, header: CsvHeader, most: int | None):
        self._header, self._most = header, most
        self.rows: collections.deque[Any] = collections.deque()

    def __call__(self, row: Any) -> str:
        self.rows.append(row)
        return "error" if self.are_too_many else "skip"

    @property
    def are_too_many(self) -> bool:
        """Whether the reader has given up."""
        return self._most is not None and len(self.rows) >= self._most

    def empty_table(self) -> pa.Table:
        """Returns a table of no rows."""
        return pa.table({name: pa.array([], pa.string()) for name in (*self._header.names, BAD_ROW_COLUMN)})

    def put_back(self, rows: pa.Table, first_row: int, is_last: bool = False) -> pa.Table:
        """Returns `rows` with the misfit rows among them; `first_row` is the number of the first row in the file."""
        due: list[Any] = []
        # Each row that is put back moves the end of this batch by one row. Arrow may have parsed later blocks already.
        while self.rows and (is_last or self._row_of(self.rows[0]) < first_row + rows.num_rows + len(due)):
            due.append(self.rows.popleft())
        if not due:
            return rows
        bad = np.zeros(rows.num_rows + len(due), bool)
        bad[[self._row_of(misfit) - first_row for misfit in due]] = True
        place = np.empty(len(bad), np.int64)
        place[~bad], place[bad] = np.arange(rows.num_rows), rows.num_rows + np.arange(len(due))
        return pa.concat_tables([rows, self._as_table(due)]).take(place)

    def describe(self, path: str) -> list[str]:
        """Returns a sentence for each of the first rows."""
        first = list(itertools.islice(self.rows, _MAX_PROBLEMS))
        places = [f"{path}, row {self._row_of(row)}" if row.number else path for row in first]
        counts = map(_field_count, first)
        return [f"{place}: {count}; quote fields that hold the separator." for place, count in zip(places, counts, strict=True)]

    def _row_of(self, misfit: Any) -> int:
        """Returns the row's number, counted from 0 below the header; Arrow counts from 1, and what is before it, too."""
        return int(misfit.number) - 2 - self._header.first_line

    def _as_table(self, misfits: list[Any]) -> pa.Table:
        names = self._header.names
        rows = [next(csv.reader([misfit.text], delimiter=self._header.separator), []) for misfit in misfits]
        fields = [dict(zip(names, row, strict=False)) for row in rows]
        columns: dict[str, list[str]] = {name: [row.get(name, "") for row in fields] for name in names}
        columns[BAD_ROW_COLUMN] = [_field_count(misfit) for misfit in misfits]
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _field_count(misfit: Any) -> str:
    return f"there are {misfit.actual_columns} fields where the header has {misfit.expected_columns}"


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
