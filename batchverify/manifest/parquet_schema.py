"""Looks at the columns of a Parquet file before Arrow does, which crashes on those that are nested thousands of levels deep.

The footer is Thrift's compact protocol (https://github.com/apache/parquet-format); only its first part, the columns, is read.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_COLUMNS, MAX_LEVELS = 10_000, 100
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _TEXT, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
_COLUMNS, _CHILDREN = 2, 5  # fields of FileMetaData and SchemaElement


def find_excess(footer: bytes) -> str | None:
    """Returns what is too much in the columns of a Parquet file, as a part of a sentence, or None.

    Args:
        footer: The footer, without its length and its mark.

    Raises:
        ValueError: If it is damaged.
    """
    columns, open_groups = 0, [1]
    for children in _children_of_elements(_Reader(footer)):
        while open_groups and not open_groups[-1]:
            open_groups.pop()
        if not open_groups:
            raise ValueError("it has more columns than it says")
        open_groups[-1] -= 1
        if children:
            open_groups.append(children)
        else:
            columns += 1
        if len(open_groups) > MAX_LEVELS:
            return f"a column that is nested more than {MAX_LEVELS} levels deep"
        if columns > MAX_COLUMNS:
            return too_many_columns()
    return None


def too_many_columns() -> str:
    """Returns what is too much in a file with too many columns."""
    return f"more than {MAX_COLUMNS:,} columns"


def _children_of_elements(reader: _Reader) -> Iterator[int]:
    """Yields the number of children of each element of the columns, a group before what is in it; a column has none."""
    for field, kind in reader.fields():
        if field != _COLUMNS:
            reader.skip(kind)
            continue
        count, element = reader.list_header()
        if element != _STRUCT:
            raise ValueError("its columns are no list of them")
        for _ in range(count):
            children = 0
            for part, part_kind in reader.fields():
                if part == _CHILDREN and part_kind in _INTEGERS:
                    children = max(0, reader.integer())
                else:
                    reader.skip(part_kind)
            yield children
        return


class _Reader:
    """Reads Thrift's compact protocol.

    Args:
        data: The bytes to read.

    Raises:
        ValueError: In every method, if the bytes are damaged.
    """

    def __init__(self, data: bytes):
        self._data, self._place = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yields the number and the kind of each field of a struct; the caller reads or skips each value."""
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            yield number, head & 15

    def list_header(self) -> tuple[int, int]:
        """Returns the number of values in a list, and their kind."""
        head = self._byte()
        return (self._varint() if head >> 4 == 15 else head >> 4), head & 15

    def integer(self) -> int:
        """Returns a whole number."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, kind: int, level: int = 0) -> None:
        """Passes over a value."""
        if level > MAX_LEVELS:
            raise ValueError("it is nested too deeply")
        if kind == _BYTE:
            self._advance(1)
        elif kind in _INTEGERS:
            self._varint()
        elif kind == _DOUBLE:
            self._advance(8)
        elif kind == _TEXT:
            self._advance(self._varint())
        elif kind in _LISTS:
            count, value_kind = self.list_header()
            for _ in range(count):
                self.skip(_BYTE if value_kind in _BOOLEANS else value_kind, level + 1)
        elif kind == _STRUCT:
            for _, field_kind in self.fields():
                self.skip(field_kind, level + 1)
        elif kind not in _BOOLEANS:
            raise ValueError(f"it has a value of the unknown kind {kind}")

    def _byte(self) -> int:
        self._advance(1)
        return self._data[self._place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("it has a number of more than 64 bits")

    def _advance(self, count: int) -> None:
        self._place += count
        if self._place > len(self._data):
            raise ValueError("it ends too early")
