"""Counts the elements, rows and bytes that the shuffles of a run carry, in the coder that encodes every table."""

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
    """The amount of one kind of element.

    Attributes:
        elements: Number of tables.
        rows: Number of rows of all tables.
        bytes: Number of bytes of all encoded tables.
        most_rows: Number of rows of the largest table.
    """

    elements: int = 0
    rows: int = 0
    bytes: int = 0
    most_rows: int = 0

    def add(self, rows: int, size: int) -> None:
        """Counts one table."""
        self.elements, self.rows, self.bytes = self.elements + 1, self.rows + rows, self.bytes + size
        self.most_rows = max(self.most_rows, rows)

    def divided_by(self, passes: int) -> Carried:
        """Returns the amount if each table was counted `passes` times."""
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
    """Returns the kind of a table: `requests`, `answers` and `blocks` are in the shuffles, `others` are not."""
    names = set(table.column_names)
    if names == {"uri"}:
        return "requests"
    if "embedding" in names:
        return "answers"
    return "blocks" if MANIFEST_ROW in names and "score" not in names else "others"


def count_carried(run: Callable[[], object], pairs: int) -> dict[str, Carried]:
    """Returns the amounts that the two shuffles of a pipeline carry, by kind.

    Beam's in-process runner also encodes the blocks and answers that are flattened before the second shuffle. Blocks contain
    each row once, so their number of rows shows how often tables were encoded.

    Args:
        run: Function that makes a pipeline and runs it in this process.
        pairs: Number of rows of its manifest.
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
        "blocks": _COUNTS["blocks"].divided_by(passes),
        "answers": _COUNTS["answers"].divided_by(passes),
    }
