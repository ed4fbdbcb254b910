"""Writes pairs as a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from batchverify.errors import PreflightError
from batchverify.io.atomic_output import atomic_output, refuse_folder
from batchverify.manifest.pair_lists import Pair
from batchverify.uris import is_remote

_PAIRS_AT_ONCE = 65_536


def write_manifest(pairs: Iterable[Pair], folder: str, output: str) -> int:
    """Writes pairs as a manifest, CSV or Parquet by the ending of its name, and returns how many there are.

    Args:
        pairs: The pairs in the order of the rows.
        folder: The folder or URI that relative paths start from; empty if they start from the manifest's own folder.
        output: The file, which appears when it is complete.

    Raises:
        PreflightError: if the ending is another, a folder is in its place, or there are no pairs.
    """
    if not output.endswith((".csv", ".parquet")):
        raise PreflightError(f"--output {output} says neither CSV nor Parquet; end it with .csv or .parquet.")
    refuse_folder("--output", output)
    prefix, written = _relative_to_manifest(folder, output), 0
    with atomic_output(output) as unfinished, ExitStack() as stack:
        writer: Any = None
        for table in _tables(pairs, prefix):
            if writer is None:
                open_writer = pa.csv.CSVWriter if output.endswith(".csv") else pq.ParquetWriter
                writer = stack.enter_context(open_writer(unfinished, table.schema))
            writer.write_table(table)
            written += table.num_rows
        if writer is None:
            raise PreflightError("there are no pairs; give a list that has some.")
    return written


def _tables(pairs: Iterable[Pair], prefix: str) -> Iterator[pa.Table]:
    batch: list[Pair] = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == _PAIRS_AT_ONCE:
            yield _table(batch, prefix)
            batch = []
    if batch:
        yield _table(batch, prefix)


def _table(pairs: list[Pair], prefix: str) -> pa.Table:
    columns = {
        "left": pa.array([_join(prefix, pair.left) for pair in pairs], pa.string()),
        "right": pa.array([_join(prefix, pair.right) for pair in pairs], pa.string()),
        "genuine": pa.array([pair.genuine for pair in pairs], pa.int8()),
    }
    if pairs[0].fold is not None:
        columns["fold"] = pa.array([pair.fold for pair in pairs], pa.int16())
    return pa.table(columns)


def _relative_to_manifest(folder: str, output: str) -> str:
    """Returns `folder` as the manifest must name it: relative paths in a manifest start from the manifest's folder."""
    if not folder or is_remote(folder) or is_remote(output) or os.path.isabs(folder):
        return folder
    return os.path.relpath(folder, os.path.dirname(os.path.abspath(output)))


def _join(prefix: str, path: str) -> str:
    return path if not prefix or is_remote(path) or os.path.isabs(path) else f"{prefix.rstrip('/')}/{path}"
