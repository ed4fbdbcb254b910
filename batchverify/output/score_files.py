"""The scores of a finished run as files that other tools of the field read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchverify.errors import PreflightError, short_reason
from batchverify.io.atomic_output import atomic_folder, atomic_output, refuse_folder
from batchverify.io.filesystem import open_input
from batchverify.manifest.labels import parse_labels
from batchverify.output.run_directory import RunDirectory

_ROWS_AT_ONCE = 65_536
_PYEER_FILES = ("genuine.txt", "impostor.txt")


class ScoreCounts(NamedTuple):
    """How many rows of a run were written, and how many have no place in the files.

    Attributes:
        genuine: The number of genuine scores written.
        impostor: The number of impostor scores written.
        without_score: The number of rows without a score.
        without_label: The number of rows with a score and without a label.
    """

    genuine: int = 0
    impostor: int = 0
    without_score: int = 0
    without_label: int = 0


def write_score_files(run: str, output: str, file_format: str, label_column: str) -> ScoreCounts:
    """Writes the scores of the labelled rows of a finished run.

    Args:
        run: The run directory.
        output: The file or folder to write, which appears when it is complete.
        file_format: `bob` for one file with `1` or `-1` and the score in each line, as bob.measure reads; `pyeer` for a
            folder with `genuine.txt` and `impostor.txt`, a score in each line.
        label_column: The column of the manifest with the labels.

    Raises:
        PreflightError: if there is no finished run, it has no labels and scores in these columns, or something is in the place
            of the output that may not be replaced.
    """
    counts = np.zeros(len(ScoreCounts._fields), int)
    write = _write_pyeer if file_format == "pyeer" else _write_bob
    with _replaced(output, file_format) as unfinished:
        for batch in write(unfinished, _read_labelled_scores(run, label_column)):
            counts += batch
        totals = ScoreCounts(*map(int, counts))
        if not totals.genuine + totals.impostor:
            raise PreflightError(f"{run} has no labelled row with a score; name the labels with --label-column.")
    return totals


def _replaced(output: str, file_format: str) -> AbstractContextManager[str]:
    if file_format == "pyeer":
        return atomic_folder("--output", output, _PYEER_FILES)
    refuse_folder("--output", output)
    return atomic_output(output)


class _Batch(NamedTuple):
    """Labels, 1, 0 or -1 for none, and scores as text that gives the same float32 again, None for none."""

    labels: list[int]
    scores: list[str | None]

    def scores_of(self, label: int) -> list[str]:
        return [score for score, other in zip(self.scores, self.labels, strict=True) if score is not None and other == label]

    def counts(self) -> ScoreCounts:
        sizes = [len(self.scores_of(label)) for label in (1, 0, -1)]
        return ScoreCounts(sizes[0], sizes[1], self.scores.count(None), sizes[2])


def _write_bob(path: str, batches: Iterator[_Batch]) -> Iterator[ScoreCounts]:
    with open(path, "w", encoding="ascii") as file:
        for batch in batches:
            _write_lines(file, batch.scores_of(1), "1 ")
            _write_lines(file, batch.scores_of(0), "-1 ")
            yield batch.counts()


def _write_pyeer(path: str, batches: Iterator[_Batch]) -> Iterator[ScoreCounts]:
    with ExitStack() as stack:
        genuine, impostor = (
            stack.enter_context(open(os.path.join(path, name), "w", encoding="ascii")) for name in _PYEER_FILES
        )
        for batch in batches:
            _write_lines(genuine, batch.scores_of(1))
            _write_lines(impostor, batch.scores_of(0))
            yield batch.counts()


def _write_lines(file: TextIO, scores: list[str], prefix: str = "") -> None:
    file.writelines(f"{prefix}{score}\n" for score in scores)


def _read_labelled_scores(run: str, label_column: str) -> Iterator[_Batch]:
    for path in _scores_paths(run):
        with open_input(path) as file:
            reader = pq.ParquetFile(file)
            if label_column not in reader.schema_arrow.names:
                names = ", ".join(reader.schema_arrow.names)
                raise PreflightError(f"{path}: there is no column '{label_column}', only {names}; name it with --label-column.")
            for rows in reader.iter_batches(_ROWS_AT_ONCE, columns=["score", label_column]):
                yield _labelled(pa.Table.from_batches([rows]), label_column, path)


def _scores_paths(run: str) -> list[str]:
    directory = RunDirectory(run)
    try:
        paths = directory.scores_paths() if directory.is_finished() else None
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"{run} cannot be read ({short_reason(error)}); check the path and your access.") from None
    if paths is None:
        raise PreflightError(f"{run} holds no finished run; name a directory with _SUCCESS in it.")
    return paths


def _labelled(table: pa.Table, label_column: str, path: str) -> _Batch:
    labels, is_bad = parse_labels(table[label_column])
    is_bad &= table["score"].is_valid().to_numpy()
    if is_bad.any():
        value = table[label_column][int(is_bad.argmax())].as_py()
        raise PreflightError(f"{path}: column '{label_column}' holds {value!r:.40}, no label; name another column.")
    return _Batch(labels.tolist(), table["score"].cast(pa.string()).to_pylist())
