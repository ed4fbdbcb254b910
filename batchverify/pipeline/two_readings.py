"""The job in one process: it reads the manifest twice, and therefore keeps nothing of a row."""

from __future__ import annotations

import collections
import dataclasses
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsIter, PBegin, PCollection
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from batchverify.config import ScoringConfig, VerificationConfig
from batchverify.errors import RunError
from batchverify.io.storage_options import with_storage_options
from batchverify.manifest.columns import pair_uris
from batchverify.manifest.read import read_keyed, read_keyed_timed
from batchverify.manifest.shard import Manifest, Shard
from batchverify.manifest.text_hashes import hash_text
from batchverify.model.calibration import Calibration
from batchverify.pipeline.buckets import bucket_count, rows_of_hashes
from batchverify.pipeline.compare import CountRows, compare_block
from batchverify.pipeline.image_table import CHANGED, ImageTableLoader, RowsOfTable
from batchverify.pipeline.network import NetworkLoader
from batchverify.pipeline.transforms import BY_BUCKET, Verified, VerifyPairs
from batchverify.tracing import span
from batchverify.worker_stats import WorkerStats

# Blocks that are compared at the same time, each in a thread, while the next one is read and an earlier one is written.
_BLOCKS_AT_ONCE = 2
# The most rows of a block: some blocks are in memory at a time, with all that is computed of them.
ROWS_AT_ONCE = 131_072
Block = TypeVar("Block")


class VerifiedManifest(NamedTuple):
    """The outputs of `VerifyManifest`.

    Attributes:
        blocks: The blocks of the manifest, as the second reading gives them.
        verified: The outputs of `VerifyPairs`.
    """

    blocks: PCollection[tuple[str, pa.Table]]
    verified: Verified


class VerifyManifest(VerifyPairs):
    """Scores the pairs of a manifest in one process: what `ReadManifest` and `VerifyPairs` do, but no row stays in memory.

    The first reading numbers the distinct images, which are encoded into one table. The second reading is one fused step: a
    block is read, compared with what the table holds, checked, counted and written, and then forgotten.

    Args:
        manifest: The manifest after its inspection.
        config: The configuration of the run.
        table: The table that holds the encoded images.
        calibration: What turns scores into log-likelihood ratios, or None.
        options: As those of `VerifyPairs`.
    """

    def __init__(self, manifest: Manifest, config: VerificationConfig, table: ImageTableLoader, **options: object):
        config = dataclasses.replace(config, block_rows=min(config.block_rows, ROWS_AT_ONCE))
        super().__init__(config, **options)  # type: ignore[arg-type]
        self._manifest, self._table = manifest, table

    def expand(self, begin: PBegin) -> VerifiedManifest:  # type: ignore[override]
        """Adds both readings to the pipeline."""
        prepared = self._prepare()
        config, loader = prepared.config, prepared.loader
        encoded = self._request_all(begin) | "EncodeImages" >> self._encode(loader, config, begin.pipeline, self._table)
        second = with_storage_options(_read_again), self._stats, self._manifest.without_files(), self._config
        blocks: PCollection[tuple[str, pa.Table]] = (
            begin
            | "Shards" >> beam.Create(self._manifest.shards, reshuffle=False)
            | "Read" >> beam.FlatMap(*second, self._table, AsIter(encoded.answers)).with_output_types(tuple[str, pa.Table])
        )
        compare = CompareBlocks(loader, config, self._table, self._stats, prepared.calibration)
        scores = blocks | "ComparePairs" >> beam.ParDo(compare).with_output_types(pa.Table)
        return VerifiedManifest(blocks, self._verified(blocks, encoded, scores, loader, config))

    def _request_all(self, begin: PBegin) -> PCollection[Any]:
        """Returns the requests for all images by bucket, with the stored rows of each bucket beside them."""
        # Stored rows are spread over buckets before it is known how many images there are.
        buckets = None if self._session is None else self._buckets
        read = with_storage_options(read_uris), self._manifest, self._config, self._table, self._stats, buckets
        once = begin | "Once" >> beam.Create([None], reshuffle=False)
        if self._session is not None:
            return self._by_bucket(once | "ReadUris" >> beam.FlatMap(*read).with_output_types(BY_BUCKET))
        # One request a bucket needs no shuffle: the next step encodes a bucket as soon as this one has made it.
        requests = once | "ReadUris" >> beam.FlatMap(*read)
        groups: PCollection[Any] = requests | "AsGroups" >> beam.MapTuple(lambda bucket, request: (bucket, [request]))
        return groups


def read_uris(
    _: None,
    manifest: Manifest,
    config: VerificationConfig,
    table: ImageTableLoader,
    stats: WorkerStats,
    buckets: int | None = None,
) -> Iterator[tuple[int, tuple[str, pa.Table]]]:
    """Reads the whole manifest for its URIs, and yields the distinct ones by bucket: `(bucket, ("", table of URIs))`.

    Args:
        manifest: The manifest.
        config: The configuration of the run.
        table: The table that takes the URIs.
        stats: The counts and times of this process.
        buckets: The number of buckets; None for one that suits the number of images.

    Raises:
        RunError: If there is a mistake in the manifest. The labels are read here as well, so that no image is encoded in vain.
    """
    images = table.get()
    for shard in manifest.shards:
        with stats.timed("read"):
            checksum = 0
            for key, block in _read_ahead(read_keyed(shard, manifest, config)):
                checksum = uri_checksum(block, config, checksum)
                images.add(key, *pair_uris(block, config))
            images.checksums[shard.path, shard.first_row] = checksum
    uris = images.index.uris
    images.buckets = buckets or bucket_count(len(uris))
    for bucket, rows in rows_of_hashes(hash_text(uris), images.buckets):
        yield bucket, ("", pa.table({"uri": uris.take(rows).cast(pa.string())}))


def _read_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yields what `blocks` yields, the next one of which a thread reads meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as thread:
        waiting = thread.submit(next, blocks, None)
        while (block := waiting.result()) is not None:
            waiting = thread.submit(next, blocks, None)
            yield block


def _read_again(
    shard: Shard,
    stats: WorkerStats,
    manifest: Manifest,
    config: VerificationConfig,
    table: ImageTableLoader,
    _encoded: Iterable[tuple[str, pa.Table]],
) -> Iterator[tuple[str, pa.Table]]:
    """Yields the blocks of a shard, once all images are encoded.

    Raises:
        RunError: If the URIs are not those of the first reading.
    """
    checksum = 0
    for key, block in _read_ahead(read_keyed_timed(shard, stats, manifest, config)):
        checksum = uri_checksum(block, config, checksum)
        yield key, block
    if checksum != table.get().checksums[shard.path, shard.first_row]:
        raise RunError(f"{shard.path}: {CHANGED}.")


def uri_checksum(block: pa.Table, config: VerificationConfig, checksum: int = 0) -> int:
    """Returns a CRC-32 of the names of a block's images, in their order, that goes on from the `checksum` of earlier blocks."""
    for name in (config.left_column, config.right_column):
        for chunk in block[name].cast(pa.string()).chunks:
            offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            texts = chunk.buffers()[2]
            if len(offsets) and texts is not None:
                checksum = zlib.crc32(memoryview(texts)[offsets[0] : offsets[-1]], checksum)
                checksum = zlib.crc32(np.diff(offsets).tobytes(), checksum)
    return checksum


class CompareBlocks(beam.DoFn):
    """Turns `(block key, block)` into the block with the result columns.

    Args:
        loader: The loader of the network.
        config: The configuration, completed by the model's sidecar.
        table: The table that holds all images of the run.
        stats: The counts and times of this process.
        calibration: What turns scores into log-likelihood ratios, or None.
    """

    def __init__(
        self,
        loader: NetworkLoader,
        config: ScoringConfig,
        table: ImageTableLoader,
        stats: WorkerStats,
        calibration: Calibration | None = None,
    ):
        self._loader, self._config, self._table, self._stats = loader, config, table, stats
        self._calibration = calibration
        self._count = CountRows()

    def setup(self) -> None:
        """Loads the network."""
        self._network, self._images = self._loader.get(), self._table.get()
        self._threads = ThreadPoolExecutor(_BLOCKS_AT_ONCE, thread_name_prefix="compare")
        self._waiting: collections.deque[Future[pa.Table]] = collections.deque()

    def teardown(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(cancel_futures=True)

    def start_bundle(self) -> None:
        """Forgets what a bundle has left that failed."""
        self._waiting.clear()

    def process(self, element: tuple[str, pa.Table]) -> Iterator[pa.Table]:
        """Begins to compare the block, and yields an earlier one."""
        self._waiting.append(self._threads.submit(self._compare, *element))
        if len(self._waiting) > _BLOCKS_AT_ONCE:
            yield from self._first()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Yields the last blocks."""
        while self._waiting:
            yield from map(GlobalWindows.windowed_value, self._first())

    def _first(self) -> Iterator[pa.Table]:
        with self._stats.timed("compare"):
            scored = self._waiting.popleft().result()
        self._count.add(scored, self._network, self._config, self._stats)
        # Beam runs the following steps, which write, before it resumes this generator.
        with self._stats.timed("write"), span("write", rows=scored.num_rows):
            yield scored

    def _compare(self, key: str, block: pa.Table) -> pa.Table:
        with span("compare", rows=block.num_rows):
            return compare_block(block, RowsOfTable(self._images, key), self._network, self._config, self._calibration)
