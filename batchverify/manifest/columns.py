"""The columns of a manifest: which ones a run uses, their names, types and URIs."""

from __future__ import annotations

import collections
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Protocol
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import DEFAULT_LABEL, ScoringConfig, VerificationConfig
from batchverify.errors import RunError
from batchverify.schema import BAD_ROW_COLUMN, CANDIDATE_FIELDS, MANIFEST_FILE, RESERVED_COLUMNS, REVIEW_FIELD, is_text
from batchverify.uris import URI_PATTERN, is_remote

DEFAULT_FOLD = "fold"
# What separates columns where commas do not.
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


class PairColumns(Protocol):
    """The part of a configuration that says where the images of a pair are named.

    Attributes:
        left_column: The column with the URIs of the left images.
        right_column: The column with the URIs of the right images.
        image_root: The folder or URI that relative paths start from; None for the folder of the manifest file.
    """

    @property
    def left_column(self) -> str: ...

    @property
    def right_column(self) -> str: ...

    @property
    def image_root(self) -> str | None: ...


# Options that name columns whose values are names.
_NAMING = ("--group-column", "--group-columns", "--subject-columns")


def pair_uris(block: pa.Table, config: PairColumns) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Returns the absolute URIs of a block's left and right images; null where a row names none.

    A relative path starts from `config.image_root`, or else from the folder of the block's manifest file.
    """
    base = config.image_root
    if base is None and MANIFEST_FILE in block.column_names and block.num_rows:
        base = parent_folder(block[MANIFEST_FILE][0].as_py())
    left, right = (resolve_uris(block[column], base) for column in (config.left_column, config.right_column))
    if BAD_ROW_COLUMN not in block.column_names:
        return left, right
    is_bad = pc.is_valid(block[BAD_ROW_COLUMN])
    return pc.if_else(is_bad, None, left), pc.if_else(is_bad, None, right)


def resolve_uris(column: pa.ChunkedArray, base: str | None) -> pa.ChunkedArray:
    """Returns absolute URIs: relative paths start from `base`, `file:` URIs become paths, and empty text becomes null."""
    uris = column.cast(pa.string())
    uris = pc.if_else(pc.equal(uris, ""), None, uris)
    absolute = pc.starts_with(uris, "/")
    if pc.all(absolute).as_py():
        return uris
    # Regular expressions cost more than all else here, and only names with a colon may be URIs.
    if pc.any(pc.match_substring(uris, ":")).as_py():
        uris = _local_paths(uris)
        absolute = pc.match_substring_regex(uris, f"^(/|{URI_PATTERN.pattern})")
    if base is None:
        return uris
    return pc.if_else(absolute, uris, pc.binary_join_element_wise(base.rstrip("/"), uris, "/"))


def _local_paths(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns `uris` with each `file:` URI as a path (RFC 8089): without scheme and host, and with its escapes decoded."""
    is_file = pc.match_substring_regex(uris, "(?i)^file://")
    if not pc.any(is_file).as_py():
        return uris
    paths = pc.replace_substring_regex(pc.replace_substring_regex(uris, "(?i)^file://localhost/", "/"), "(?i)^file://", "")
    is_escaped = pc.and_(is_file, pc.match_substring(uris, "%"))
    escaped = pc.filter(paths, is_escaped).unique()
    decoded = pa.array(map(unquote, escaped.to_pylist()), pa.string())
    return pc.if_else(is_escaped, decoded.take(pc.index_in(paths, value_set=escaped)), paths)


def parent_folder(path: str) -> str:
    """Returns the folder or URI that contains a file."""
    return path.rsplit("/", 1)[0] if is_remote(path) else os.path.dirname(os.path.abspath(path))


def column_problems(path: str, schema: pa.Schema, config: VerificationConfig) -> Iterator[str]:
    """Yields a sentence for each column that is missing, doubled, reserved, or of a type that does not fit its use."""
    names = schema.names
    if len(names) == 1 and (separators := [character for character in SEPARATORS if character in names[0]]):
        yield (
            f"{path}: its columns seem to be separated by {SEPARATORS[separators[0]]}, not by commas; add --separator "
            f"{'tab' if separators[0] == chr(9) else repr(separators[0])}, and --left-column and --right-column if they have "
            "other names."
        )
        return
    added = [REVIEW_FIELD.name] if config.review is not None else []
    added += [field.name for field in CANDIDATE_FIELDS] if config.candidate is not None else []
    yield from _name_problems(path, names, added)
    used = [("--left-column", config.left_column), ("--right-column", config.right_column)]
    if config.label_column:
        used.append(("--label-column", config.label_column))
    if config.fold_column:
        used.append(("--fold-column", config.fold_column))
    used += [("--group-column", name) for name in dict.fromkeys(config.group_columns)]
    used += [("--group-columns", name) for name in dict.fromkeys(itertools.chain.from_iterable(config.group_column_pairs))]
    used += [("--subject-columns", name) for name in dict.fromkeys(config.subject_columns or ())]
    missing: dict[str, list[str]] = {}
    for option, name in used:
        if name not in names:
            missing.setdefault(name, []).append(option)
    for name, options in missing.items():
        given = " and ".join(options)
        yield f"{path}: there is no column '{name}', only {quote_names(names)}; name the right one with {given}."
    single = {name for name, count in collections.Counter(names).items() if count == 1}
    for option, name in used:
        if name not in single:
            continue
        if option in ("--left-column", "--right-column") and not _holds_uris(schema.field(name).type):
            yield f"{path}: column '{name}' holds {schema.field(name).type}, not text; give paths or URIs."
        elif option in _NAMING and not _holds_names(schema.field(name).type):
            yield f"{path}: column '{name}' holds {schema.field(name).type}, not names; name another with {option}."
    for kind, column in (("label", find_label_column(names, config)), ("fold", find_fold_column(names, config))):
        if column in single and not _holds_labels(schema.field(column).type):
            yield (
                f"{path}: column '{column}' holds {schema.field(column).type}, not {kind}s; "
                f"name another with --{kind}-column, or none with --{kind}-column ''."
            )


def _name_problems(path: str, names: list[str], added: list[str]) -> Iterator[str]:
    """Yields a sentence for each name that is doubled or reserved. DuckDB, Spark and BigQuery compare names without case."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(name.casefold(), []).append(name)
    for same in sorted(spellings.values()):
        if len(set(same)) > 1:
            yield (
                f"{path}: columns {quote_names(sorted(same))} differ only in case, and many readers take them for one column; "
                "rename all but one."
            )
        elif len(same) > 1:
            yield f"{path}: column '{same[0]}' occurs {len(same)} times; rename all but one."
    reserved = {name.casefold() for name in RESERVED_COLUMNS} | set(added)
    for name in sorted(set(names)):
        if name.casefold() in reserved:
            yield f"{path}: column '{name}' is one that the output adds; rename it in the manifest."


# https://cloud.google.com/bigquery/docs/schemas#column_names
_BIGQUERY_FORBIDS = re.compile(
    r"""[!"$()*,./;?@\[\\\]^`{}~]|^(_table_|_file_|_partition|_row_timestamp|__root__|_colidentifier)""", re.I
)


def awkward_names(names: Iterable[str]) -> list[str]:
    """Returns the names that are empty, or that BigQuery does not take as names of columns."""
    return [name for name in names if not name.strip() or len(name) > 300 or _BIGQUERY_FORBIDS.search(name)]


def _holds_uris(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_null(kind)


def _holds_names(kind: pa.DataType) -> bool:
    """Returns whether values can be written as text; those of a dictionary count for it."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _holds_labels(kind) or pa.types.is_temporal(kind) or pa.types.is_decimal(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    numeric = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return numeric or is_text(kind) or pa.types.is_null(kind)


def find_label_column(names: list[str], config: ScoringConfig) -> str | None:
    """Returns the column with labels, or None if the manifest has none."""
    if config.label_column is None:
        return DEFAULT_LABEL if DEFAULT_LABEL in names else None
    return config.label_column or None


def find_fold_column(names: list[str], config: VerificationConfig) -> str | None:
    """Returns the column with folds, or None if the manifest has none."""
    if config.fold_column is None:
        return DEFAULT_FOLD if DEFAULT_FOLD in names else None
    return config.fold_column or None


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Returns the type for a column that has these types in two files, or None if they do not agree."""
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    return pa.string() if is_text(first) and is_text(second) else None


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type in which values of `kind` go through a run: Arrow lacks functions for view types."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, plain_type(kind.value_type), kind.ordered)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(plain_type(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    return kind


def require_columns(names: list[str], config: ScoringConfig) -> None:
    """Refuses a block that lacks a column; the blocks of a manifest lack none.

    Raises:
        RunError: With the name of the column.
    """
    used = [config.left_column, config.right_column, *config.group_columns, *itertools.chain(*config.group_column_pairs)]
    for name in [*used, *(config.subject_columns or ())]:
        if name not in names:
            raise RunError(f"a block has no column '{name}', only {quote_names(names)}; name the right one.")


def changed_in_run(what: str) -> str:
    """Returns what is wrong with a file that is not as it was when it was inspected, and the remedy."""
    return f"the file has changed since the run began ({what}); run again, and leave the manifest as it is meanwhile"


def columns_changed(found: Iterable[str], expected: Iterable[str]) -> str:
    """Returns the same for a file whose columns have changed."""
    difference = ({*found} ^ {*expected}) - {BAD_ROW_COLUMN}
    return changed_in_run(f"columns {quote_names(sorted(difference or found))}")


def quote_names(names: Iterable[str]) -> str:
    """Returns the names in quotes, separated by commas."""
    return ", ".join(f"'{name}'" for name in names)
