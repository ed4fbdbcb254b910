"""Scores the pairs of a data frame: `batchverify.score_frame`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.keywords import field_names, make_config
from batchverify.manifest.columns import find_fold_column, find_label_column, quote_names
from batchverify.notebook.images import ImageFiles, absolute_uris, errors_without_folder, without_folder
from batchverify.notebook.progress import progress_bar
from batchverify.notebook.run_summary import RunSummary
from batchverify.pipeline.run import run
from batchverify.schema import MANIFEST_ROW, RESULT_FIELDS, optional_fields
from batchverify.temporary_folder import temporary_folder

_FOR_FILES = {
    "model", "manifests", "output", "overwrite", "block_rows", "separator", "bad_rows", "limit", "accelerator",
}  # fmt: skip
_OPTIONS = field_names(VerificationConfig) - _FOR_FILES
# All columns that a run may add to those of the manifest.
_ADDED = (*RESULT_FIELDS, *optional_fields(with_review=True, with_llr=True, with_probability=True))
# Types of pandas' own in which a column may have gaps and stay what it is.
_WITH_GAPS = {
    pa.bool_(): pd.BooleanDtype(), pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(), pa.uint8(): pd.UInt8Dtype(), pa.uint16(): pd.UInt16Dtype(), pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}  # fmt: skip


def score_frame(
    frame: Any, *, model: str | os.PathLike[str] | None, progress: bool | None = None, **options: Any
) -> pd.DataFrame:
    """Scores the pairs of a data frame, in this process.

    Each of the columns `left` and `right` may hold paths, URIs, the bytes of image files, NumPy arrays of uint8
    `(height, width)` or `(height, width, channels)`, and images of Pillow's, in any mixture. Identical content is encoded once.
    Images in memory are copied to a temporary folder without a loss; it is deleted at the end. Relative paths start from the
    working directory, or from `image_root`. An image that cannot be read fails its rows, not the call: the columns
    `left_status`, `right_status` and `error` say why.

    Args:
        frame: A pandas DataFrame, or anything with `__arrow_c_stream__`, such as a table of Polars, DuckDB or Arrow.
        model: The path of the model; None means the embedded demo model.
        progress: Whether to show a bar; None shows it in a notebook and on a terminal. The bar is tqdm's where that is
            installed.
        options: The fields of `VerificationConfig`, such as `threshold`, `left_column` or `max_identity_faults`, but for those
            that concern files. A gate raises nothing: the summary says whether it is met.

    Returns:
        The frame with its index and columns, and the result columns of [the output](output.md#columns) beside them; `match`,
        `same_image` and `review` are pandas' nullable booleans. `attrs["batchverify"]` is the summary, a `RunSummary`.

    Raises:
        PreflightError: If the frame, the model or an option cannot be used.
        RunError: If the run cannot be finished.

    Examples:
        >>> import batchverify, pandas
        >>> pairs = pandas.read_csv("pairs.csv")
        >>> scored = batchverify.score_frame(pairs, model="model.keras", threshold=0.7)
        >>> int(scored["match"].sum()), scored.attrs["batchverify"]["rows"]["total"]
        (64, 125)
        >>> scored.loc[scored["score"].isna(), "left_status"].astype(str).tolist()
        ['ok', 'unreadable', 'ok']
    """
    frame = _as_pandas(frame)
    with temporary_folder() as folder:
        config = make_config(
            VerificationConfig, "score_frame", options, _OPTIONS,
            model=model, manifests=(f"{folder}/frame.parquet",), output=f"{folder}/scores",
        )  # fmt: skip
        _refuse_columns(frame, config)
        files = ImageFiles(folder)
        pq.write_table(_manifest(frame, config, files), config.manifests[0])
        with progress_bar(progress) as watch, errors_without_folder(folder):
            result = run(config, watch=watch)
        summary = json.loads(without_folder(json.dumps(result.summary), json.dumps(folder)[1:-1]))
        return _joined(frame, _read_results(config, files), RunSummary(summary))


def _as_pandas(frame: Any) -> pd.DataFrame:
    if isinstance(frame, pd.DataFrame):
        return frame
    if not hasattr(frame, "__arrow_c_stream__"):
        raise PreflightError(
            f"the frame is {type(frame).__name__}; give a pandas DataFrame, or a table of Polars, DuckDB or Arrow."
        )
    return pa.table(frame).to_pandas(types_mapper=_WITH_GAPS.get)


def _refuse_columns(frame: pd.DataFrame, config: VerificationConfig) -> None:
    names = list(frame.columns)
    missing: dict[str, list[str]] = {}
    for option, name in _named_columns(config):
        if name not in names:
            missing.setdefault(name, []).append(option)
    only = quote_names(map(str, names))
    problems = [
        f"the frame has no column '{name}', only {only}; name the right one with {' and '.join(dict.fromkeys(options))}."
        for name, options in missing.items()
    ]
    doubled = dict.fromkeys(name for name in names if names.count(name) > 1)
    problems += [f"the frame has the column '{name}' {names.count(name)} times; rename all but one." for name in doubled]
    if taken := [field.name for field in _ADDED if field.name in names]:
        problems.append(f"the frame has {quote_names(taken)} already, which the result adds; rename or drop that first.")
    if problems:
        raise PreflightError(problems)


def _named_columns(config: VerificationConfig) -> Iterator[tuple[str, str]]:
    """Yields each column that the configuration names, after the option that names it."""
    for option in ("left_column", "right_column", "label_column", "fold_column"):
        if name := getattr(config, option):
            yield option, name
    yield from (("group_columns", name) for name in config.group_columns)
    yield from (("group_column_pairs", name) for pair in config.group_column_pairs for name in pair)
    yield from (("subject_columns", name) for name in config.subject_columns or ())


def _manifest(frame: pd.DataFrame, config: VerificationConfig, files: ImageFiles) -> pa.Table:
    """Returns what the run reads: the images' URIs, and the columns that the configuration names."""
    for_paths = config.image_root is not None or config.embeddings is not None
    columns = {}
    for name in (config.left_column, config.right_column):
        uris = files.uris(frame[name], f"column '{name}'", with_memory=not for_paths)
        columns[name] = uris if config.image_root is not None else absolute_uris(uris)
    names = [name for name in frame.columns if isinstance(name, str)]
    others = {find_label_column(names, config), find_fold_column(names, config)}
    others |= {name for _, name in _named_columns(config)}
    for other in sorted(name for name in others if name in names and name not in columns):
        columns[other] = _to_arrow(frame[other])
    return pa.table(columns)


def _to_arrow(column: pd.Series) -> pa.Array:
    try:
        return pa.Array.from_pandas(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise PreflightError(
            f"column '{column.name}' holds values of several types ({short_reason(error)}); give it one."
        ) from None


def _read_results(config: VerificationConfig, files: ImageFiles) -> pd.DataFrame:
    """Returns the result columns in the order of the frame."""
    found = sorted(str(path) for path in Path(config.output).glob("scores-*.parquet"))
    table = ds.dataset(found).to_table().sort_by(MANIFEST_ROW)
    names = [field.name for field in _ADDED if field.name in table.column_names]
    table = table.set_column(table.column_names.index("error"), "error", files.plain_errors(table["error"]))
    return table.select(names).to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)


def _joined(frame: pd.DataFrame, results: pd.DataFrame, summary: RunSummary) -> pd.DataFrame:
    joined = pd.concat([frame, results.set_axis(frame.index)], axis=1)
    joined.attrs = {**frame.attrs, "batchverify": summary}
    return joined
