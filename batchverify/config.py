"""What a run is asked to do. Frozen, and validated when it is made."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import uuid
from collections.abc import Sequence

from batchverify.errors import PreflightError


@dataclasses.dataclass(frozen=True)
class Limit:
    """So many rows, or such a share of them.

    Attributes:
        most: a count, or a percentage in [0, 100].
        is_percentage: which of them.
    """

    most: float
    is_percentage: bool

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Reads `100` or `0.5%`.

        Raises:
            ValueError: if it is neither.
        """
        number = text.strip().removesuffix("%")
        limit = cls(float(number), number != text.strip())
        if not (0 <= limit.most < math.inf) or (limit.most > 100 if limit.is_percentage else limit.most % 1):
            raise ValueError(text)
        return limit

    def allows(self, found: int, of: int) -> bool:
        """Returns whether `found` rows of `of` are within the limit."""
        return found <= (self.most * of / 100 if self.is_percentage else self.most)

    def __str__(self) -> str:
        return f"{self.most:g}%" if self.is_percentage else f"{self.most:,.0f}"


PIXELS = ("0..255", "0..1", "-1..1", "imagenet", "caffe")
COLORS = ("rgb", "bgr", "grey")
RESIZES = (
    "bilinear", "nearest", "bicubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic",
    "bilinear-antialias", "bicubic-antialias", "lanczos3-antialias",
)  # fmt: skip
FITS = ("stretch", "crop", "pad")
COMPARES = ("cosine", "euclidean", "l1")
ON_NAN = ("fail", "keep")
BAD_ROWS = ("refuse", "keep")
RUNTIMES = ("tensorflow", "openvino")
PRECISIONS = ("float32", "bfloat16")
EMBEDDING_VERSIONS = ("stat", "content")
OUTPUTS = ("score", "logit", "distance", "cosine")
_CHOICES = {"pixels": PIXELS, "color": COLORS, "resize": RESIZES, "fit": FITS, "compare": COMPARES, "output_is": OUTPUTS,
            "on_nan": ON_NAN, "bad_rows": BAD_ROWS, "runtime": RUNTIMES, "precision": PRECISIONS,
            "embeddings_version": EMBEDDING_VERSIONS}  # fmt: skip
THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A trained model, and what its file does not say. None means: not said here.

    What is None is looked for in `MODEL.batchverify.json` beside the model, then in the model's graph.

    Attributes:
        model: path of a `.keras` or HDF5 file or of a SavedModel folder, on any file system that Beam opens, or None
            for the embedded one.
        threshold: a pair matches when its score is at least this, in [0, 1]; 0.5 where nobody says.
        pixels: the scale of the pixels that the model was trained on, one of `PIXELS`.
        color: the order of its channels, one of `COLORS`; RGB, or grey for one channel, where nobody says.
        resize: how images come to the model's size, one of `RESIZES`, as `tf.image.resize` names its methods;
            `-antialias` stands for its `antialias=True`. Bilinear where nobody says.
        fit: what becomes of other shapes, one of `FITS`: stretched, the middle cropped out, or padded with black.
            Stretched where nobody says.
        image_size: height and width in pixels, for a model whose input leaves them open.
        lambdas: what Lambda layers compute, `NAME=KIND`, or `KIND` for all of them; kinds are in `comparisons.KINDS`.
        custom_objects: what classes that the file only names are: `CLASS=KIND` or `CLASS=module:attribute`.
        trust_model_code: whether code inside of the model file may run.
        mend_shared_encoder: whether to rewire a file in which both branches use the encoder's first call.
        signature: which signature of a SavedModel to call; `serving_default` where nobody says.
        compare: how a one-input model's embeddings are compared, one of `COMPARES`.
        output_is: what the model's output means, one of `OUTPUTS`.
        match_column: which of two softmax columns is the probability of a match, 0 or 1.
        batch_size: images that the encoder is given at once.
        runtime: what runs the network, one of `RUNTIMES`; OpenVINO is an extra, and runs on the processor.
        precision: what OpenVINO computes in, one of `PRECISIONS`; embeddings and scores are float32 in any case.
    """

    model: str | None = None
    threshold: float | None = None
    pixels: str | None = None
    color: str | None = None
    resize: str | None = None
    fit: str | None = None
    image_size: tuple[int, int] | None = None
    lambdas: tuple[str, ...] = ()
    custom_objects: tuple[str, ...] = ()
    trust_model_code: bool = False
    mend_shared_encoder: bool = False
    signature: str | None = None
    compare: str | None = None
    output_is: str | None = None
    match_column: int | None = None
    batch_size: int = 64
    runtime: str = "tensorflow"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise PreflightError(problems)

    def match_threshold(self) -> float:
        """Returns the threshold in force."""
        return THRESHOLD if self.threshold is None else self.threshold

    def _problems(self):
        if not 0 <= self.match_threshold() <= 1:
            yield f"--threshold is {self.threshold}; a score lies in [0, 1], so give a number from 0 to 1."
        for name, choices in _CHOICES.items():
            if getattr(self, name, None) not in (None, *choices):
                yield f"--{name.replace('_', '-')} is '{getattr(self, name)}'; give one of {', '.join(choices)}."
        if self.image_size is not None and not _is_size(self.image_size):
            yield f"--image-size is {self.image_size}; give height and width in pixels, at least 1x1."
        if self.match_column not in (None, 0, 1):
            yield f"--match-column is {self.match_column}; a softmax of two has the columns 0 and 1."
        for option in self.custom_objects:
            if "=" not in option:
                yield f"--custom-object is '{option}'; give CLASS=KIND or CLASS=module:attribute."
        if self.batch_size < 1:
            yield f"--batch-size is {self.batch_size}; give at least 1."
        if self.precision != "float32" and self.runtime == "tensorflow":
            yield f"--precision {self.precision} is for --runtime openvino; TensorFlow runs the network as it was saved."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig(ModelConfig):
    """How pairs are scored; what `VerifyPairs` needs to know.

    Attributes:
        identity_tolerance: by how much a score may exceed an identity score before it counts as a fault.
        left_column: manifest column with the first image's URI.
        right_column: manifest column with the second image's URI.
        label_column: column that says whether the pair is genuine; None takes `genuine` where it exists, and
            the empty string takes none.
        fold_column: column that says to which fold of a benchmark such as LFW the pair belongs; None takes `fold` where it
            exists, and the empty string takes none.
        image_root: folder that relative URIs start from, and that no image may lie outside of; None means
            the manifest's folder, and no confinement.
        max_image_pixels: an image of more pixels is `too_large`, found before it is decoded.
        max_image_bytes: a file of more bytes is `too_large`, found before it is read.
        on_nan: what becomes of a score that is not a number: it fails the run, or it is kept as a row without a score.
        image_timeout: seconds that the fetching and decoding of one image may take; then it is `unavailable`.
        fetch_threads: images that are fetched and decoded at the same time in one worker process; None for one a core,
            or 16 where images lie in a store, as those wait more than they work.
        accelerator: what Dataflow's workers that encode have one of: a GPU's type, or what `accelerator_hint` returns of it.
    """

    identity_tolerance: float = 1e-4
    left_column: str = "left"
    right_column: str = "right"
    label_column: str | None = None
    fold_column: str | None = None
    image_root: str | None = None
    max_image_pixels: int = 64_000_000
    max_image_bytes: int = 64 * 2**20
    on_nan: str = "fail"
    image_timeout: float = 60.0
    fetch_threads: int | None = None
    accelerator: str | None = None

    def _problems(self):
        yield from super()._problems()
        if not (math.isfinite(self.identity_tolerance) and self.identity_tolerance >= 0):
            yield f"--identity-tolerance is {self.identity_tolerance}; give a number that is not negative."
        if not 0 < self.image_timeout < math.inf:
            yield f"--image-timeout is {self.image_timeout}; give a number of seconds above 0."
        for name in ("max_image_pixels", "max_image_bytes", "fetch_threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                yield f"--{name.replace('_', '-')} is {getattr(self, name)}; give at least 1."
        if self.accelerator is not None:
            if not _ACCELERATOR.fullmatch(self.accelerator):
                yield (
                    f"--accelerator is '{self.accelerator}'; give a type such as nvidia-tesla-t4, or Dataflow's words for one "
                    "GPU a worker, such as 'type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver'."
                )
            if self.runtime != "tensorflow":
                yield f"--accelerator asks for GPUs, and --runtime {self.runtime} runs on processors; leave one of them out."
        columns = [self.left_column, self.right_column, *filter(None, (self.label_column, self.fold_column))]
        for column in {column for column in columns if columns.count(column) > 1}:
            yield f"column '{column}' is given for two things; left, right, label and fold are different columns."


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerificationConfig(ScoringConfig):
    """One run: a manifest in, a directory of scores out.

    Attributes:
        manifests: paths or globs of CSV and Parquet files; a file that several of them match is read once.
        output: directory of the scores; made if need be.
        overwrite: whether to replace a finished run in `output`.
        block_rows: at most so many rows travel through the pipeline as one element. An image is sent once to each
            block that names it, so larger blocks shuffle less.
        bad_rows: what becomes of CSV rows with too few or too many fields or bytes that are not UTF-8: the manifest is
            refused, or they are kept as rows with the status `bad_row`.
        max_failed_rows: more rows without a score than this, and the exit code is 3.
        max_identity_faults: more scored rows than this whose identity check is not `sane`, and the exit code is 3.
        limit: only so many rows are scored, the first of the manifest's in the order of its files; None for all.
        baseline: run directory, or a `summary.json`, of an earlier run that this one is compared with.
        baseline_optional: whether to go on without it where there is no finished run there.
        max_drift: a higher population stability index of the scores against the baseline's, and the exit code is 3.
        embeddings: directory of a store of embeddings: images that it has and that have not changed are not encoded again.
        embeddings_version: what tells that an image has not changed, one of `EMBEDDING_VERSIONS`: what its file system says,
            or its content, for which it is fetched, but not decoded.
        embeddings_rebuild: whether to read nothing of what the store has, and to replace it.
        embeddings_days: embeddings that no run has asked for in so many days are dropped from the store; None to keep them.
        run_id: what this run is called in its own output.
    """

    manifests: tuple[str, ...]
    output: str
    overwrite: bool = False
    block_rows: int = 1_048_576
    bad_rows: str = "refuse"
    max_failed_rows: Limit | None = None
    max_identity_faults: Limit | None = None
    limit: int | None = None
    baseline: str | None = None
    baseline_optional: bool = False
    max_drift: float | None = None
    embeddings: str | None = None
    embeddings_version: str = "stat"
    embeddings_rebuild: bool = False
    embeddings_days: int | None = None
    run_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def _problems(self):
        yield from super()._problems()
        if isinstance(self.manifests, str) or not self.manifests:
            yield f"manifests is {self.manifests!r}; give one --manifest or more."
        if not self.output:
            yield "--output is empty; name a directory."
        for option, path in (("--output", self.output), ("--embeddings", self.embeddings or "")):
            if set(path) & set("*?["):
                yield f"{option} {path} holds one of * ? [, which Beam takes for a pattern; name another directory."
        if self.block_rows < 1:
            yield f"--block-rows is {self.block_rows}; give at least 1."
        if self.limit is not None and self.limit < 1:
            yield f"--limit is {self.limit}; give at least 1."
        if self.baseline == "":
            yield "--baseline is empty; name a run directory or a summary.json."
        if self.baseline is None and (self.baseline_optional or self.max_drift is not None):
            option = "--baseline-optional" if self.baseline_optional else "--max-drift"
            yield f"{option} speaks of a baseline, and there is none; add --baseline DIR."
        if self.max_drift is not None and not 0 <= self.max_drift < math.inf:
            yield f"--max-drift is {self.max_drift}; give a population stability index such as 0.25."
        yield from self._problems_of_embeddings()

    def _problems_of_embeddings(self):
        if self.embeddings == "":
            yield "--embeddings is empty; name a directory."
        if self.embeddings and _overlap(self.embeddings, self.output):
            yield f"--embeddings {self.embeddings} and --output {self.output} lie one in the other; name two directories."
        if self.embeddings_days is not None and self.embeddings_days < 1:
            yield f"--embeddings-days is {self.embeddings_days}; give at least 1."
        for name in ("embeddings_version", "embeddings_rebuild", "embeddings_days"):
            if self.embeddings is None and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                yield f"--{name.replace('_', '-')} speaks of a store of embeddings, and there is none; add --embeddings DIR."


def _overlap(one: str, other: str) -> bool:
    """Returns whether one of two directories is the other, or lies in it."""
    paths = [path.rstrip("/") + "/" if "://" in path else os.path.join(os.path.realpath(path), "") for path in (one, other)]
    return paths[0].startswith(paths[1]) or paths[1].startswith(paths[0])


# One model runs on one GPU: more GPUs are more workers.
_ACCELERATOR = re.compile(r"[a-z][a-z0-9-]*|type:[a-z][a-z0-9-]*;count:1(;[A-Za-z0-9:._-]+)*")


def accelerator_hint(accelerator: str) -> str:
    """Returns Dataflow's words for one GPU a worker: those of `--accelerator`, or made from a type."""
    return accelerator if accelerator.startswith("type:") else f"type:{accelerator};count:1;install-nvidia-driver"


def _is_size(size: Sequence[int]) -> bool:
    return len(size) == 2 and all(isinstance(side, int) and side >= 1 for side in size)
