"""The DoFn that compares and checks the pairs of each block."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import cast

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics.metric import Metrics

from batchverify.config import ScoringConfig
from batchverify.errors import RunError
from batchverify.evaluation.identity import check_identity
from batchverify.manifest.columns import pair_uris
from batchverify.model.calibration import Calibration, posterior
from batchverify.pipeline.encoded_images import OK_CODE, no_encoded_images
from batchverify.pipeline.image_arrays import BlockImages, ImageArrays, Images
from batchverify.pipeline.network import Network, NetworkLoader, NetworkWithCandidate
from batchverify.pipeline.wrong_scores import CANDIDATE, MODEL, without_wrong_scores
from batchverify.schema import (
    BAD_ROW_COLUMN,
    CANDIDATE_FIELDS,
    LLR_FIELD,
    MANIFEST_FILE,
    PROBABILITY_FIELD,
    PROVENANCE_FIELDS,
    RESULT_FIELDS,
    REVIEW_FIELD,
    STATUSES,
    VERDICTS,
    ImageStatus,
    category,
    is_match,
)
from batchverify.tracing import span
from batchverify.worker_stats import WorkerStats

# The kinds of tables that are grouped by block.
BLOCK_TABLE, IMAGES_TABLE = "block", "images"
_BAD_ROW = STATUSES.index(ImageStatus.BAD_ROW)
# Pairs are compared in slices, so that the embeddings of a slice stay small beside the block, however wide they are.
_BYTES_PER_SLICE = 64 * 2**20
_MAX_PAIRS_PER_SLICE = 8192


class CountRows:
    """Beam's counters of the rows that have a score. Beam takes values only from the thread that processes a bundle."""

    def __init__(self) -> None:
        self._scored = Metrics.counter("batchverify", "rows_scored")
        self._encodings = Metrics.counter("batchverify", "encodings")

    def add(self, scored: pa.Table, network: Network, config: ScoringConfig, stats: WorkerStats) -> None:
        """Counts the rows of a scored block."""
        failed = scored["score"].null_count
        rows, encodings_per_pair = scored.num_rows - failed, network.encodings_per_pair
        if config.candidate is not None:
            encodings_per_pair += cast(NetworkWithCandidate, network).candidate.encodings_per_pair
        self._scored.inc(rows)
        self._encodings.inc(rows * encodings_per_pair)
        stats.add(rows_scored=rows, rows_failed=failed)


class ComparePairs(beam.DoFn):
    """Turns `(block key, [(BLOCK_TABLE, block), (IMAGES_TABLE, encoded images), …])` into the block with the result columns.

    Args:
        loader: The loader of the network.
        config: The configuration, completed by the model's sidecar.
        stats: The counts and times of this process.
        calibration: What turns scores into log-likelihood ratios, or None.
    """

    def __init__(
        self,
        loader: NetworkLoader,
        config: ScoringConfig,
        stats: WorkerStats | None = None,
        calibration: Calibration | None = None,
    ):
        self._loader, self._config, self._stats = loader, config, stats or WorkerStats()
        self._calibration = calibration
        self._count = CountRows()

    def setup(self) -> None:
        self._network = self._loader.get()

    def process(self, element: tuple[str, Iterable[tuple[str, pa.Table]]]) -> Iterator[pa.Table]:
        key, tables = element
        by_kind: dict[str, list[pa.Table]] = {BLOCK_TABLE: [], IMAGES_TABLE: []}
        for kind, table in tables:
            by_kind[kind].append(table)
        if len(by_kind[BLOCK_TABLE]) != 1:
            raise RunError(f"{len(by_kind[BLOCK_TABLE])} blocks have the key {key}; give every block a key of its own.")
        (block,) = by_kind[BLOCK_TABLE]
        with self._stats.timed("compare"), span("compare", rows=block.num_rows):
            answers = by_kind[IMAGES_TABLE]
            images = BlockImages(pa.concat_tables(answers).combine_chunks() if answers else no_encoded_images())
            scored = compare_block(block, images, self._network, self._config, self._calibration)
        # Beam runs the following steps, which write, before it resumes this generator.
        with self._stats.timed("write"), span("write", rows=block.num_rows):
            yield scored
        self._count.add(scored, self._network, self._config, self._stats)


def compare_block(
    block: pa.Table, images: Images, network: Network, config: ScoringConfig, calibration: Calibration | None = None
) -> pa.Table:
    """Returns `block` with the result columns.

    Args:
        block: Rows of the manifest.
        images: The encoded images of the block, and maybe others.
        network: The network that compares embeddings.
        config: The configuration, completed by the model's sidecar.
        calibration: What turns scores into log-likelihood ratios; None for none, and then there is no probability either.

    Raises:
        RunError: If a score is not a number in [0, 1], unless `config.on_nan` is `keep`.
    """
    uris, arrays = pair_uris(block, config), images.arrays
    left, right = (_PairSide.of(side, rows, arrays) for side, rows in zip(uris, images.find(*uris), strict=True))
    scores, reasons = _score(left, right, arrays, network, config.on_nan)
    again = [] if config.candidate is None else _compare_again(left, right, arrays, network, config)
    error = _first_errors(left, right, reasons, arrays)
    if BAD_ROW_COLUMN in block.column_names:
        row_error = block[BAD_ROW_COLUMN]
        left, right = (side.with_bad_rows(row_error.is_valid().to_numpy()) for side in (left, right))
        error, block = pc.coalesce(row_error, error), block.drop_columns([BAD_ROW_COLUMN])
    verdicts = check_identity(scores, left.identity, right.identity, config.match_threshold(), config.identity_tolerance)
    columns = [
        _with_nulls(scores),
        pa.array(is_match(scores, config.match_threshold()), mask=np.isnan(scores)),
        _with_nulls(left.identity),
        _with_nulls(right.identity),
        category(verdicts, VERDICTS),
        _is_same_image(left, right, arrays),
        category(left.status, STATUSES),
        category(right.status, STATUSES),
        error,
    ]
    block = _with_plain_file_names(block)
    for field, column in zip(RESULT_FIELDS, columns, strict=True):
        block = block.append_column(field, column)
    for field, column in _optional_columns(scores, config, calibration):
        block = block.append_column(field, column)
    for field, column in zip(CANDIDATE_FIELDS, again, strict=False):  # There are none without a candidate.
        block = block.append_column(field, column)
    return block


def _optional_columns(
    scores: np.ndarray, config: ScoringConfig, calibration: Calibration | None
) -> Iterator[tuple[pa.Field, pa.Array]]:
    """Yields the columns of `schema.optional_fields`; null without a score."""
    if config.review is not None:
        low, high = map(np.float32, config.review)
        yield REVIEW_FIELD, pa.array((scores >= low) & (scores < high), mask=np.isnan(scores))
    if calibration is None:
        return
    llrs = calibration.llr(scores)
    yield LLR_FIELD, _with_nulls(llrs.astype(np.float32))
    if config.prior is not None:
        yield PROBABILITY_FIELD, _with_nulls(posterior(llrs, config.prior).astype(np.float32))


def _compare_again(
    left: _PairSide, right: _PairSide, arrays: ImageArrays, network: Network, config: ScoringConfig
) -> list[pa.Array]:
    """Returns the columns of `CANDIDATE_FIELDS`."""
    arrays, threshold = arrays.candidate or arrays, config.candidate_match_threshold()
    left, right = left.with_arrays(arrays), right.with_arrays(arrays)
    candidate = cast(NetworkWithCandidate, network).candidate
    scores, _ = _score(left, right, arrays, candidate, config.on_nan, CANDIDATE)
    missing = np.isnan(scores)
    verdicts = check_identity(scores, left.identity, right.identity, threshold, config.identity_tolerance)
    return [
        _with_nulls(scores),
        pa.array(is_match(scores, threshold), mask=missing),
        category(verdicts, VERDICTS, missing),
    ]


@dataclasses.dataclass(frozen=True)
class _PairSide:
    """The left or the right images of a block's pairs.

    Attributes:
        uris: Text `(n,)`, null where a row names none.
        image_row: int64 `(n,)`, the position of the image; -1 where there is none.
        status: int8 `(n,)`, positions in `STATUSES`.
        identity: float32 `(n,)`, the identity scores; NaN where there is none.
    """

    uris: pa.ChunkedArray
    image_row: np.ndarray
    status: np.ndarray
    identity: np.ndarray

    @classmethod
    def of(cls, uris: pa.ChunkedArray, image_row: np.ndarray, arrays: ImageArrays) -> _PairSide:
        """Looks up the images of one side."""
        # `take` is up to four times as fast as an index.
        return cls(uris, image_row, arrays.status.take(image_row), arrays.identity.take(image_row))

    def with_arrays(self, arrays: ImageArrays) -> _PairSide:
        """Returns this side with the status and the identity scores that another model gives the same images."""
        return dataclasses.replace(self, status=arrays.status[self.image_row], identity=arrays.identity[self.image_row])

    def is_ok(self) -> np.ndarray:
        """Returns bool `(n,)`: which images have been encoded."""
        is_ok: np.ndarray = self.status == OK_CODE
        return is_ok

    def with_bad_rows(self, is_bad: np.ndarray) -> _PairSide:
        """Returns this side with the status `bad_row` where `is_bad`, bool `(n,)`."""
        return dataclasses.replace(self, status=np.where(is_bad, np.int8(_BAD_ROW), self.status))

    def full_errors(self, side: str, arrays: ImageArrays) -> pa.ChunkedArray:
        """Returns the errors, each with the name of the side and the URI; null where there is none."""
        errors = arrays.error_texts(self.image_row)
        return pc.binary_join_element_wise(f"{side} image ", pc.fill_null(self.uris, "(none)"), ": ", errors, "")


def _score(
    left: _PairSide, right: _PairSide, arrays: ImageArrays, network: Network, on_nan: str, who: str = MODEL
) -> tuple[np.ndarray, pa.Array]:
    """Returns the scores, float32 `(n,)`, and why the network gave none, text `(n,)`.

    A score is NaN where an image of the pair has no embedding, or the network gave none.
    """
    outputs, is_ok = np.full(len(left.image_row), np.nan, np.float32), left.is_ok() & right.is_ok()
    rows = np.flatnonzero(is_ok)
    outputs[rows] = compare_in_slices(arrays.embeddings, left.image_row[rows], right.image_row[rows], network)
    return without_wrong_scores(outputs, is_ok, on_nan, lambda row: f"{left.uris[row]} and {right.uris[row]}", who)


def compare_in_slices(embeddings: np.ndarray, left: np.ndarray, right: np.ndarray, network: Network) -> np.ndarray:
    """Compares embeddings with each other, some thousands of pairs at a time.

    Args:
        embeddings: The embeddings, `(n, d)`.
        left: Their positions on the left, int64 `(m,)`.
        right: Their positions on the right, int64 `(m,)`.
        network: The network that compares them.

    Returns:
        The scores, float32 `(m,)`.
    """
    scores = np.empty(len(left), np.float32)
    slice_size = max(1, min(_MAX_PAIRS_PER_SLICE, _BYTES_PER_SLICE // max(1, embeddings.itemsize * embeddings.shape[1])))
    for start in range(0, len(left), slice_size):
        chosen = slice(start, start + slice_size)
        scores[chosen] = network.compare(embeddings.take(left[chosen], axis=0), embeddings.take(right[chosen], axis=0))
    return scores


def _is_same_image(left: _PairSide, right: _PairSide, arrays: ImageArrays) -> pa.Array:
    """Returns whether both files of a pair have the same content; null where one of them could not be read."""
    # Two halves each, uint64 `(n,)`.
    left_digest, right_digest = (arrays.digest.take(side.image_row, axis=0).T for side in (left, right))
    is_unread = ((left_digest[0] | left_digest[1]) == 0) | ((right_digest[0] | right_digest[1]) == 0)
    is_same = (left_digest[0] == right_digest[0]) & (left_digest[1] == right_digest[1])
    return pa.array(is_same, mask=is_unread)


def _first_errors(left: _PairSide, right: _PairSide, reasons: pa.Array, arrays: ImageArrays) -> pa.ChunkedArray | pa.Array:
    """Returns the first error of each row: the left image's, the right image's, or why the network gave no score."""
    if left.is_ok().all() and right.is_ok().all():
        return reasons
    return pc.coalesce(left.full_errors("left", arrays), right.full_errors("right", arrays), reasons)


def _with_plain_file_names(block: pa.Table) -> pa.Table:
    """Returns `block` with the manifest's file name as text, which is a dictionary on the way here."""
    if MANIFEST_FILE not in block.column_names:
        return block
    position = block.column_names.index(MANIFEST_FILE)
    return block.set_column(position, PROVENANCE_FIELDS[0], block[MANIFEST_FILE].cast(pa.string()))


def _with_nulls(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))
