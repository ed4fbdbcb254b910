"""A network and a candidate: each file is fetched once for both, and decoded once where both take the same pixels."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence

import pyarrow as pa

from batchverify.config import ScoringConfig
from batchverify.images.failure import ImageFailure
from batchverify.images.reader import ReadResult
from batchverify.io.storage_options import with_storage_options
from batchverify.model.calibration import Calibration
from batchverify.model.candidate import candidate_config, naming_the_candidate
from batchverify.model.sidecar import GoldenPair, Sidecar
from batchverify.pipeline.encoded_images import with_candidate
from batchverify.pipeline.keras_network import EncodedBatch, KerasNetwork, NetworkParts, keras_loader, load_parts, refuse_unfit
from batchverify.pipeline.network import NetworkLoader
from batchverify.worker_stats import WorkerStats

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _TwiceEncodedBatch(EncodedBatch):
    """The results of one batch, of both networks.

    Attributes:
        candidate: The results of the candidate.
    """

    candidate: EncodedBatch


class TwoNetworks(KerasNetwork):
    """The network of a run, and a candidate that encodes and compares the same images.

    Everything but `candidate` is as in a run without one, with this exception: the table of encoded images also has the
    candidate's columns (see `with_candidate`), and an image's embeddings and encodings are those of both networks together.

    An image that the first network's loader cannot decode has no embedding at all. Where only the candidate's loader cannot
    decode it, only the candidate's embedding is missing, so that a candidate changes nothing about the scores of a run.

    Args:
        parts: The parts of the network.
        candidate: The parts of the candidate.

    Attributes:
        candidate: The candidate, a network of its own.
        share_pixels: Whether both take the same pixels, so that each file is decoded once.
    """

    def __init__(self, parts: NetworkParts, candidate: NetworkParts):
        ours, theirs = parts.model.preprocessing, candidate.model.preprocessing
        self.share_pixels = ours.takes_same_pixels(theirs)
        reader = parts.reader
        if not self.share_pixels:
            second = candidate.reader.decode_batch
            reader = dataclasses.replace(reader, second_layout=theirs.layout(), second_decode_batch=second)
        super().__init__(*parts._replace(reader=reader))
        # What one reader has kept, the other one need not fetch again.
        candidate_reader = dataclasses.replace(candidate.reader, kept=reader.kept, budget=reader.budget)
        self.candidate = KerasNetwork(*candidate._replace(reader=candidate_reader, inferences=parts.inferences))
        self.encodings_per_image += self.candidate.encodings_per_image
        self.embedding_bytes += self.candidate.embedding_bytes

    def encode_reads(self, reads: list[ReadResult]) -> EncodedBatch:
        """Encodes the images of a batch with both networks, one after the other."""
        reads = self.decode_deferred(reads)
        candidate = self.candidate.encode_reads(self._as_the_candidate_reads(reads))
        ours = super().encode_reads(reads)
        return _TwiceEncodedBatch(ours.reads, ours.embeddings, candidate)

    def to_table(self, uris: pa.Array, batches: Sequence[EncodedBatch]) -> pa.Table:
        """Returns the table of encoded images with the candidate's columns."""
        theirs = [batch.candidate for batch in batches if isinstance(batch, _TwiceEncodedBatch)]
        return with_candidate(super().to_table(uris, batches), self.candidate.to_table(uris, theirs))

    def check_split_on(self, reads: list[ReadResult]) -> None:
        """Compares the parts of each network with the whole, on images that have been read."""
        reads = self.decode_deferred(reads)
        super().check_split_on(reads)
        with naming_the_candidate(self.candidate.facts.path):
            self.candidate.check_split_on(self._as_the_candidate_reads(reads))

    def _as_the_candidate_reads(self, reads: list[ReadResult]) -> list[ReadResult]:
        if self.share_pixels:
            return reads
        return [read if isinstance(read.image, ImageFailure) else read._replace(image=read.second) for read in reads]


def network_loader(
    config: ScoringConfig,
    sidecar: Sidecar,
    candidate_sidecar: Sidecar,
    stats: WorkerStats | None = None,
    versions: str | None = None,
    calibration: Calibration | None = None,
) -> NetworkLoader:
    """Returns the loader of the network of `config` in each worker process, with its candidate if it names one.

    Args:
        config: The configuration, completed by the model's sidecar.
        sidecar: The content of the model's sidecar.
        candidate_sidecar: The content of the candidate's sidecar.
        stats: The counts and times of this process.
        versions: See `load_network`.
        calibration: See `keras_loader`.
    """
    if config.candidate is None:
        return keras_loader(config, sidecar.golden_pairs, stats, versions, calibration)
    candidate = candidate_config(config, candidate_sidecar)
    golden_pairs = sidecar.golden_pairs, candidate_sidecar.golden_pairs
    load = with_storage_options(load_two_networks)
    return NetworkLoader(functools.partial(load, config, candidate, golden_pairs, stats, calibration))


def load_two_networks(
    config: ScoringConfig,
    candidate: ScoringConfig,
    golden_pairs: tuple[Sequence[GoldenPair], Sequence[GoldenPair]] = ((), ()),
    stats: WorkerStats | None = None,
    calibration: Calibration | None = None,
) -> TwoNetworks:
    """Loads both models, and scores their golden pairs.

    Args:
        config: The configuration, completed by the model's sidecar.
        candidate: The result of `candidate_config`.
        golden_pairs: The golden pairs of the model, and of the candidate.
        stats: The counts and times of this process.
        calibration: See `keras_loader`.

    Raises:
        PreflightError: If a model cannot be used; a sentence about the candidate names it.
    """
    stats = stats or WorkerStats()
    parts = load_parts(config, stats)
    assert candidate.model is not None
    with naming_the_candidate(candidate.model):
        candidate_parts = load_parts(candidate, stats, is_candidate=True)
    network = TwoNetworks(parts, candidate_parts)
    pixels = "the same pixels, so that files are decoded once" if network.share_pixels else "other pixels"
    _LOG.info("The candidate %s takes %s.", candidate.model, pixels)
    network.check_golden_pairs(golden_pairs[0])
    refuse_unfit(calibration, network, config)
    with naming_the_candidate(candidate.model):
        network.candidate.check_golden_pairs(golden_pairs[1])
    return network
