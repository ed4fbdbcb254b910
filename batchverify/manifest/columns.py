"""The columns of a manifest: which ones a run uses, their types, labels and URIs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Protocol
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.config import VerificationConfig
from batchverify.schema import BAD_ROW_COLUMN, MANIFEST_FILE, RESERVED_COLUMNS, is_text
from batchverify.uris import URI_PATTERN, is_remote

DEFAULT_LABEL, DEFAULT_FOLD = "genuine", "fold"


def parse_labels(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Reads labels: 0 and 1, true and false in any case, or booleans; null and empty mean unlabelled.

    Returns:
        `(labels, bad)`: int8 `(n,)` of 1 (genuine), 0 (impostor) and -1 (unlabelled), and bool `(n,)`.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    text = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), "")))
    known = pa.array(["", "0", "1", "false", "true", "0.0", "1.0"])
    codes = pc.fill_null(pc.index_in(text, value_set=known), -1).to_numpy()
    meaning = np.array([-1, 0, 1, 0, 1, 0, 1, -1], np.int8)
    return meaning[codes], codes < 0


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
    uris = _local_paths(uris)
    if base is None:
        return uris
    absolute = pc.match_substring_regex(uris, f"^(/|{URI_PATTERN.pattern})")
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
    if separator := _find_separator(names):
        yield f"{path}: its columns are separated by {separator}, not by commas; save the file with commas."
        return
    yield from _name_problems(path, names)
    used = [("--left-column", config.left_column), ("--right-column", config.right_column)]
    if config.label_column:
        used.append(("--label-column", config.label_column))
    if config.fold_column:
        used.append(("--fold-column", config.fold_column))
    for option, name in used:
        if name not in names:
            yield f"{path}: there is no column '{name}', only {quote_names(names)}; name the right one with {option}."
        elif option in ("--left-column", "--right-column") and not _holds_uris(schema.field(name).type):
            yield f"{path}: column '{name}' holds {schema.field(name).type}, not text; give paths or URIs."
    for kind, column in (("label", find_label_column(names, config)), ("fold", find_fold_column(names, config))):
        if column in names and not _holds_labels(schema.field(column).type):
            yield (
                f"{path}: column '{column}' holds {schema.field(column).type}, not {kind}s; "
                f"name another with --{kind}-column, or none with --{kind}-column ''."
            )


def _find_separator(names: list[str]) -> str | None:
    """Returns what separates the columns of a header that was read as a single name; None if it is a single name."""
    separators = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
    return next((text for character, text in separators.items() if len(names) == 1 and character in names[0]), None)


def _name_problems(path: str, names: list[str]) -> Iterator[str]:
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
    reserved = {name.casefold() for name in RESERVED_COLUMNS}
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


def _holds_labels(kind: pa.DataType) -> bool:
    numeric = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return numeric or is_text(kind) or pa.types.is_null(kind)


def find_label_column(names: list[str], config: VerificationConfig) -> str | None:
    """Returns the column with labels, or None if the manifest has none."""
    if config.label_column is None:
        return DEFAULT_LABEL if DEFAULT_LABEL in names else None
    return config.label_column or None


def find_fold_column(names: list[str], config: VerificationConfig) -> str | None:
    """Returns the column with folds, or None if the manifest has none."""
    if config.fold_column is None:
        return DEFAULT_FOLD if DEFAULT_FOLD in names else None
    return config.fold_column or None


def find_bad_label(block: pa.Table, label: str, path: str, first_row: int) -> str | None:
    """Returns a sentence about the first value that is no label, or None if there is none.

    Args:
        block: Rows of the manifest.
        label: The column with labels.
        path: The file that the rows come from.
        first_row: The number of the first of these rows in the file.
    """
    column = block[label]
    _, bad = parse_labels(column)
    if BAD_ROW_COLUMN in block.column_names:  # The label of a misfit row may be the value of another column.
        bad &= block[BAD_ROW_COLUMN].is_null().to_numpy()
    if not bad.any():
        return None
    row = int(np.argmax(bad))
    return (
        f"{path}, row {first_row + row}: the label is {column[row].as_py()!r}; "
        "write 1 or true for a genuine pair, 0 or false for an impostor, or nothing."
    )


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Returns the type for a column that has these types in two files, or None if they do not agree."""
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    return pa.string() if is_text(first) and is_text(second) else None


def quote_names(names: Iterable[str]) -> str:
    """Returns the names in quotes, separated by commas."""
    return ", ".join(f"'{name}'" for name in names)
