"""`VerifyRows`: rows of a pipeline to rows with the result columns; what Beam YAML uses."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Optional, cast

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection, Row
from apache_beam.typehints import row_type
from apache_beam.typehints.schemas import named_fields_from_element_type

from batchverify.config import ScoringConfig
from batchverify.errors import PreflightError
from batchverify.keywords import field_names, make_config
from batchverify.model.registry import resolve_models
from batchverify.model.sidecar import Sidecar, read_sidecar
from batchverify.pipeline.transforms import VerifyPairs
from batchverify.schema import CANDIDATE_FIELDS, RESULT_FIELDS, optional_fields

_ROWS_PER_BLOCK = 10_000
_ROW = "batchverify.row"
_OF_RUNS = {
    "label_column", "fold_column", "group_columns", "group_column_pairs", "subject_columns", "stranger_pairs",
    "steadiness_images",
}  # fmt: skip
_OPTIONS = field_names(ScoringConfig) - _OF_RUNS
_TYPES = {pa.float32(): float, pa.bool_(): bool}


class VerifyRows(beam.PTransform[PCollection[Any], PCollection[Any]]):
    """Scores rows that name pairs of images: `beam.Row` to `beam.Row` with the result columns.

    It is for rows that come from somewhere else than a manifest, one by one, and for Beam YAML. The rows need a schema, as Beam
    has it, with the columns that name the images; all other columns pass through, whatever their types. `VerifyPairs` takes
    blocks of rows in Arrow, and costs less for each row.

    The results are those of a run with the same options: with `review`, a candidate, or a calibration in the model's sidecar,
    their columns too.

    Args:
        expected_images: The approximate number of distinct images; it decides in how many groups they are encoded.
        options: The fields of `ScoringConfig`, such as `model`, `threshold` and `left_column`, but for those that concern
            labels and whole runs.

    Raises:
        PreflightError: If an option cannot be; when the transform is applied, if the rows lack a column or have one that the
            results add, or the sidecar cannot be read.

    Examples:
        >>> import apache_beam as beam, batchverify
        >>> rows = [beam.Row(order=17, left="images/a2_c0_w0.png", right="images/a2_c0_w1.png")]
        >>> with beam.Pipeline(runner="FnApiRunner") as pipeline:
        ...     scored = pipeline | beam.Create(rows) | batchverify.VerifyRows(model="model.keras", threshold=0.7)
        ...     _ = scored | beam.Map(lambda row: print(row.order, round(row.score, 2), row.match, row.identity_check))
        17 0.99 True sane
    """

    def __init__(self, expected_images: int = 100_000, **options: Any):
        super().__init__()
        self._expected_images = expected_images
        self._config = make_config(ScoringConfig, "VerifyRows", options, _OPTIONS, stranger_pairs=0, steadiness_images=0)

    def expand(self, rows: PCollection[Any]) -> PCollection[Any]:
        config, _ = resolve_models(self._config)
        sidecar = read_sidecar(config.model)
        fields = self._checked_fields(rows.element_type, sidecar)
        results = self._result_fields(sidecar)
        blocks = (
            rows
            | "Batch" >> beam.BatchElements(1, _ROWS_PER_BLOCK)
            | "ToBlock" >> beam.Map(to_block, self._config.left_column, self._config.right_column)
            # The key of a block is drawn at random; a retry must not draw another one.
            | "KeepKeys" >> beam.Reshuffle().with_output_types(tuple[str, pa.Table])
        )
        verified = blocks | "VerifyPairs" >> VerifyPairs(config, self._expected_images, sidecar=sidecar)
        scored: PCollection[Any] = verified.scores | "ToRows" >> beam.FlatMap(
            to_rows, [field.name for field in results]
        ).with_output_types(row_type.RowTypeConstraint.from_fields([*fields, *map(_typed, results)]))
        return scored

    def _result_fields(self, sidecar: Sidecar) -> list[pa.Field]:
        """Returns the columns that the results have, as in a run with the same options."""
        config = self._config
        optional = optional_fields(config.review is not None, sidecar.calibration is not None, config.prior is not None)
        return [*RESULT_FIELDS, *optional, *(CANDIDATE_FIELDS if config.candidate is not None else ())]

    def _checked_fields(self, element_type: Any, sidecar: Sidecar) -> list[tuple[str, Any]]:
        try:
            fields = named_fields_from_element_type(element_type)
        except (TypeError, ValueError):
            raise PreflightError(
                f"VerifyRows takes rows with a schema, and these elements are {element_type}; map them to beam.Row(…) first."
            ) from None
        names = [name for name, _ in fields]
        for option in ("left_column", "right_column"):
            if getattr(self._config, option) not in names:
                raise PreflightError(
                    f"the rows have no column '{getattr(self._config, option)}', only {', '.join(names)}; name the right one "
                    f"with {option}."
                )
        if taken := [field.name for field in self._result_fields(sidecar) if field.name in names]:
            raise PreflightError(f"the rows have {', '.join(taken)} already, which the result adds; rename that first.")
        return fields


def _typed(field: pa.Field) -> tuple[str, Any]:
    """Returns the name and the type of a result as Beam's schemas have it."""
    kind: Any = _TYPES.get(field.type, str)
    return field.name, Optional[kind] if field.nullable else kind  # noqa: UP045  # Beam's schemas do not know `kind | None`.


def to_block(rows: Sequence[Any], left: str, right: str) -> tuple[str, pa.Table]:
    """Returns rows as a block with a key of its own: the URIs, and each whole row, pickled."""
    columns = {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in (left, right)}
    return uuid.uuid4().hex, pa.table({**columns, _ROW: pa.array([pickle.dumps(row._asdict()) for row in rows], pa.binary())})


def to_rows(block: pa.Table, results: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of a scored block, each with its results."""
    for row, values in zip(block[_ROW].to_pylist(), block.select(results).to_pylist(), strict=True):
        yield Row(**cast(dict[str, Any], pickle.loads(row)), **values)
