"""Pairs compared and checked, block by block."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from batchverify.config import ScoringConfig
from batchverify.errors import RunError
from batchverify.evaluation.identity import check_identity, is_match
from batchverify.manifest.columns import pair_uris
from batchverify.pipeline.buckets import distinct_uris
from batchverify.pipeline.image_table import ImageTableLoader
from batchverify.pipeline.network import OK_CODE, Network, NetworkLoader, embedding_matrix, no_images
from batchverify.schema import (
    BAD_ROW_COLUMN,
    MANIFEST_FILE,
    PROVENANCE_FIELDS,
    RESULT_FIELDS,
    STATUSES,
    VERDICTS,
    ImageStatus,
    category,
)
from batchverify.worker_stats import WorkerStats

_NO_URI = STATUSES.index(ImageStatus.NO_URI)
_BAD_ROW = STATUSES.index(ImageStatus.BAD_ROW)
NOT_A_NUMBER = "the model gave a score that is not a number"
_GATHERED_BYTES = 64 * 2**20
BLOCK, IMAGES, RETAINED = "block", "images", "kept"


class ComparePairs(beam.DoFn):
    """`(block key, [(BLOCK, block), (IMAGES, encoded images), …])` to the block with the result columns of the output contract.

    Args:
        loader: of the network.
        config: columns, threshold and tolerance.
        table: where `EncodeImages` has put the images, if it has.
        stats: is told how far it is.
    """

    def __init__(
        self,
        loader: NetworkLoader,
        config: ScoringConfig,
        table: ImageTableLoader | None = None,
        stats: WorkerStats | None = None,
    ):
        self._loader, self._config, self._table_loader, self._stats = loader, config, table, stats or WorkerStats()
        self._scored = Metrics.counter("batchverify", "rows_scored")
        self._encodings = Metrics.counter("batchverify", "encodings")

    def setup(self) -> None:
        self._network = self._loader.get()
        self._table = None if self._table_loader is None else self._table_loader.get()

    def process(self, element: tuple[str, Iterable[tuple[str, pa.Table]]]) -> Iterator[pa.Table]:
        key, found = element
        by_kind: dict[str, list[pa.Table]] = {BLOCK: [], IMAGES: []}
        for kind, table in found:
            by_kind[kind].append(table)
        if len(by_kind[BLOCK]) != 1:
            raise RunError(f"{len(by_kind[BLOCK])} blocks have the key {key}; give every block a key of its own.")
        (block,) = by_kind[BLOCK]
        with self._stats.timed("compare"):
            scored = compare_block(block, self._images(block, by_kind[IMAGES]), self._network, self._config)
        failed = scored["score"].null_count
        rows = scored.num_rows - failed
        self._scored.inc(rows)
        self._encodings.inc(rows * self._network.encodings_per_pair)
        with self._stats.timed("write"):  # Beam runs what comes next before it comes back for more.
            yield scored
        self._stats.add(rows_scored=rows, rows_failed=failed)

    def _images(self, block: pa.Table, answers: list[pa.Table]) -> pa.Table:
        if self._table is not None:
            return self._table.find(distinct_uris(block, self._config))
        return pa.concat_tables(answers).combine_chunks() if answers else no_images()


def compare_block(block: pa.Table, images: pa.Table, network: Network, config: ScoringConfig) -> pa.Table:
    """Returns `block` with the result columns, each row looked up in `images`.

    Raises:
        RunError: at a score that is not a number, unless `config.on_nan` says `keep`.
    """
    left, right = (_Side.find(uris, images) for uris in pair_uris(block, config))
    scores = _scores(left, right, images, network)
    odd = np.isnan(scores) & (left.status == OK_CODE) & (right.status == OK_CODE)
    if odd.any() and config.on_nan == "fail":
        raise RunError(f"{NOT_A_NUMBER}; check its weights, or keep such rows without a score with --on-nan keep.")
    error = _first_error(left, right, odd)
    if BAD_ROW_COLUMN in block.column_names:
        bad = block[BAD_ROW_COLUMN]
        left, right = (side.of_bad_rows(bad.is_valid().to_numpy()) for side in (left, right))
        error, block = pc.coalesce(bad, error), block.drop_columns([BAD_ROW_COLUMN])
    if MANIFEST_FILE in block.column_names:
        place = block.column_names.index(MANIFEST_FILE)
        block = block.set_column(place, PROVENANCE_FIELDS[0], block[MANIFEST_FILE].cast(pa.string()))
    verdicts = check_identity(scores, left.identity, right.identity, config.match_threshold(), config.identity_tolerance)
    columns = [
        _nullable(scores),
        pa.array(is_match(scores, config.match_threshold()), mask=np.isnan(scores)),
        _nullable(left.identity),
        _nullable(right.identity),
        category(verdicts, VERDICTS),
        _same_image(left, right, images),
        category(left.status, STATUSES),
        category(right.status, STATUSES),
        error,
    ]
    for field, column in zip(RESULT_FIELDS, columns, strict=True):
        block = block.append_column(field, column)
    return block


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of a block's pairs, looked up.

    Attributes:
        uris: text `(n,)`, null where a row names none.
        place: int64 `(n,)`, the row in the table of images, -1 where there is none.
        status: int8 `(n,)`, positions in `STATUSES`.
        identity: float32 `(n,)`, NaN where there is none.
        error: text `(n,)`, null where the image is ok.
    """

    uris: pa.ChunkedArray
    place: np.ndarray
    status: np.ndarray
    identity: np.ndarray
    error: pa.ChunkedArray

    @classmethod
    def find(cls, uris: pa.ChunkedArray, images: pa.Table) -> _Side:
        index = pc.index_in(uris, value_set=images["uri"])
        place = pc.fill_null(index, -1).to_numpy().astype(np.int64)
        if np.any((place < 0) & uris.is_valid().to_numpy(zero_copy_only=False)):
            raise RunError("an image that a block asked for was not answered; this is a fault of this program.")
        status = np.append(images["status"].to_numpy(), np.int8(_NO_URI))[place].astype(np.int8)
        identity = np.append(images["identity"].to_numpy(), np.float32(np.nan))[place].astype(np.float32)
        error = pc.if_else(pc.is_valid(index), images["error"].take(index), "the manifest names no image")
        return cls(uris, place, status, identity, error)

    def of_bad_rows(self, bad: np.ndarray) -> _Side:
        """Returns the same with the status of rows of the manifest that could not be read, bool `(n,)`."""
        return dataclasses.replace(self, status=np.where(bad, np.int8(_BAD_ROW), self.status))

    def described(self, side: str) -> pa.ChunkedArray:
        """Returns the errors in full, with side and URI; null where there is none."""
        return pc.binary_join_element_wise(f"{side} image ", pc.fill_null(self.uris, "(none)"), ": ", self.error, "")


def _scores(left: _Side, right: _Side, images: pa.Table, network: Network) -> np.ndarray:
    scores = np.full(len(left.place), np.nan, np.float32)
    both = np.flatnonzero((left.status == OK_CODE) & (right.status == OK_CODE))
    embeddings = embedding_matrix(images)
    # Slices keep the gathered embeddings small beside the block itself, however wide they are.
    step = max(1, min(8192, _GATHERED_BYTES // max(1, embeddings.itemsize * embeddings.shape[1])))
    for start in range(0, len(both), step):
        rows = both[start : start + step]
        scores[rows] = network.compare(embeddings[left.place[rows]], embeddings[right.place[rows]])
    return scores


def _same_image(left: _Side, right: _Side, images: pa.Table) -> pa.Array:
    digests = images["digest"].combine_chunks().dictionary_encode()
    codes = np.append(pc.fill_null(digests.indices, -1).to_numpy(), -1)
    one, other = codes[left.place], codes[right.place]
    return pa.array(one == other, mask=(one < 0) | (other < 0))


def _first_error(left: _Side, right: _Side, odd: np.ndarray) -> pa.ChunkedArray | pa.Array:
    if np.all(left.status == OK_CODE) and np.all(right.status == OK_CODE) and not odd.any():
        return pa.nulls(len(left.status), pa.string())
    return pc.coalesce(left.described("left"), right.described("right"), pc.if_else(pa.array(odd), NOT_A_NUMBER, None))


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))
