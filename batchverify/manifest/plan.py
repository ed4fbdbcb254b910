"""Inspects every manifest file before a run begins, and reports all mistakes at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from batchverify.config import VerificationConfig
from batchverify.errors import ManifestMissingError, PreflightError, short_reason
from batchverify.io.filesystem import list_files, walk_folders
from batchverify.manifest.columns import (
    SEPARATORS,
    awkward_names,
    common_type,
    find_fold_column,
    find_label_column,
    quote_names,
)
from batchverify.manifest.inspection import FileInspection, InspectionBudget, inspect_file
from batchverify.manifest.labels import COMMON_SPELLING, SPELLINGS, LabelSpelling
from batchverify.manifest.partitions import partition_values
from batchverify.manifest.shard import Manifest
from batchverify.uris import is_remote
from batchverify.words import counted

_LOG = logging.getLogger(__name__)
# The bytes that are read before a run to find mistakes: all of most manifests, and a few seconds' worth of a huge one.
_VALIDATION_BYTES = 64 * 2**20
# Images of a file from which a sample is taken, for each image of the sample.
_IMAGES_PER_SAMPLED = 100
_ENDINGS = (".csv", ".csv.gz", ".csv.bz2", ".csv.zst", ".tsv", ".tsv.gz", ".parquet", ".pq")
_ENDINGS_IN_WORDS = ".csv, .tsv or .parquet"


def plan_manifest(config: VerificationConfig, sample: int = 12) -> Manifest:
    """Inspects every manifest file of `config`, and keeps about `sample` URIs.

    With `config.limit`, only the columns are read of files and row groups beyond the limit.

    Raises:
        ManifestMissingError: If files are missing, and there is no other mistake.
        PreflightError: With one sentence for each mistake.
    """
    paths, missing, problems = _match(config)
    files, file_problems = _inspect_files(paths, config)
    schema, disagreements = unify_schemas(files)
    label_column, (spellings, differing) = find_label_column(schema.names, config), unify_spellings(files)
    if problems := [*problems, *file_problems, *disagreements, *differing]:
        raise PreflightError([*missing, *problems])
    if missing:
        raise ManifestMissingError(missing)
    _warn_of_names(schema.names)
    if label_column and spellings[0] != COMMON_SPELLING:
        _LOG.info("Labels: in column '%s', %s.", label_column, spellings[0])
    _report_separators(files)
    return Manifest(
        shards=tuple(shard for file in files for shard in file.shards(config.block_rows)),
        schema=schema,
        label_column=label_column,
        label_spelling=spellings[0],
        fold_column=find_fold_column(schema.names, config),
        expected_rows=sum(file.expected_rows for file in files),
        expected_bytes=sum(file.expected_bytes for file in files),
        expected_images=_expect_images(files),
        sample=_sample_uris(files, sample),
    )


def _warn_of_names(names: list[str]) -> None:
    if awkward := awkward_names(names):
        _LOG.warning(
            "The manifest has columns named %s, which BigQuery and other readers of the scores refuse; rename them (an empty "
            "name is often the index of a pandas frame: write it with index=False).",
            quote_names(awkward),
        )


def _report_separators(files: list[FileInspection]) -> None:
    for separator in {file.csv_header.separator for file in files if file.csv_header} - {","}:
        _LOG.info("The columns of the manifest are separated by %s.", SEPARATORS.get(separator, f"'{separator}'"))


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
    return files, problems + _told_once(files)


def _told_once(files: list[FileInspection]) -> list[str]:
    """Returns the problems of all files; one that several files have in the same words is one sentence."""
    paths: dict[tuple[str, str], list[str]] = {}
    for file in files:
        for problem in file.problems:
            words = problem.removeprefix(f"{file.path}: ")
            paths.setdefault(("" if words != problem else file.path, words), []).append(file.path)
    return [_of_files(*known, same) for known, same in paths.items()]


def _of_files(own_path: str, words: str, paths: list[str]) -> str:
    if own_path:  # The sentence says where in the file.
        return words
    others = f" and {counted(len(paths) - 1, 'other file')}" if len(paths) > 1 else ""
    return f"{paths[0]}{others}: {words}"


def _expect_images(files: list[FileInspection]) -> int:
    """Returns how many distinct images there are at most; an estimate unless all rows were sampled."""
    arrays = [array for file in files for array in file.images]
    images = len(pa.chunked_array(arrays, pa.string()).unique().drop_null()) if arrays else 0
    rows, rows_sampled = sum(file.expected_rows for file in files), sum(file.rows_sampled for file in files)
    return images if rows_sampled >= rows else int(np.ceil(images * rows / max(1, rows_sampled)))


def _sample_uris(files: list[FileInspection], count: int) -> tuple[str, ...]:
    """Returns the URIs of some images of the first file that has any."""
    first = next((file for file in files if file.images), None)
    if first is None:
        return ()
    # Each part of the file has its images once. To look for the same ones in all parts would take long.
    some = pa.chunked_array(first.images, pa.string()).slice(0, _IMAGES_PER_SAMPLED * count)
    return tuple(some.unique().drop_null()[:count].to_pylist())


def _match(config: VerificationConfig) -> tuple[list[str], list[str], list[str]]:
    """Returns the paths that the patterns match, each file once, sentences for patterns that match none, and other problems.

    A folder stands for the manifest files in it and in its folders. Spark and Hive write such folders, with files of their own
    whose names begin with an underscore or a dot.
    """
    paths: dict[str, str] = {}  # By what each path leads to: a file may be named twice, in two spellings or by a link.
    missing, problems = [], []
    for pattern in config.manifests:
        try:
            matches = [] if os.path.isdir(pattern) else list_files(pattern)
            if not matches:
                matches = _manifests_in(pattern, config)
        except Exception as error:  # Beam wraps whatever the store's client raises.
            problems.append(
                f"--manifest {pattern} cannot be looked up ({short_reason(error)}); check the path and your access."
            )
            continue
        if not matches and os.path.isdir(pattern):
            missing.append(f"--manifest {pattern}: the folder has no file that ends in {_ENDINGS_IN_WORDS}; name its files.")
        elif not matches:
            missing.append(f"--manifest {pattern}: there is no such file; check the path.")
        for path in sorted(matches):
            paths.setdefault(_target_of(path), path)
    return list(paths.values()), missing, problems + _not_utf8(paths.values())


def _manifests_in(folders: str, config: VerificationConfig) -> list[str]:
    """Returns the manifest files in the folders that a pattern matches; what this run writes there is no part of them."""
    own = [_target_of(path) for path in (config.output, config.embeddings) if path]
    found = [path for path in walk_folders(folders) if _is_manifest(path, folders)]
    return [path for path in found if not any(_target_of(path).startswith(f"{directory}/") for directory in own)]


def _target_of(path: str) -> str:
    """Returns the one name of a file or folder that may be written in several ways."""
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def _not_utf8(paths: Iterable[str]) -> list[str]:
    # Python stands a surrogate for each such byte, and neither Arrow nor Parquet takes those.
    names = [path for path in paths if path.encode(errors="replace").decode() != path]
    return [f"the name of the manifest file {name!a} is not UTF-8; rename the file." for name in names]


def _is_manifest(path: str, folder: str) -> bool:
    """Returns whether a file in a folder, or in one of its folders, is a part of a manifest."""
    names = path.split("/")[folder.rstrip("/").count("/") + 1 :]
    return path.lower().endswith(_ENDINGS) and not any(name.startswith(("_", ".")) for name in names)


def unify_schemas(files: list[FileInspection]) -> tuple[pa.Schema, list[str]]:
    """Returns one schema for all files, and a sentence for each file that cannot have it."""
    if not files:
        return pa.schema([]), []
    first, problems = files[0], []
    fields = {field.name: field.with_nullable(True) for field in first.schema}
    for file in files[1:]:
        optional = {**partition_values(first.path), **partition_values(file.path)}
        if difference := sorted((set(file.schema.names) ^ set(first.schema.names)) - set(optional)):
            problems.append(
                f"{file.path} and {first.path} disagree on columns ({quote_names(difference)}); "
                "give the files of one run the same columns."
            )
            continue
        for field in file.schema:
            fields.setdefault(field.name, field.with_nullable(True))
            kind = common_type(fields[field.name].type, field.type)
            if kind is None:
                problems.append(
                    f"{file.path} and {first.path} disagree on column '{field.name}' "
                    f"({field.type} and {fields[field.name].type}); store it as one type."
                )
            else:
                fields[field.name] = pa.field(field.name, kind)
    return pa.schema(list(fields.values())), problems


def unify_spellings(files: list[FileInspection]) -> tuple[tuple[LabelSpelling, ...], list[str]]:
    """Returns the spellings of labels that all files may have, and a sentence if there is none."""
    spellings: tuple[LabelSpelling, ...] = SPELLINGS
    for file in files:
        if not file.spellings:  # Its own problem says why.
            continue
        before, spellings = spellings, tuple(spelling for spelling in spellings if spelling in file.spellings)
        if not spellings:
            problem = f"{file.path} writes its labels otherwise than the files before it ({file.spellings[0]}; {before[0]})"
            return SPELLINGS, [f"{problem}; give the files of one run the same labels."]
    return spellings, []
