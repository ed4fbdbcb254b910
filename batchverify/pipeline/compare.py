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
from batchverify.evaluation.candidate import candidate_images
from batchverify.evaluation.identity import check_identity
from batchverify.manifest.columns import pair_uris
from batchverify.model.calibration import Calibration, posterior
from batchverify.pipeline.buckets import distinct_uris
from batchverify.pipeline.encoded_images import OK_CODE, embedding_matrix, no_encoded_images
from batchverify.pipeline.image_table import ImageTableLoader
from batchverify.pipeline.network import Network, NetworkLoader, NetworkWithCandidate
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
NOT_A_NUMBER = "the model gave a score that is not a number"
CANDIDATE_NOT_A_NUMBER = NOT_A_NUMBER.replace("model", "candidate")
_NO_URI = STATUSES.index(ImageStatus.NO_URI)
_BAD_ROW = STATUSES.index(ImageStatus.BAD_ROW)
# Pairs are compared in slices, so that the embeddings of a slice stay small beside the block, however wide they are.
_BYTES_PER_SLICE = 64 * 2**20
_MAX_PAIRS_PER_SLICE = 8192


class ComparePairs(beam.DoFn):
    """Turns `(block key, [(BLOCK_TABLE, block), (IMAGES_TABLE, encoded images), …])` into the block with the result columns.

    Args:
        loader: The loader of the network.
        config: The configuration, completed by the model's sidecar.
        table: The table in which `EncodeImages` has put the images; None if they are among the input.
        stats: The counts and times of this process.
        calibration: What turns scores into log-likelihood ratios, or None.
    """

    def __init__(
        self,
        loader: NetworkLoader,
        config: ScoringConfig,
        table: ImageTableLoader | None = None,
        stats: WorkerStats | None = None,
        calibration: Calibration | None = None,
    ):
        self._loader, self._config, self._table_loader, self._stats = loader, config, table, stats or WorkerStats()
        self._calibration = calibration
        self._scored = Metrics.counter("batchverify", "rows_scored")
        self._encodings = Metrics.counter("batchverify", "encodings")

    def setup(self) -> None:
        self._network = self._loader.get()
        self._encodings_per_pair = self._network.encodings_per_pair
        if self._config.candidate is not None:
            self._encodings_per_pair += cast(NetworkWithCandidate, self._network).candidate.encodings_per_pair
        self._table = None if self._table_loader is None else self._table_loader.get()

    def process(self, element: tuple[str, Iterable[tuple[str, pa.Table]]]) -> Iterator[pa.Table]:
        key, tables = element
        by_kind: dict[str, list[pa.Table]] = {BLOCK_TABLE: [], IMAGES_TABLE: []}
        for kind, table in tables:
            by_kind[kind].append(table)
        if len(by_kind[BLOCK_TABLE]) != 1:
            raise RunError(f"{len(by_kind[BLOCK_TABLE])} blocks have the key {key}; give every block a key of its own.")
        (block,) = by_kind[BLOCK_TABLE]
        with self._stats.timed("compare"), span("compare", rows=block.num_rows):
            images = self._images(block, by_kind[IMAGES_TABLE])
            scored = compare_block(block, images, self._network, self._config, self._calibration)
        failed = scored["score"].null_count
        rows = scored.num_rows - failed
        self._scored.inc(rows)
        self._encodings.inc(rows * self._encodings_per_pair)
        # Beam runs the following steps, which write, before it resumes this generator.
        with self._stats.timed("write"), span("write", rows=block.num_rows):
            yield scored
        self._stats.add(rows_scored=rows, rows_failed=failed)

    def _images(self, block: pa.Table, answers: list[pa.Table]) -> pa.Table:
        if self._table is not None:
            return self._table.look_up(distinct_uris(block, self._config))
        return pa.concat_tables(answers).combine_chunks() if answers else no_encoded_images()


def compare_block(
    block: pa.Table, images: pa.Table, network: Network, config: ScoringConfig, calibration: Calibration | None = None
) -> pa.Table:
    """Returns `block` with the result columns.

    Args:
        block: Rows of the manifest.
        images: The encoded images of the block, in any order.
        network: The network that compares embeddings.
        config: The configuration, completed by the model's sidecar.
        calibration: What turns scores into log-likelihood ratios; None for none, and then there is no probability either.

    Raises:
        RunError: If a score is not a number, unless `config.on_nan` is `keep`.
    """
    left, right = (_PairSide.look_up(uris, images) for uris in pair_uris(block, config))
    scores = _score(left, right, images, network)
    is_nan = np.isnan(scores) & left.is_ok() & right.is_ok()
    _refuse_nan(is_nan, config, NOT_A_NUMBER)
    again = [] if config.candidate is None else _compare_again(left, right, images, network, config)
    error = _first_errors(left, right, is_nan)
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
        _is_same_image(left, right, images),
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


def _refuse_nan(is_nan: np.ndarray, config: ScoringConfig, problem: str) -> None:
    if is_nan.any() and config.on_nan == "fail":
        raise RunError(f"{problem}; check its weights, or keep such rows without a score with --on-nan keep.")


def _compare_again(
    left: _PairSide, right: _PairSide, images: pa.Table, network: Network, config: ScoringConfig
) -> list[pa.Array]:
    """Returns the columns of `CANDIDATE_FIELDS`."""
    images, threshold = candidate_images(images), config.candidate_match_threshold()
    left, right = left.with_images(images), right.with_images(images)
    scores = _score(left, right, images, cast(NetworkWithCandidate, network).candidate)
    missing = np.isnan(scores)
    _refuse_nan(missing & left.is_ok() & right.is_ok(), config, CANDIDATE_NOT_A_NUMBER)
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
        image_row: int64 `(n,)`, the image's row in the table of encoded images; -1 where there is none.
        status: int8 `(n,)`, positions in `STATUSES`.
        identity: float32 `(n,)`, the identity scores; NaN where there is none.
        error: Text `(n,)`, null where the image is ok.
    """

    uris: pa.ChunkedArray
    image_row: np.ndarray
    status: np.ndarray
    identity: np.ndarray
    error: pa.ChunkedArray

    @classmethod
    def look_up(cls, uris: pa.ChunkedArray, images: pa.Table) -> _PairSide:
        """Looks the images of one side up in the table of encoded images."""
        index = pc.index_in(uris, value_set=images["uri"])
        image_row = pc.fill_null(index, -1).to_numpy().astype(np.int64)
        if np.any((image_row < 0) & uris.is_valid().to_numpy(zero_copy_only=False)):
            raise RunError("a block did not get an image that it asked for; this is a fault of this program.")
        status, identity = _status_and_identity(images, image_row)
        error = pc.if_else(pc.is_valid(index), images["error"].take(index), "the manifest names no image")
        return cls(uris, image_row, status, identity, error)

    def with_images(self, images: pa.Table) -> _PairSide:
        """Returns this side with the status and the identity scores of another table of the same images."""
        status, identity = _status_and_identity(images, self.image_row)
        return dataclasses.replace(self, status=status, identity=identity)

    def is_ok(self) -> np.ndarray:
        """Returns bool `(n,)`: which images have been encoded."""
        is_ok: np.ndarray = self.status == OK_CODE
        return is_ok

    def with_bad_rows(self, is_bad: np.ndarray) -> _PairSide:
        """Returns this side with the status `bad_row` where `is_bad`, bool `(n,)`."""
        return dataclasses.replace(self, status=np.where(is_bad, np.int8(_BAD_ROW), self.status))

    def full_errors(self, side: str) -> pa.ChunkedArray:
        """Returns the errors, each with the name of the side and the URI; null where there is none."""
        return pc.binary_join_element_wise(f"{side} image ", pc.fill_null(self.uris, "(none)"), ": ", self.error, "")


def _status_and_identity(images: pa.Table, image_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns `status` and `identity` of encoded images, by the images' rows."""
    # Row -1 is the last one: what is appended there is the value of a row that names no image.
    status = np.append(images["status"].to_numpy(), np.int8(_NO_URI))[image_row].astype(np.int8)
    identity = np.append(images["identity"].to_numpy(), np.float32(np.nan))[image_row].astype(np.float32)
    return status, identity


def _score(left: _PairSide, right: _PairSide, images: pa.Table, network: Network) -> np.ndarray:
    """Returns float32 `(n,)`, NaN where an image of the pair has no embedding."""
    scores = np.full(len(left.image_row), np.nan, np.float32)
    rows = np.flatnonzero(left.is_ok() & right.is_ok())
    scores[rows] = compare_in_slices(embedding_matrix(images), left.image_row[rows], right.image_row[rows], network)
    return scores


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
        scores[chosen] = network.compare(embeddings[left[chosen]], embeddings[right[chosen]])
    return scores


def _is_same_image(left: _PairSide, right: _PairSide, images: pa.Table) -> pa.Array:
    """Returns whether both files of a pair have the same content; null where one of them could not be read."""
    digests = images["digest"].combine_chunks().dictionary_encode()
    codes = np.append(pc.fill_null(digests.indices, -1).to_numpy(), -1)
    left_code, right_code = codes[left.image_row], codes[right.image_row]
    return pa.array(left_code == right_code, mask=(left_code < 0) | (right_code < 0))


def _first_errors(left: _PairSide, right: _PairSide, is_nan: np.ndarray) -> pa.ChunkedArray | pa.Array:
    """Returns the first error of each row: the left image's, the right image's, or that of a score that is not a number."""
    if left.is_ok().all() and right.is_ok().all() and not is_nan.any():
        return pa.nulls(len(left.status), pa.string())
    return pc.coalesce(left.full_errors("left"), right.full_errors("right"), pc.if_else(pa.array(is_nan), NOT_A_NUMBER, None))


def _with_plain_file_names(block: pa.Table) -> pa.Table:
    """Returns `block` with the manifest's file name as text, which is a dictionary on the way here."""
    if MANIFEST_FILE not in block.column_names:
        return block
    position = block.column_names.index(MANIFEST_FILE)
    return block.set_column(position, PROVENANCE_FIELDS[0], block[MANIFEST_FILE].cast(pa.string()))


def _with_nulls(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))
