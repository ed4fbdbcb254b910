"""What the DoFns need of a network, and how the threads of a worker process share one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, cast

import numpy as np
import pyarrow as pa
from apache_beam.utils.shared import Shared

from batchverify.pipeline.inference_metrics import InferenceLog
from batchverify.pipeline.worker_versions import current_versions, require_versions


class Network(Protocol):
    """What `EncodeImages` and `ComparePairs` need. `KerasNetwork` is the real one; a benchmark brings its own.

    Attributes:
        encodings_per_image: The number of times that a tower of the network sees an image when the image is encoded.
        encodings_per_pair: The number of times that a tower sees an image of a pair when the pair is compared.
        embedding_bytes: The size of one embedding.
        inferences: What the network has computed, for the metrics of the job.
    """

    encodings_per_image: int
    encodings_per_pair: int
    embedding_bytes: int
    inferences: InferenceLog

    def encode(self, uris: pa.Array) -> pa.Table:
        """Returns one row for each of `uris`, in their order, with the columns of `encoded_images`."""

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns the scores, float32 `(n,)`, of two embeddings for each pair, `(n, d)` each."""


class NetworkWithCandidate(Network, Protocol):
    """What `ComparePairs` needs where a candidate scores the same pairs: `encode` returns the columns of `with_candidate`, too.

    Attributes:
        candidate: The candidate. Only its `compare` and `encodings_per_pair` are used, and `encode_changed` where it has that.
    """

    candidate: Network


class EmbeddingLookupNetwork(Network, Protocol):
    """What `EncodeImages` needs where embeddings are stored: `encode` also returns the column `version`."""

    def encode_parts(self, uris: pa.Array, is_due: Callable[[], bool]) -> Iterator[pa.Table]:
        """Yields what `encode` returns in parts, in order: one whenever `is_due` says so after a batch, and the last one."""

    def look_up(self, uris: pa.Array) -> pa.Table:
        """Returns one row for each of `uris`, in their order: `uri`, `status`, `error`, `digest` and `version`."""


@dataclasses.dataclass(frozen=True)
class NetworkLoader:
    """Loads a network once in each worker process, and shares it between threads and DoFns.

    Attributes:
        load: A function that returns the network.
        versions: The versions of the process that made it, which each worker must have.
    """

    load: Callable[[], Network]
    versions: Mapping[str, str] = dataclasses.field(default_factory=current_versions)
    _shared: Shared = dataclasses.field(default_factory=Shared)

    def get(self) -> Network:
        """Returns the network of this process, loaded by the first call.

        Raises:
            RunError: If this process has other versions than the one that made the loader.
        """
        require_versions(self.versions)
        return cast(Network, self._shared.acquire(self.load))
