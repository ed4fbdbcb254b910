"""A sample of a manifest's images, encoded and compared before a run, to find failures and to measure the speed."""

from __future__ import annotations

import collections
import dataclasses
import time
import timeit
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.evaluation.candidate import candidate_images
from batchverify.output.embedding_rows import is_unchanged
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.pipeline.encoded_images import OK_CODE, embedding_matrix, is_with_candidate
from batchverify.pipeline.network import EmbeddingLookupNetwork, Network, NetworkWithCandidate
from batchverify.schema import STATUSES, ImageStatus

# A larger store takes too long to be searched for the images of a sample.
_MAX_STORE_ROWS = 5_000_000
# Limits of the pairs that are compared to measure the speed: their number, the size of their embeddings, and their number where
# the network runs whole for each pair.
_MAX_PAIRS, _MAX_FLOATS, _MAX_WHOLE_PAIRS = 8192, 2**24, 256


@dataclasses.dataclass(frozen=True)
class SampleResult:
    """The results of encoding and comparing a sample of the images.

    Attributes:
        statuses: The number of images by status.
        examples: For each status except `ok`, the URI of an image and its error.
        images_per_second: The rate at which this process fetches, decodes and encodes; None without an image.
        pairs_per_second: The rate at which this process compares; None if no image could be encoded.
        unchanged: The number of images that the store of embeddings holds unchanged; None without a store, or where the
            store is too large to be searched.
    """

    statuses: dict[str, int]
    examples: dict[str, str]
    images_per_second: float | None
    pairs_per_second: float | None
    unchanged: int | None = None

    def encoded_share(self) -> float:
        """Returns the share of the images that a run would have to encode, in [0, 1]."""
        return 1 - (self.unchanged or 0) / max(1, sum(self.statuses.values()))


def measure_sample(network: Network, uris: list[str]) -> SampleResult:
    """Fetches, decodes and encodes images, compares pairs of them, and measures the time."""
    if not uris:
        return SampleResult({}, {}, None, None)
    network.encode(pa.array(uris[:1]))  # The first call compiles the network.
    started = time.monotonic()
    images = network.encode(pa.array(uris))
    seconds = time.monotonic() - started
    statuses = [str(STATUSES[code]) for code in images["status"].to_pylist()]
    failed = [image for image in zip(statuses, uris, images["error"].to_pylist(), strict=True) if image[2]]
    return SampleResult(
        statuses=dict(collections.Counter(statuses).most_common()),
        # The first image of each status is the example, so it is put in last.
        examples={status: f"{uri}: {error}" for status, uri, error in reversed(failed)},
        images_per_second=len(uris) / seconds,
        pairs_per_second=_measure_pairs(network, images) if ImageStatus.OK in statuses else None,
    )


def count_unchanged(network: EmbeddingLookupNetwork, session: EmbeddingStoreSession, uris: list[str]) -> int | None:
    """Returns how many of the images a store holds unchanged; None where it is too large to be searched."""
    if session.rows > _MAX_STORE_ROWS:
        return None
    sample, unchanged = pa.array(uris, pa.string()), set()
    for number, file in session.files():
        rows = session.read(number, file)
        rows = rows.filter(pc.is_in(rows["uri"], value_set=sample))
        is_same = is_unchanged(rows, network.look_up(rows["uri"].combine_chunks()))
        unchanged |= set(rows["uri"].filter(pa.array(is_same)).to_pylist())
    return len(unchanged)


def _measure_pairs(network: Network, images: pa.Table) -> float:
    """Returns how many pairs a second are compared."""
    seconds = _seconds_per_pair(network, images)
    if is_with_candidate(images):
        seconds += _seconds_per_pair(cast(NetworkWithCandidate, network).candidate, candidate_images(images))
    return 1 / seconds


def _seconds_per_pair(network: Network, images: pa.Table) -> float:
    embeddings = embedding_matrix(images.filter(pc.equal(images["status"], OK_CODE)))
    if not len(embeddings):
        return 0.0
    limit = _MAX_WHOLE_PAIRS if network.encodings_per_pair else min(_MAX_PAIRS, _MAX_FLOATS // embeddings.shape[1])
    rows = np.arange(max(1, limit)) % len(embeddings)
    left, right = embeddings[rows], embeddings[np.roll(rows, 1)]
    return min(timeit.repeat(lambda: network.compare(left, right), number=1, repeat=3)) / len(rows)
