"""Looks at every manifest file before a run begins, and reports all that is wrong at once."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.manifest.columns import (
    column_problems,
    common_type,
    find_bad_label,
    find_fold_column,
    find_label_column,
    pair_uris,
    parent_folder,
    quote_names,
    resolve_uris,
)
from batchverify.manifest.csv import compression_of, read_csv_schema
from batchverify.manifest.parquet import read_footer
from batchverify.manifest.read import first_rows, read_batches
from batchverify.manifest.shard import Manifest, Shard

# What is read before a run to find mistakes: all of most manifests, and a few seconds' worth of a huge one.
_VALIDATION_BYTES = 64 * 2**20
# A row's number and the place of its file's name.
_PROVENANCE_BYTES = 9


def plan_manifest(config: VerificationConfig, sample: int = 12) -> Manifest:
    """Looks through every manifest file of `config`, and keeps about `sample` URIs.

    With `config.limit`, files and row groups beyond it are only looked at for their columns.

    Raises:
        PreflightError: with all that is wrong, one sentence each.
    """
    paths, problems = _match(config.manifests)
    budget = _Budget(_VALIDATION_BYTES, config.limit)
    seen = []
    for path in paths:
        try:
            seen.append(_Inspection(path, config, budget))
        except PreflightError as refused:
            problems += refused.problems
    problems += [problem for inspection in seen for problem in inspection.problems]
    schema, disagreements = unify_schemas(seen)
    problems += disagreements
    if problems:
        raise PreflightError(problems)
    rows = sum(inspection.expected_rows for inspection in seen)
    distinct = _distinct(seen)
    looked_at, images = sum(inspection.rows_sampled for inspection in seen), len(distinct)
    return Manifest(
        shards=tuple(shard for inspection in seen for shard in inspection.shards(config.block_rows)),
        schema=schema,
        label_column=find_label_column(schema.names, config),
        fold_column=find_fold_column(schema.names, config),
        expected_rows=rows,
        expected_bytes=sum(inspection.expected_bytes() for inspection in seen),
        expected_images=images if looked_at >= rows else int(np.ceil(images * rows / max(1, looked_at))),
        sample=_sample(seen, config, sample),
    )


# Looking through a file before the run.


class _Budget:
    """How many more bytes may be read for validation, and how many more rows are wanted at all; None for every row.

    Once it is spent, a file is only opened for its columns: of thousands of files, a look into each would be a reading of them
    all. Its rows are known from its footer, or estimated from its size and the density of the CSV files that were looked at.
    """

    def __init__(self, left: int, rows_left: int | None):
        self.left, self.rows_left = left, rows_left
        self._seen: dict[str | None, tuple[int, int]] = {}  # rows and bytes of CSV files, by compression

    def add_csv(self, kind: str | None, rows: int, size: int) -> None:
        """Takes in how dense a CSV file is."""
        seen = self._seen.get(kind, (0, 0))
        self._seen[kind] = seen[0] + rows, seen[1] + size

    def estimate_rows(self, kind: str | None, size: int) -> int | None:
        """Returns about how many rows a CSV file has that need not be looked at; None if it must be."""
        rows, of_bytes = self._seen.get(kind, (0, 0))
        if self.left > 0 or self.rows_left is not None or not rows:
            return None
        return round(rows * size / of_bytes)


class _Inspection:
    """One manifest file, looked through as far as the budget goes."""

    def __init__(self, path: str, config: VerificationConfig, budget: _Budget):
        self.path = path
        self.problems: list[str] = []
        self.parquet = read_footer(path)
        self.schema = self.parquet.schema_arrow.remove_metadata() if self.parquet else read_csv_schema(path, config)
        self.problems += column_problems(path, self.schema, config)
        self.rows_seen, self.rows_sampled, self.expected_rows = 0, 0, 0
        self._bytes_seen = 0
        self.images: list[pa.Array] = []
        self._most_rows = budget.rows_left
        if not self.problems and budget.rows_left != 0:
            self._inspect(config, budget)
        if budget.rows_left is not None:
            budget.rows_left -= self.expected_rows

    def shards(self, block_rows: int) -> Iterator[Shard]:
        if self._most_rows == 0:
            return
        if self.parquet is None:
            yield Shard(self.path, None, 0, self._most_rows)
            return
        groups: list[int] = []
        first, rows = 0, 0
        for group in self._wanted_groups():
            groups.append(group)
            rows += self.parquet.row_group(group).num_rows
            if rows >= block_rows:
                yield Shard(self.path, tuple(groups), first, self._most_rows_from(first))
                groups, first, rows = [], first + rows, 0
        if groups:
            yield Shard(self.path, tuple(groups), first, self._most_rows_from(first))

    def _wanted_groups(self) -> Iterator[int]:
        """Yields the row groups of a Parquet file that hold wanted rows."""
        assert self.parquet is not None
        first = 0
        for group in range(self.parquet.num_row_groups):
            if self._most_rows is None or first < self._most_rows:
                yield group
            first += self.parquet.row_group(group).num_rows

    def _most_rows_from(self, first: int) -> int | None:
        return None if self._most_rows is None else self._most_rows - first

    def _inspect(self, config: VerificationConfig, budget: _Budget) -> None:
        if self.parquet:
            if budget.left > 0:
                self._look_through(config, budget)
            self.expected_rows = self._expect_rows(False, 0)
            return
        kind = compression_of(self.path)
        if (estimate := budget.estimate_rows(kind, self._size)) is not None:
            self.expected_rows = estimate
            return
        self._look_through(config, budget)
        budget.add_csv(kind, self.expected_rows, self._size)

    @functools.cached_property
    def _size(self) -> int:
        return FileSystems.match([self.path])[0].metadata_list[0].size_in_bytes

    def _look_through(self, config: VerificationConfig, budget: _Budget) -> None:
        """Reads rows for bad labels and undecodable bytes, and to count rows and images."""
        label = find_label_column(self.schema.names, config)
        needed = [config.left_column, config.right_column, *([label] if label else [])]
        started_with, finished = budget.left, True
        try:
            shard = Shard(self.path, tuple(self._wanted_groups()) if self.parquet else None, 0)
            for batch in first_rows(read_batches(shard, needed, config.bad_rows == "keep"), self._most_rows):
                if label and (wrong := find_bad_label(batch, label, self.path, self.rows_seen)):
                    self.problems.append(wrong)
                    break
                self.rows_seen += batch.num_rows
                if budget.left > 0:
                    self.rows_sampled += batch.num_rows
                    self.images += [image.combine_chunks().unique() for image in pair_uris(batch, config)]
                budget.left -= batch.nbytes
                # To know how many rows of a limit are left to later files, those of a CSV file must be counted.
                if budget.left <= 0 and (self.parquet or self._most_rows is None):
                    finished = False
                    break
        except PreflightError as refused:
            self.problems += refused.problems
        self._bytes_seen = started_with - budget.left
        self.expected_rows = self._expect_rows(finished, self._bytes_seen)

    def expected_bytes(self) -> int:
        """Returns about what the rows take in memory, which is what they take in the file, or more where that is compressed."""
        if self.parquet:
            stored = sum(self.parquet.row_group(group).total_byte_size for group in self._wanted_groups())
        else:
            stored = self._size if self._most_rows is None else 0
        pairs = self._bytes_seen * self.expected_rows // max(1, self.rows_seen)
        return max(stored, pairs) + _PROVENANCE_BYTES * self.expected_rows

    def _expect_rows(self, finished: bool, bytes_seen: int) -> int:
        if self.parquet:
            return self.parquet.num_rows if self._most_rows is None else min(self.parquet.num_rows, self._most_rows)
        if finished or not bytes_seen:
            return self.rows_seen
        return max(self.rows_seen, int(self.rows_seen * self._size / bytes_seen))


def _distinct(seen: list[_Inspection]) -> pa.Array:
    found = [array for inspection in seen for array in inspection.images]
    return pa.chunked_array(found, pa.string()).unique().drop_null() if found else pa.array([], pa.string())


def _sample(seen: list[_Inspection], config: VerificationConfig, count: int) -> tuple[str, ...]:
    """Returns a few URIs of the first file, absolute."""
    first = next((inspection for inspection in seen if inspection.images), None)
    if first is None:
        return ()
    base = config.image_root if config.image_root is not None else parent_folder(first.path)
    uris = resolve_uris(pa.chunked_array(first.images, pa.string()), base).unique().drop_null()
    return tuple(uris[:count].to_pylist())


def _match(patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    paths: dict[str, None] = {}
    problems = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            problems.append(f"--manifest {pattern} is a folder; name its files, for instance {pattern.rstrip('/')}/*.csv.")
            continue
        try:
            found = FileSystems.match([pattern])[0].metadata_list
        except Exception as error:  # Beam wraps whatever the store's client raises.
            problems.append(
                f"--manifest {pattern} cannot be looked up ({short_reason(error)}); check the path and your access."
            )
            continue
        if not found:
            problems.append(f"--manifest {pattern}: there is no such file; check the path.")
        paths.update(dict.fromkeys(sorted(metadata.path for metadata in found)))
    return list(paths), problems


def unify_schemas(seen: list[_Inspection]) -> tuple[pa.Schema, list[str]]:
    """Returns one schema for all files, and a sentence for each file that cannot have it."""
    if not seen:
        return pa.schema([]), []
    first, problems = seen[0], []
    fields = {field.name: field.with_nullable(True) for field in first.schema}
    for other in seen[1:]:
        if set(other.schema.names) != set(first.schema.names):
            difference = sorted(set(other.schema.names) ^ set(first.schema.names))
            problems.append(
                f"{other.path} and {first.path} disagree on columns ({quote_names(difference)}); "
                "give the files of one run the same columns."
            )
            continue
        for field in other.schema:
            kind = common_type(fields[field.name].type, field.type)
            if kind is None:
                problems.append(
                    f"{other.path} and {first.path} disagree on column '{field.name}' "
                    f"({field.type} and {fields[field.name].type}); store it as one type."
                )
            else:
                fields[field.name] = pa.field(field.name, kind)
    return pa.schema(list(fields.values())), problems
