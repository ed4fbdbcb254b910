"""Encodes Arrow tables as Arrow IPC streams between workers.

Without this coder, Beam pickles tables, and a pickled slice holds the whole table that it was cut from.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from apache_beam.coders import Coder
from apache_beam.coders.typecoders import registry


class ArrowTableCoder(Coder):
    """Encodes a `pa.Table` as an Arrow IPC stream; dictionaries, slices and metadata survive."""

    def encode(self, value: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_table(value)
        return bytes(sink.getvalue().to_pybytes())

    def decode(self, encoded: bytes) -> pa.Table:
        return pa.ipc.open_stream(encoded).read_all()

    def estimate_size(self, value: pa.Table) -> int:
        """Returns about how many bytes `encode` makes; Beam calls this often, and by default would encode the table."""
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> Any:
        return pa.Table


registry.register_coder(pa.Table, ArrowTableCoder)
