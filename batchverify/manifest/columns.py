"""The columns of a manifest: which ones a run uses, their types, labels and URIs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

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


def pair_uris(block: pa.Table, config) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Returns the absolute URIs of a block's left and right images; null where a row names none.

    A relative path starts from `config.image_root`, or else from the folder of the block's manifest file.
    """
    base = config.image_root
    if base is None and MANIFEST_FILE in block.column_names and block.num_rows:
        base = parent_folder(block[MANIFEST_FILE][0].as_py())
    uris = (resolve_uris(block[column], base) for column in (config.left_column, config.right_column))
    if BAD_ROW_COLUMN not in block.column_names:
        return tuple(uris)
    return tuple(pc.if_else(pc.is_valid(block[BAD_ROW_COLUMN]), None, column) for column in uris)


def resolve_uris(column: pa.ChunkedArray, base: str | None) -> pa.ChunkedArray:
    uris = column.cast(pa.string())
    uris = pc.if_else(pc.equal(uris, ""), None, uris)
    uris = pc.replace_substring_regex(uris, "^file://", "")
    if base is None:
        return uris
    absolute = pc.match_substring_regex(uris, f"^(/|{URI_PATTERN.pattern})")
    return pc.if_else(absolute, uris, pc.binary_join_element_wise(base.rstrip("/"), uris, "/"))


def parent_folder(path: str) -> str:
    return path.rsplit("/", 1)[0] if is_remote(path) else os.path.dirname(os.path.abspath(path))


def column_problems(path: str, schema: pa.Schema, config: VerificationConfig) -> Iterator[str]:
    names = schema.names
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{path}: column '{name}' occurs {names.count(name)} times; rename all but one."
    for name in sorted(RESERVED_COLUMNS.intersection(names)):
        yield f"{path}: column '{name}' is one that the output adds; rename it in the manifest."
    wanted = [("--left-column", config.left_column), ("--right-column", config.right_column)]
    if config.label_column:
        wanted.append(("--label-column", config.label_column))
    if config.fold_column:
        wanted.append(("--fold-column", config.fold_column))
    for option, name in wanted:
        if name not in names:
            yield f"{path}: there is no column '{name}', only {quote_names(names)}; name the right one with {option}."
        elif option in ("--left-column", "--right-column") and not _holds_uris(schema.field(name).type):
            yield f"{path}: column '{name}' holds {schema.field(name).type}, not text; give paths or URIs."
    for what, column in (("label", find_label_column(names, config)), ("fold", find_fold_column(names, config))):
        if column in names and not _holds_labels(schema.field(column).type):
            yield (
                f"{path}: column '{column}' holds {schema.field(column).type}, not {what}s; "
                f"name another with --{what}-column, or none with --{what}-column ''."
            )


def _holds_uris(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_null(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    numeric = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return numeric or is_text(kind) or pa.types.is_null(kind)


def find_label_column(names: list[str], config: VerificationConfig) -> str | None:
    if config.label_column is None:
        return DEFAULT_LABEL if DEFAULT_LABEL in names else None
    return config.label_column or None


def find_fold_column(names: list[str], config: VerificationConfig) -> str | None:
    if config.fold_column is None:
        return DEFAULT_FOLD if DEFAULT_FOLD in names else None
    return config.fold_column or None


def find_bad_label(block: pa.Table, label: str, path: str, first_row: int) -> str | None:
    column = block[label]
    _, bad = parse_labels(column)
    if BAD_ROW_COLUMN in block.column_names:  # whose label may be another field
        bad &= block[BAD_ROW_COLUMN].is_null().to_numpy()
    if not bad.any():
        return None
    row = int(np.argmax(bad))
    return (
        f"{path}, row {first_row + row}: the label is {column[row].as_py()!r}; "
        "write 1 or true for a genuine pair, 0 or false for an impostor, or nothing."
    )


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    return pa.string() if is_text(one) and is_text(other) else None


def quote_names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
