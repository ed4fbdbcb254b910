"""Columns that the folders of a manifest file state, as Hive and Spark write them: `pairs/dt=2026-11-25/0.parquet`."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

import pyarrow as pa

from batchverify.uris import is_remote

_FOLDER = re.compile(r"([^=/]+)=([^/]*)")
# https://spark.apache.org/docs/latest/sql-ref-syntax-ddl-repair-table.html: the folder of rows without a value.
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def partition_values(path: str) -> dict[str, str | None]:
    """Returns the values that the folders of a file state, as text, by the names of the columns."""
    folders = (path if is_remote(path) else os.path.abspath(path)).split("/")[:-1]
    matches = filter(None, map(_FOLDER.fullmatch, folders))
    return {unquote(name): None if value == _NO_VALUE else unquote(value) for name, value in (m.groups() for m in matches)}


def add_partitions(block: pa.Table, path: str) -> pa.Table:
    """Returns rows of a file with the columns that its folders state; a column of the file itself takes precedence."""
    own = {name.casefold() for name in block.column_names}
    for name, value in partition_values(path).items():
        if name.casefold() not in own:
            block = block.append_column(name, pa.repeat(pa.scalar(value, pa.string()), block.num_rows))
    return block
