"""What the shuffles of a run carry: elements, rows and bytes, counted in the coder that every table passes."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable

import pyarrow as pa
from apache_beam.coders.typecoders import registry

from batchverify.io.arrow_coder import ArrowTableCoder
from batchverify.schema import MANIFEST_ROW


@dataclasses.dataclass
class Carried:
    """Of one kind of element.

    Attributes:
        elements: tables.
        rows: of all of them.
        bytes: that they were encoded into.
        most_rows: of one of them.
    """

    elements: int = 0
    rows: int = 0
    bytes: int = 0
    most_rows: int = 0

    def add(self, rows: int, size: int) -> None:
        """Counts one table."""
        self.elements, self.rows, self.bytes = self.elements + 1, self.rows + rows, self.bytes + size
        self.most_rows = max(self.most_rows, rows)

    def over(self, passes: int) -> Carried:
        """Returns what it comes to where each table was counted so many times."""
        return Carried(self.elements // passes, self.rows // passes, self.bytes // passes, self.most_rows)


_COUNTS: dict[str, Carried] = collections.defaultdict(Carried)
_LOCK = threading.Lock()


class CountingCoder(ArrowTableCoder):
    """Encodes a table as a run does, and counts it."""

    def encode(self, value: pa.Table) -> bytes:
        encoded = super().encode(value)
        with _LOCK:
            _COUNTS[kind(value)].add(value.num_rows, len(encoded))
        return encoded


def kind(table: pa.Table) -> str:
    """Returns what a table is to the pipeline: `requests`, `answers`, `blocks`, or `others`, which neither shuffle carries."""
    names = set(table.column_names)
    if names == {"uri"}:
        return "requests"
    if "embedding" in names:
        return "answers"
    return "blocks" if MANIFEST_ROW in names and "score" not in names else "others"


def count_carried(run: Callable[[], object], pairs: int) -> dict[str, Carried]:
    """Returns what the two shuffles of a pipeline carry, by kind.

    Beam's in-process runner also puts down what is flattened before the second shuffle, blocks and answers. How often it
    encodes them is seen from the blocks, which hold each row once.

    Args:
        run: makes a pipeline and runs it in this process.
        pairs: rows of its manifest.
    """
    _COUNTS.clear()
    registry.register_coder(pa.Table, CountingCoder)
    try:
        run()
    finally:
        registry.register_coder(pa.Table, ArrowTableCoder)
    passes = _COUNTS["blocks"].rows // pairs
    return {
        "requests": _COUNTS["requests"],
        "blocks": _COUNTS["blocks"].over(passes),
        "answers": _COUNTS["answers"].over(passes),
    }
