"""A whole manifest read as the run will read it, to count what it holds and to find its mistakes."""

from __future__ import annotations

import dataclasses
import time

import pyarrow as pa

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, RunError
from batchverify.manifest.read import read_keyed
from batchverify.manifest.shard import Manifest
from batchverify.pipeline.buckets import distinct_uris
from batchverify.pipeline.distinct_count import DistinctCounter
from batchverify.schema import BAD_ROW_COLUMN

_MAX_PROBLEMS = 20


@dataclasses.dataclass
class ManifestCounts:
    """Counts over a whole manifest.

    Attributes:
        files: The number of files that have rows to read.
        rows: The number of rows.
        bad_rows: The number of rows that become the status `bad_row`.
        blocks: The number of blocks.
        bytes: The size of all blocks as Arrow tables.
        largest_block: The size of the largest block.
        max_images_per_block: The largest number of distinct images in one block.
        images: The distinct images.
        seconds: The time that it took to read the manifest.
    """

    files: int = 0
    rows: int = 0
    bad_rows: int = 0
    blocks: int = 0
    bytes: int = 0
    largest_block: int = 0
    max_images_per_block: int = 0
    images: DistinctCounter = dataclasses.field(default_factory=DistinctCounter)
    seconds: float = 0.0

    def add(self, block: pa.Table, config: VerificationConfig) -> None:
        """Adds one block."""
        uris = distinct_uris(block, config)
        self.images.add(uris)
        self.rows += block.num_rows
        if BAD_ROW_COLUMN in block.column_names:
            self.bad_rows += block.num_rows - block[BAD_ROW_COLUMN].null_count
        self.blocks += 1
        self.bytes += block.nbytes
        self.largest_block = max(self.largest_block, block.nbytes)
        self.max_images_per_block = max(self.max_images_per_block, len(uris))


def scan_manifest(manifest: Manifest, config: VerificationConfig) -> ManifestCounts:
    """Reads the whole manifest as the run will read it, in constant memory.

    Raises:
        PreflightError: With the first mistake of each of its parts.
    """
    started = time.monotonic()
    counts = ManifestCounts(files=len({shard.path for shard in manifest.shards}))
    problems: list[str] = []
    for shard in manifest.shards:
        try:
            for _, block in read_keyed(shard, manifest, config):
                counts.add(block, config)
        except RunError as error:
            problems += str(error).splitlines()
    if problems:
        raise PreflightError(problems[:_MAX_PROBLEMS])
    counts.seconds = time.monotonic() - started
    return counts
