"""Inspects every manifest file before a run begins, and reports all mistakes at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.manifest.columns import (
    awkward_names,
    common_type,
    find_fold_column,
    find_label_column,
    parent_folder,
    quote_names,
    resolve_uris,
)
from batchverify.manifest.inspection import FileInspection, InspectionBudget, inspect_file
from batchverify.manifest.shard import Manifest

_LOG = logging.getLogger(__name__)
# The bytes that are read before a run to find mistakes: all of most manifests, and a few seconds' worth of a huge one.
_VALIDATION_BYTES = 64 * 2**20


def plan_manifest(config: VerificationConfig, sample: int = 12) -> Manifest:
    """Inspects every manifest file of `config`, and keeps about `sample` URIs.

    With `config.limit`, only the columns are read of files and row groups beyond the limit.

    Raises:
        PreflightError: With one sentence for each mistake.
    """
    paths, problems = _match(config.manifests)
    files, file_problems = _inspect_files(paths, config)
    schema, disagreements = unify_schemas(files)
    if problems := [*problems, *file_problems, *disagreements]:
        raise PreflightError(problems)
    _warn_of_names(schema.names)
    return Manifest(
        shards=tuple(shard for file in files for shard in file.shards(config.block_rows)),
        schema=schema,
        label_column=find_label_column(schema.names, config),
        fold_column=find_fold_column(schema.names, config),
        expected_rows=sum(file.expected_rows for file in files),
        expected_bytes=sum(file.expected_bytes for file in files),
        expected_images=_expect_images(files),
        sample=_sample_uris(files, config, sample),
    )


def _warn_of_names(names: list[str]) -> None:
    if awkward := awkward_names(names):
        _LOG.warning(
            "The manifest has columns named %s, which BigQuery and other readers of the scores refuse; rename them (an empty "
            "name is often the index of a pandas frame: write it with index=False).",
            quote_names(awkward),
        )


def _inspect_files(paths: list[str], config: VerificationConfig) -> tuple[list[FileInspection], list[str]]:
    """Returns the files that could be inspected, and all problems: first those of files that could not."""
    budget = InspectionBudget(_VALIDATION_BYTES, config.limit)
    files: list[FileInspection] = []
    problems: list[str] = []
    for path in paths:
        try:
            files.append(inspect_file(path, config, budget))
        except PreflightError as error:
            problems += error.problems
    return files, problems + [problem for file in files for problem in file.problems]


def _expect_images(files: list[FileInspection]) -> int:
    """Returns how many distinct images there are at most; an estimate unless all rows were sampled."""
    arrays = [array for file in files for array in file.images]
    images = len(pa.chunked_array(arrays, pa.string()).unique().drop_null()) if arrays else 0
    rows, rows_sampled = sum(file.expected_rows for file in files), sum(file.rows_sampled for file in files)
    return images if rows_sampled >= rows else int(np.ceil(images * rows / max(1, rows_sampled)))


def _sample_uris(files: list[FileInspection], config: VerificationConfig, count: int) -> tuple[str, ...]:
    """Returns the absolute URIs of some images of the first file that has any."""
    first = next((file for file in files if file.images), None)
    if first is None:
        return ()
    base = config.image_root if config.image_root is not None else parent_folder(first.path)
    uris = resolve_uris(pa.chunked_array(first.images, pa.string()), base).unique().drop_null()
    return tuple(uris[:count].to_pylist())


def _match(patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns the paths that the patterns match, and a sentence for each pattern that matches none."""
    paths: dict[str, None] = {}
    problems = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            problems.append(f"--manifest {pattern} is a folder; name its files, for instance {_example_of_files(pattern)}.")
            continue
        try:
            matches = FileSystems.match([pattern])[0].metadata_list
        except Exception as error:  # Beam wraps whatever the store's client raises.
            problems.append(
                f"--manifest {pattern} cannot be looked up ({short_reason(error)}); check the path and your access."
            )
            continue
        if not matches:
            problems.append(f"--manifest {pattern}: there is no such file; check the path.")
        paths.update(dict.fromkeys(sorted(match.path for match in matches)))
    return list(paths), problems


def _example_of_files(folder: str) -> str:
    """Returns a pattern that matches the manifest files in a folder."""
    names = os.listdir(folder)
    suffix = ".parquet" if any(name.endswith(".parquet") for name in names) else ".csv"
    return f"{folder.rstrip('/')}/*{suffix}"


def unify_schemas(files: list[FileInspection]) -> tuple[pa.Schema, list[str]]:
    """Returns one schema for all files, and a sentence for each file that cannot have it."""
    if not files:
        return pa.schema([]), []
    first, problems = files[0], []
    fields = {field.name: field.with_nullable(True) for field in first.schema}
    for file in files[1:]:
        if difference := sorted(set(file.schema.names) ^ set(first.schema.names)):
            problems.append(
                f"{file.path} and {first.path} disagree on columns ({quote_names(difference)}); "
                "give the files of one run the same columns."
            )
            continue
        for field in file.schema:
            kind = common_type(fields[field.name].type, field.type)
            if kind is None:
                problems.append(
                    f"{file.path} and {first.path} disagree on column '{field.name}' "
                    f"({field.type} and {fields[field.name].type}); store it as one type."
                )
            else:
                fields[field.name] = pa.field(field.name, kind)
    return pa.schema(list(fields.values())), problems
