"""What the shuffles of a run carry: elements, rows and bytes, counted in the coder that every table passes."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import apache_beam as beam
import pyarrow as pa

from batchverify.coders import ArrowTableCoder
from batchverify.schema import MANIFEST_ROW


@dataclasses.dataclass
class Carried:
    """Of one kind of element.

    Attributes:
        elements: tables.
        rows: of all of them.
        bytes: that they were encoded into.
    """

    elements: int = 0
    rows: int = 0
    bytes: int = 0


_COUNTS: dict[str, Carried] = collections.defaultdict(Carried)
_LOCK = threading.Lock()


class CountingCoder(ArrowTableCoder):
    """Encodes a table as a run does, and counts it."""

    def encode(self, value: pa.Table) -> bytes:
        encoded = super().encode(value)
        with _LOCK:
            carried = _COUNTS[kind(value)]
            carried.elements += 1
            carried.rows += value.num_rows
            carried.bytes += len(encoded)
        return encoded


def kind(table: pa.Table) -> str:
    """Returns what a table is to the pipeline: `requests`, `answers`, `blocks`, or `others`, which no shuffle carries."""
    names = set(table.column_names)
    if names == {"uri"}:
        return "requests"
    if "embedding" in names:
        return "answers"
    return "blocks" if MANIFEST_ROW in names and "score" not in names else "others"


@contextmanager
def counted() -> Iterator[dict[str, Carried]]:
    """Counts what the pipelines that are made inside, and run in this process, carry; by kind."""
    _COUNTS.clear()
    beam.coders.registry.register_coder(pa.Table, CountingCoder)
    try:
        yield _COUNTS
    finally:
        beam.coders.registry.register_coder(pa.Table, ArrowTableCoder)
