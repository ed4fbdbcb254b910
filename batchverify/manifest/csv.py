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
from batchverify.manifest.columns import columns_changed
from batchverify.manifest.csv_header import CsvHeader
from batchverify.manifest.decompress import DecompressedFile
from batchverify.manifest.memory import out_of_memory
from batchverify.schema import BAD_ROW_COLUMN

_CSV_BLOCK_BYTES = 16 * 2**20
_MAX_PROBLEMS = 20
_END = "end"
_KEEP = "give --bad-rows keep to score the other rows"
_HEADER_ROW = -1
csv.field_size_limit(_CSV_BLOCK_BYTES)  # The limit is one for the process; Python's own of 128 KiB is below Arrow's.


def read_csv_batches(path: str, header: CsvHeader, keep: bool, max_rows: int | None = None) -> Iterator[pa.Table]:
    """Reads a CSV file with every column as text, just as it stands in the file.

    Args:
        path: The file.
        header: Its header.
        keep: Whether rows that do not fit the header or are not UTF-8 are kept, with the reason in `BAD_ROW_COLUMN`.
        max_rows: The number of rows that the caller takes, None for all; mistakes beyond them do not count.

    Raises:
        PreflightError: If the file cannot be read, its header has changed, or it has such rows and they are not to be kept.
    """
    misfits = _MisfitRows(header, None if keep else _MAX_PROBLEMS, max_rows)
    with open_input(path) as file:
        stream = DecompressedFile(path, file)
        row = _HEADER_ROW
        reader = None
        try:
            reader = _open_reader(stream, header, misfits)
            while True:
                with stream.next_block():
                    batch = next(reader, None)
                if batch is None or misfits.header is not None or (misfits.rows and not keep):
                    break
                rows = pa.Table.from_batches([batch])
                if row == _HEADER_ROW:
                    rows, row = _below_header(rows, path, header), 0
                rows = rows.slice(0, None if max_rows is None else max_rows - row)
                rows = misfits.put_back(_text_or_bad(rows), row) if keep else _as_text(rows, path, row)
                if rows.num_rows:
                    yield rows
                row += rows.num_rows
        except MemoryError:
            raise PreflightError(out_of_memory(path)) from None
        except (pa.ArrowException, OSError) as error:
            if not misfits.are_too_many:
                raise PreflightError(f"{path}: {_why_unreadable(error)}.") from None
        finally:
            stream.stop()
            del reader
            stream.take_back()
    if misfits.header is not None:
        raise PreflightError(f"{path}: {columns_changed(misfits.fields_of(misfits.header), header.names)}.")
    if misfits.rows and not keep:
        raise PreflightError(misfits.describe(path))
    if stream.quotes % 2 and _ends_in_quotes(path, header):
        raise PreflightError(f"{path}: a quote is opened and never closed; close it, or double quotes inside a field.")
    if misfits.rows:
        yield misfits.put_back(misfits.empty_table(), row)


def _open_reader(stream: DecompressedFile, header: CsvHeader, misfits: _MisfitRows) -> pa.csv.CSVStreamingReader:
    return pa.csv.open_csv(
        stream.lend(),
        read_options=pa.csv.ReadOptions(
            use_threads=False,  # The reader knows row numbers only with one thread; workers read several files at a time.
            block_size=_CSV_BLOCK_BYTES,
            skip_rows=header.first_line,
            # The header is read as a row: the reader gives no batch before it has a row that fits, and this one does.
            column_names=header.names,
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=header.separator,
            newlines_in_values=True,
            invalid_row_handler=stream.lend_object(functools.partial(misfits)),
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(header.names, pa.binary()), null_values=[], strings_can_be_null=False
        ),
    )


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
        max_rows: The number of rows that are wanted, None for all; what stands beyond them is forgotten.

    Attributes:
        rows: The rows that have not been put back.
        header: The header if it does not fit, because it has changed; otherwise None.
    """

    def __init__(self, header: CsvHeader, most: int | None, max_rows: int | None):
        self._header, self._most, self._max_rows = header, most, max_rows
        self.rows: collections.deque[Any] = collections.deque()
        self.header: Any = None

    def __call__(self, row: Any) -> str:
        number = self._row_of(row)
        if number == _HEADER_ROW:
            self.header = row
        elif self._max_rows is None or number < self._max_rows:
            self.rows.append(row)
        return "error" if self.are_too_many else "skip"

    @property
    def are_too_many(self) -> bool:
        """Whether the reader has given up."""
        return self._most is not None and len(self.rows) >= self._most

    def empty_table(self) -> pa.Table:
        """Returns a table of no rows."""
        return pa.table({name: pa.array([], pa.string()) for name in (*self._header.names, BAD_ROW_COLUMN)})

    def put_back(self, rows: pa.Table, first_row: int) -> pa.Table:
        """Returns `rows` with the misfit rows among them and right behind them.

        Args:
            rows: The rows of a batch that fit, with `BAD_ROW_COLUMN`.
            first_row: The number of the first of all these rows in the file.
        """
        due: list[Any] = []
        # Each row that is put back moves the end of this batch by one row. Arrow may have parsed later blocks already.
        while self.rows and self._row_of(self.rows[0]) <= first_row + rows.num_rows + len(due):
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
        remedy = f"quote fields that hold the separator, or {_KEEP}"
        return [f"{place}: {count}; {remedy}." for place, count in zip(places, counts, strict=True)]

    def fields_of(self, misfit: Any) -> list[str]:
        """Returns the fields of a row that does not fit."""
        return next(csv.reader([misfit.text], delimiter=self._header.separator), [])

    def _row_of(self, misfit: Any) -> int:
        """Returns the row's number, counted from 0 below the header; Arrow counts from 1, and what is before it, too."""
        return int(misfit.number) - 2 - self._header.first_line

    def _as_table(self, misfits: list[Any]) -> pa.Table:
        names = self._header.names
        fields = [dict(zip(names, self.fields_of(misfit), strict=False)) for misfit in misfits]
        columns: dict[str, list[str]] = {name: [row.get(name, "") for row in fields] for name in names}
        columns[BAD_ROW_COLUMN] = [_field_count(misfit) for misfit in misfits]
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _field_count(misfit: Any) -> str:
    return f"there are {misfit.actual_columns} fields where the header has {misfit.expected_columns}"


def _below_header(rows: pa.Table, path: str, header: CsvHeader) -> pa.Table:
    """Returns the rows below the first one, which is the header unless the file has changed."""
    names = [column[0].as_py().decode("utf-8", "replace") for column in rows.columns]
    if names != header.names:
        raise PreflightError(f"{path}: {columns_changed(names, header.names)}.")
    return rows.slice(1)


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
                place = f"{path}, row {first_row + row}: column '{name}'"
                return f"{place} is not UTF-8 ({value[:40]!r}); save the file as UTF-8, or {_KEEP}."
    return f"{path}: it is not UTF-8; save the file as UTF-8, or {_KEEP}."
