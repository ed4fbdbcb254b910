"""`--check`: everything that a run does but the work, and a look at all that the work will meet. Writes nothing."""

from __future__ import annotations

import collections
import dataclasses
import os
import resource
import time
import timeit
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import StandardOptions

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, RunError
from batchverify.evaluation.drift import RunStatistics
from batchverify.manifest.columns import pair_uris
from batchverify.manifest.read import read_keyed
from batchverify.manifest.shard import Manifest
from batchverify.model.facts import ModelFacts
from batchverify.model.sidecar import golden_pairs
from batchverify.output.embedding_store import EmbeddingStoreSession, is_unchanged
from batchverify.pipeline.memory import process_bytes, worker_bytes
from batchverify.pipeline.network import KerasNetwork
from batchverify.pipeline.plan import RunPlan, plan_run
from batchverify.pipeline.transforms import bucket_count
from batchverify.schema import BAD_ROW_COLUMN, STATUSES
from batchverify.uris import is_remote

_HASHES = 65_536
_SAMPLE = 256
_PROBLEMS_TOLD = 20
# A larger store is not searched for the sample's images.
_MOST_SEARCHED = 5_000_000
_PAIRS_TIMED, _FLOATS_TIMED, _WHOLE_PAIRS_TIMED = 8192, 2**24, 256


class DistinctTexts:
    """How many different texts there were, and some of them, in constant memory.

    It keeps the smallest hashes. Up to `most` distinct texts the count is exact; beyond, it is the estimate
    (k - 1) / U of Beyer et al., "On synopses for distinct-value estimation" (2007), where U is the k-th smallest hash as
    a share of all: for 65,536 hashes off by 0.4% (standard deviation). The texts of the smallest hashes are a
    sample in which each distinct text is as likely as any other.

    Args:
        most: hashes kept.
        sample: texts kept.
    """

    def __init__(self, most: int = _HASHES, sample: int = _SAMPLE):
        self._most, self._sample = most, sample
        self._hashes = np.zeros(0, np.uint64)
        self._texts: dict[int, str] = {}

    def add(self, texts: pa.Array) -> None:
        """Takes in texts `(n,)`, without nulls, each of them once."""
        hashes = pd.util.hash_array(texts.to_numpy(zero_copy_only=False), categorize=False)
        lowest = np.argsort(hashes)[: self._sample]
        self._texts |= {int(hashes[place]): texts[int(place)].as_py() for place in lowest}
        self._texts = dict(sorted(self._texts.items())[: self._sample])
        self._hashes = np.union1d(self._hashes, hashes)[: self._most]

    def count(self) -> int:
        """Returns how many different texts there were, exact if `is_exact`."""
        if self.is_exact():
            return len(self._hashes)
        return round((self._most - 1) / ((float(self._hashes[-1]) + 1) / 2**64))

    def is_exact(self) -> bool:
        return len(self._hashes) < self._most

    def sample(self) -> list[str]:
        """Returns some of the texts, all of them if they are few."""
        return list(self._texts.values())


@dataclasses.dataclass
class Survey:
    """What stands in a whole manifest.

    Attributes:
        files: that have rows to read.
        rows: in all.
        bad_rows: of these, kept as `bad_row`.
        blocks: that they travel in.
        bytes: of all blocks.
        largest_block: bytes of the largest.
        most_requests: distinct images that one block asks for, at most.
        images: the distinct ones.
        seconds: that it took to read.
    """

    files: int = 0
    rows: int = 0
    bad_rows: int = 0
    blocks: int = 0
    bytes: int = 0
    largest_block: int = 0
    most_requests: int = 0
    images: DistinctTexts = dataclasses.field(default_factory=DistinctTexts)
    seconds: float = 0.0

    def add(self, block: pa.Table, config: VerificationConfig) -> None:
        """Takes in one block."""
        left, right = pair_uris(block, config)
        wanted = pa.chunked_array([*left.chunks, *right.chunks], pa.string()).unique().drop_null()
        self.images.add(wanted)
        self.rows += block.num_rows
        if BAD_ROW_COLUMN in block.column_names:
            self.bad_rows += block.num_rows - block[BAD_ROW_COLUMN].null_count
        self.blocks += 1
        self.bytes += block.nbytes
        self.largest_block = max(self.largest_block, block.nbytes)
        self.most_requests = max(self.most_requests, len(wanted))


@dataclasses.dataclass(frozen=True)
class Sample:
    """What became of a sample of the images.

    Attributes:
        statuses: how many came to which status.
        examples: for each status but `ok`, one URI and what was wrong with it.
        images_per_second: fetched, decoded and encoded, by this process; None without an image.
        pairs_per_second: compared; None without an image.
        unchanged: how many the store of embeddings has as they are; None without one, or where it was not searched.
    """

    statuses: dict[str, int]
    examples: dict[str, str]
    images_per_second: float | None
    pairs_per_second: float | None
    unchanged: int | None = None

    def encoded_share(self) -> float:
        """Returns which share of the images a run would have to encode."""
        return 1 - (self.unchanged or 0) / max(1, sum(self.statuses.values()))


@dataclasses.dataclass(frozen=True)
class Check:
    """What a check found, all of it in order.

    Attributes:
        config: of the run, with what the model's sidecar says.
        survey: of the manifest.
        model: its facts.
        golden: how many golden pairs came out as they should.
        sample: of the images.
        baseline: the run to compare with, or None.
        buckets: groups that the images are encoded in.
        runner: Beam's name of it.
        seconds: estimate of a run in one process like this, without shuffling and writing; None without an image.
        memory: estimate in bytes, of the run in this process, or of each worker of another runner.
        session: what the run would do with a store of embeddings, or None.
    """

    config: VerificationConfig
    survey: Survey
    model: ModelFacts
    golden: int
    sample: Sample
    baseline: RunStatistics | None
    buckets: int
    runner: str
    seconds: float | None
    memory: int
    session: EmbeddingStoreSession | None


def check_run(config: VerificationConfig, beam_args: Sequence[str] = ()) -> Check:
    """Does all of a run but the work.

    Raises:
        PreflightError: as the run, and at a mistake anywhere in the manifest.
        RunError: if the output directory could not be written.
    """
    plan = plan_run(config, beam_args)
    _require_writable(plan.config.output)
    survey = survey_manifest(plan.manifest, plan.config)
    if plan.session is not None:
        _require_writable(plan.session.path, "--embeddings")
    uris = survey.images.sample()
    sample = dataclasses.replace(try_images(plan.network, uris), unchanged=_count_unchanged(plan.network, plan.session, uris))
    return Check(
        config=plan.config,
        survey=survey,
        model=plan.network.facts,
        golden=len(golden_pairs(plan.config)),
        sample=sample,
        baseline=plan.baseline,
        buckets=bucket_count(max(plan.manifest.expected_images, plan.session.rows if plan.session else 0)),
        runner=str(plan.options.view_as(StandardOptions).runner),
        seconds=_seconds(survey, sample),
        memory=_memory(plan, survey),
        session=plan.session,
    )


def survey_manifest(manifest: Manifest, config: VerificationConfig) -> Survey:
    """Reads the whole manifest just as the run will, in constant memory.

    Raises:
        PreflightError: with the first mistake of each part of it.
    """
    survey, problems, started = Survey(), [], time.monotonic()
    survey.files = len({shard.path for shard in manifest.shards})
    for shard in manifest.shards:
        try:
            for _, block in read_keyed(shard, manifest.schema, manifest.label_column, config):
                survey.add(block, config)
        except RunError as failed:
            problems += str(failed).splitlines()
    if problems:
        raise PreflightError(problems[:_PROBLEMS_TOLD])
    survey.seconds = time.monotonic() - started
    return survey


def try_images(network: KerasNetwork, uris: list[str]) -> Sample:
    """Fetches, decodes and encodes images, and compares some of them, with a clock beside it."""
    if not uris:
        return Sample({}, {}, None, None)
    network.encode(pa.array(uris[:1]))  # The first call compiles.
    started = time.monotonic()
    images = network.encode(pa.array(uris))
    seconds = time.monotonic() - started
    words = [str(STATUSES[code]) for code in images["status"].to_pylist()]
    failed = [(word, uri, error) for word, uri, error in zip(words, uris, images["error"].to_pylist(), strict=True) if error]
    return Sample(
        statuses=dict(collections.Counter(words).most_common()),
        examples={word: f"{uri}: {error}" for word, uri, error in reversed(failed)},
        images_per_second=len(uris) / seconds,
        pairs_per_second=_pairs_per_second(network, images) if "ok" in words else None,
    )


def _count_unchanged(network: KerasNetwork, session: EmbeddingStoreSession | None, uris: list[str]) -> int | None:
    if session is None or session.rows > _MOST_SEARCHED:
        return None
    wanted, count = pa.array(uris, pa.string()), 0
    for part in session.parts():
        rows = session.read(part)
        rows = rows.filter(pc.is_in(rows["uri"], value_set=wanted))
        count += int(is_unchanged(rows, network.look_up(rows["uri"].combine_chunks())).sum())
    return count


def _pairs_per_second(network: KerasNetwork, images: pa.Table) -> float:
    embeddings = images.filter(pc.equal(images["status"], 0))["embedding"].combine_chunks()
    matrix = embeddings.flatten().to_numpy().reshape(len(embeddings), -1)
    most = _WHOLE_PAIRS_TIMED if network.encodings_per_pair else min(_PAIRS_TIMED, _FLOATS_TIMED // matrix.shape[1])
    places = np.arange(max(1, most)) % len(matrix)
    left, right = matrix[places], matrix[np.roll(places, 1)]
    return len(places) / min(timeit.repeat(lambda: network.compare(left, right), number=1, repeat=3))


def _seconds(survey: Survey, sample: Sample) -> float | None:
    if not sample.images_per_second or not sample.pairs_per_second:
        return None
    return (
        survey.seconds
        + survey.images.count() * sample.encoded_share() / sample.images_per_second
        + survey.rows / sample.pairs_per_second
    )


def _memory(plan: RunPlan, survey: Survey) -> int:
    used, of_image = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, plan.network.facts.embedding_bytes
    if plan.table is None:
        return used + worker_bytes(survey.largest_block, survey.most_requests, of_image)
    stored = plan.session.rows if plan.session else 0
    return used + process_bytes(survey.bytes, survey.images.count() + stored, of_image)


def _require_writable(output: str, option: str = "--output") -> None:
    if is_remote(output):
        return
    folder = os.path.abspath(output)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise RunError(f"{option} {output} cannot be written ({folder} is not a folder); check the path.")
    if not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise RunError(f"{option} {output} cannot be written ({folder} takes no new files); check the path and your rights.")
