"""The settings of a run. Every configuration is frozen, and validates itself when it is made."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from batchverify.errors import PreflightError
from batchverify.field_types import make_plain
from batchverify.uris import is_remote


@dataclasses.dataclass(frozen=True)
class Limit:
    """An upper limit on a number of rows: a count, or a percentage of all rows.

    Attributes:
        maximum: The count, or the percentage in [0, 100].
        is_percentage: Whether `maximum` is a percentage.
    """

    maximum: float
    is_percentage: bool

    def __post_init__(self) -> None:
        problems = make_plain(self)
        if not problems and not self._is_possible():
            problems = [f"a limit is {self.maximum:g}{'%' * self.is_percentage}; give a count, or a percentage from 0 to 100."]
        if problems:
            raise PreflightError(problems)

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Reads a limit such as `100` or `0.5%`.

        Raises:
            ValueError: If the text is neither a count nor a percentage.
        """
        number = text.strip().removesuffix("%")
        return cls(float(number), number != text.strip())

    def allows(self, count: int, total: int) -> bool:
        """Returns whether `count` rows of `total` rows are within the limit."""
        return count <= (self.maximum * total / 100 if self.is_percentage else self.maximum)

    def _is_possible(self) -> bool:
        return self.maximum >= 0 and (self.maximum <= 100 if self.is_percentage else self.maximum % 1 == 0)

    def __str__(self) -> str:
        return f"{self.maximum:g}%" if self.is_percentage else f"{self.maximum:,.0f}"


PIXELS = ("0..255", "0..1", "-1..1", "imagenet", "caffe", "standardize")
_BINARY = "-binary:"  # Behind a scale: pixels are made black or white first.
COLORS = ("rgb", "bgr", "grey")
_TF_RESIZES = (
    "bilinear", "nearest", "bicubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic", "bilinear-antialias",
    "bicubic-antialias", "lanczos3-antialias", "lanczos5-antialias", "gaussian-antialias", "mitchellcubic-antialias",
)  # fmt: skip
_PILLOW_RESIZES = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
# The methods of resizing that each loader has.
LOADER_RESIZES = {
    "tf": _TF_RESIZES,
    "keras-dataset": _TF_RESIZES,
    "keras-load-img": _PILLOW_RESIZES,
    "keras-generator": _PILLOW_RESIZES,
    "pillow": _PILLOW_RESIZES,
    "torchvision": _PILLOW_RESIZES,
    "opencv": ("bilinear", "nearest", "bicubic", "area", "lanczos4"),
    "skimage": ("bilinear", "nearest", "bicubic"),
    "batchverify": _PILLOW_RESIZES,
}
LOADERS = tuple(LOADER_RESIZES)
RESIZES = tuple(dict.fromkeys(method for methods in LOADER_RESIZES.values() for method in methods))
ORIENTATIONS, ALPHAS = ("apply", "ignore"), ("white", "black", "drop")
FITS = ("stretch", "crop", "pad")
COMPARES = ("cosine", "euclidean", "l1")
CALIBRATION_METHODS = ("logistic", "isotonic")
ON_NAN = ("fail", "keep")
BAD_ROWS = ("refuse", "keep")
RUNTIMES = ("tensorflow", "openvino", "auto")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16", "float16")
_OPENVINO_PRECISIONS = ("float32", "bfloat16")
EMBEDDING_VERSIONS = ("stat", "content")
OUTPUTS = ("score", "logit", "distance", "dissimilarity", "cosine")
_IMPORTABLE = re.compile(r"[\w.]+:[\w.]+")
_SEPARATOR = re.compile(r"""[^"\r\n\x80-\U0010ffff]""")
_CHOICES = {"color": COLORS, "loader": LOADERS, "resize": RESIZES, "orientation": ORIENTATIONS, "alpha": ALPHAS, "fit": FITS,
            "compare": COMPARES, "output_is": OUTPUTS,
            "on_nan": ON_NAN, "bad_rows": BAD_ROWS, "runtime": RUNTIMES, "precision": PRECISIONS,
            "embeddings_version": EMBEDDING_VERSIONS}  # fmt: skip
# Values of fields that hold lists.
_EXAMPLES = {"image_size": "[96, 96]", "lambdas": "['NAME=KIND']", "custom_objects": "['CLASS=module:attribute']",
             "review": "[0.4, 0.6]", "group_columns": "['region']", "group_column_pairs": "[['left_region', 'right_region']]",
             "subject_columns": "['left_person', 'right_person']", "manifests": "['pairs.csv']",
             "fmr": "[1e-3]"}  # fmt: skip
THRESHOLD = 0.5
DEFAULT_LABEL = "genuine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A trained model, and what its file does not say about it.

    A setting that is None is taken from the sidecar `MODEL.batchverify.json`, then from the model's graph, then from the
    default named below.

    Attributes:
        model: The path of a `.keras` file, an HDF5 file or a SavedModel folder, on any file system that Beam opens; None
            means the embedded model.
        threshold: The lowest score of a match, in [0, 1]; the default is 0.5.
        pixels: The scale of the pixels that the model was trained on, one of `PIXELS`; it has no default. `-binary:T` behind it
            makes pixels above T white and all others black first.
        color: The order of the channels, one of `COLORS`; the default is that of the loader, or grey for a model with one
            channel.
        loader: The library whose pixels the model was trained on, one of `LOADERS`; the default is `tf`.
        resize: The method that brings an image to the model's size, one of the loader's `LOADER_RESIZES`. `-antialias` stands
            for `antialias=True` of `tf.image.resize`. The default is that of the loader.
        orientation: Whether images are turned upright as EXIF says, one of `ORIENTATIONS`; the default is that of the loader.
        alpha: The colour that replaces transparency, one of `ALPHAS`; the default is that of the loader.
        preprocess: A function `module:attribute` from a decoded image, uint8 `(h, w, 3)` or `(h, w)` where the model takes one
            channel, to what the model takes, float32 `(height, width, channels)`; it takes the place of resizing and scaling.
        fit: The treatment of images of another shape, one of `FITS`: stretch them, crop out the middle, or pad with black.
            The default is to stretch.
        image_size: The height and width in pixels, for a model whose input leaves them open.
        lambdas: The computations of Lambda layers, each as `NAME=KIND`, or as `KIND` for all layers; the kinds are
            `model.safe_layers.KINDS`.
        custom_objects: The meanings of classes that the file only names, each as `CLASS=KIND` or `CLASS=module:attribute`.
        trust_model_code: Whether code inside the model file may run.
        mend_shared_encoder: Whether to rewire a file in which both branches use the encoder's first call.
        architecture: The JSON file with the architecture of a model file that holds weights alone, as `model.to_json()` returns
            it; the default is the file that is named as the model and ends in `.json`, where there is one.
        signature: The signature of a SavedModel to call; the default is `serving_default`.
        compare: The comparison of a one-input model's embeddings, one of `COMPARES`; it has no default.
        output_is: The meaning of the model's output, one of `OUTPUTS`; the default is `score`.
        match_column: The number, 0 or 1, of the softmax column that holds the probability of a match.
        batch_size: The number of images that the encoder takes at once.
        runtime: The library that runs the network, one of `RUNTIMES`; OpenVINO is an optional dependency and runs on the CPU;
            `auto` takes it where it is installed, there is no GPU, and `precision` is `float32`.
        precision: The number format in which the encoder computes, one of `PRECISIONS`; weights, embeddings and scores are
            always float32. `tensorfloat32` is what GPUs compute in by default, and changes nothing on a processor.
    """

    model: str | None = None
    threshold: float | None = None
    pixels: str | None = None
    color: str | None = None
    loader: str | None = None
    resize: str | None = None
    orientation: str | None = None
    alpha: str | None = None
    preprocess: str | None = None
    fit: str | None = None
    image_size: tuple[int, int] | None = None
    lambdas: tuple[str, ...] = ()
    custom_objects: tuple[str, ...] = ()
    trust_model_code: bool = False
    mend_shared_encoder: bool = False
    architecture: str | None = None
    signature: str | None = None
    compare: str | None = None
    output_is: str | None = None
    match_column: int | None = None
    batch_size: int = 64
    runtime: str = "tensorflow"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if problems := make_plain(self, _EXAMPLES) or list(self._problems()):
            raise PreflightError(problems)

    def match_threshold(self) -> float:
        """Returns the threshold in force."""
        return THRESHOLD if self.threshold is None else self.threshold

    def _problems(self) -> Iterator[str]:
        """Yields one sentence for each setting that cannot be, with its value and the remedy."""
        yield from self._problems_of_output()
        yield from self._problems_of_choices()
        yield from self._problems_of_input()
        yield from self._problems_of_execution()

    def _problems_of_output(self) -> Iterator[str]:
        if not 0 <= self.match_threshold() <= 1:
            yield f"--threshold is {self.threshold}; a score lies in [0, 1], so give a number from 0 to 1."
        if self.match_column not in (None, 0, 1):
            yield f"--match-column is {self.match_column}; a softmax of two has the columns 0 and 1."

    def _problems_of_choices(self) -> Iterator[str]:
        for name, choices in _CHOICES.items():
            if getattr(self, name, None) not in (None, *choices):
                yield f"{_option(name)} is '{getattr(self, name)}'; give one of {', '.join(choices)}."

    def _problems_of_input(self) -> Iterator[str]:
        if self.pixels is not None and not _is_scale(self.pixels):
            yield f"--pixels is '{self.pixels}'; give one of {', '.join(PIXELS)}, with {_BINARY}T behind it for a threshold."
        if self.loader in LOADER_RESIZES and self.resize in RESIZES and self.resize not in LOADER_RESIZES[self.loader]:
            methods = ", ".join(LOADER_RESIZES[self.loader])
            yield f"--resize is '{self.resize}', which --loader {self.loader} does not have; give one of {methods}."
        if self.preprocess is not None and not _IMPORTABLE.fullmatch(self.preprocess):
            yield f"--preprocess is '{self.preprocess}'; give module:function."
        for name in ("pixels", "resize", "fit"):
            if self.preprocess is not None and getattr(self, name) is not None:
                yield f"{_option(name)} and --preprocess are given, but the function does all of that; leave one of them out."
        if self.image_size is not None and not _is_size(self.image_size):
            yield f"--image-size is {self.image_size}; give height and width in pixels, at least 1x1."
        for setting in self.custom_objects:
            if "=" not in setting:
                yield f"--custom-object is '{setting}'; give CLASS=KIND or CLASS=module:attribute."

    def _problems_of_execution(self) -> Iterator[str]:
        if self.batch_size < 1:
            yield f"--batch-size is {self.batch_size}; give at least 1."
        if self.runtime == "openvino" and self.precision in PRECISIONS and self.precision not in _OPENVINO_PRECISIONS:
            formats = " or ".join(_OPENVINO_PRECISIONS)
            yield f"--precision {self.precision} is for --runtime tensorflow; OpenVINO computes in {formats}."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig(ModelConfig):
    """The settings of `VerifyPairs`: how pairs are read and scored.

    Attributes:
        identity_tolerance: The amount by which a score may exceed an identity score before it counts as a fault.
        left_column: The manifest column with the first image's URI.
        right_column: The manifest column with the second image's URI.
        label_column: The column that says whether the pair is genuine; None takes `genuine` where that column exists, and
            the empty string takes none.
        fold_column: The column with the fold of a benchmark such as LFW that the pair belongs to; None takes `fold` where
            that column exists, and the empty string takes none.
        image_root: The folder that relative URIs start from, and that every image must lie in; None means that relative
            URIs start from the manifest's folder, and that images may lie anywhere.
        max_image_pixels: The largest number of pixels of an image; one with more is `too_large` and is not decoded.
        max_image_bytes: The largest size of a file in bytes; one with more is `too_large` and is not read.
        max_decoding_pixels: The number of pixels that all threads of a worker process decode at the same time; an image with
            more is decoded alone. None means as many as a quarter of the memory that is free at the start can hold.
        on_nan: The treatment of a score that is not a number in [0, 1], one of `ON_NAN`: it fails the run, or the row is kept
            without a score.
        image_timeout: The seconds that fetching and decoding one image may take; an image that takes longer is
            `unavailable`.
        fetch_threads: The number of images that one worker process fetches and decodes at the same time; None means one for
            each core, or 16 where images lie in a store, because those threads wait more than they work.
        candidate: The path of a second model that scores the same pairs; its settings come from its own sidecar alone. None
            without one.
        candidate_threshold: The lowest score of the candidate's that is a match; None takes its sidecar's threshold, or else
            that of `model`.
        review: The scores, from the first to below the second, whose rows people should look at; None marks no rows.
        prior: The share of genuine pairs among all pairs, in (0, 1), by which calibrated scores become probabilities;
            None for no probabilities.
        group_columns: The columns whose values are groups, such as a region, to compute error rates for.
        group_column_pairs: Columns whose values are the groups of the left and of the right images, two names each; a pair
            belongs to a group if both of its images do.
        stranger_pairs: The number of pairs of images that are drawn at random from the run and compared; 0 for none.
        steadiness_images: The number of images that are encoded again after small changes, at most 0.2% of a run's images or
            20; 0 for none.
        subject_columns: The columns that name the subject of the left and of the right image, such as a person; None without.
        accelerator: The GPU of each Dataflow worker that encodes: a type, or a whole resource hint (see `accelerator_hint`).
    """

    identity_tolerance: float = 1e-4
    left_column: str = "left"
    right_column: str = "right"
    label_column: str | None = None
    fold_column: str | None = None
    image_root: str | None = None
    max_image_pixels: int = 64_000_000
    max_image_bytes: int = 64 * 2**20
    max_decoding_pixels: int | None = None
    on_nan: str = "fail"
    image_timeout: float = 60.0
    fetch_threads: int | None = None
    candidate: str | None = None
    candidate_threshold: float | None = None
    review: tuple[float, float] | None = None
    prior: float | None = None
    group_columns: tuple[str, ...] = ()
    group_column_pairs: tuple[tuple[str, str], ...] = ()
    stranger_pairs: int = 100_000
    steadiness_images: int = 200
    subject_columns: tuple[str, str] | None = None
    accelerator: str | None = None

    def candidate_match_threshold(self) -> float:
        """Returns the candidate's threshold in force, once its sidecar has been applied."""
        return self.match_threshold() if self.candidate_threshold is None else self.candidate_threshold

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from self._problems_of_candidate()
        yield from self._problems_of_limits()
        yield from self._problems_of_review()
        yield from self._problems_of_prior()
        yield from self._problems_of_strangers()
        yield from self._problems_of_accelerator()
        yield from self._problems_of_columns()

    def _problems_of_candidate(self) -> Iterator[str]:
        if self.candidate == "":
            yield "--candidate is empty; name a model."
        if self.candidate_threshold is not None and not 0 <= self.candidate_threshold <= 1:
            yield f"--candidate-threshold is {self.candidate_threshold}; a score lies in [0, 1], so give a number from 0 to 1."
        if self.candidate_threshold is not None and self.candidate is None:
            yield "--candidate-threshold needs a candidate, and none is given; add --candidate MODEL."

    def _problems_of_limits(self) -> Iterator[str]:
        if not (math.isfinite(self.identity_tolerance) and self.identity_tolerance >= 0):
            yield f"--identity-tolerance is {self.identity_tolerance}; give a number that is not negative."
        if not 0 < self.image_timeout < math.inf:
            yield f"--image-timeout is {self.image_timeout}; give a number of seconds above 0."
        for name in ("max_image_pixels", "max_image_bytes", "max_decoding_pixels", "fetch_threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                yield f"{_option(name)} is {getattr(self, name)}; give at least 1."
        if (self.fetch_threads or 0) > _MAX_FETCH_THREADS:
            yield f"--fetch-threads is {self.fetch_threads}; give {_MAX_FETCH_THREADS} at most."

    def _problems_of_strangers(self) -> Iterator[str]:
        if not 0 <= self.stranger_pairs <= _MAX_STRANGER_PAIRS:
            yield f"--stranger-pairs is {self.stranger_pairs}; give a number from 0, for none, to {_MAX_STRANGER_PAIRS:,}."
        if not 0 <= self.steadiness_images <= _MAX_STEADINESS_IMAGES:
            yield f"--steadiness-images is {self.steadiness_images}; give 0, for none, to {_MAX_STEADINESS_IMAGES:,}."
        if self.subject_columns is not None and (len(self.subject_columns) != 2 or not all(self.subject_columns)):
            names = " ".join(f"'{name}'" for name in self.subject_columns)
            yield f"--subject-columns is {names}; name two columns, of the left and of the right image's subject."
        for pair in self.group_column_pairs:
            if len(pair) != 2 or not all(pair) or pair[0] == pair[1]:
                given = " ".join(f"'{name}'" for name in pair)
                yield f"--group-columns is {given}; name two columns, of the left and of the right image's group."
            elif " / ".join(pair) in self.group_columns:
                yield f"--group-columns {' '.join(pair)} and --group-column '{' / '.join(pair)}' have one name; leave one out."

    def _problems_of_review(self) -> Iterator[str]:
        if self.review is not None and not (len(self.review) == 2 and 0 <= self.review[0] < self.review[1] <= 1):
            given = " ".join(f"{score:g}" for score in self.review)
            yield f"--review is {given}; give two scores from 0 to 1, the lower one first."

    def _problems_of_prior(self) -> Iterator[str]:
        if self.prior is not None and not 0 < self.prior < 1:
            yield f"--prior is {self.prior:g}; give the share of genuine pairs among all pairs, between 0 and 1, such as 0.01."

    def _problems_of_accelerator(self) -> Iterator[str]:
        if self.accelerator is None:
            return
        if not _ACCELERATOR.fullmatch(self.accelerator):
            yield (
                f"--accelerator is '{self.accelerator}'; give a type such as nvidia-tesla-t4, or Dataflow's resource hint for "
                "one GPU a worker, such as 'type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver'."
            )
        if self.runtime == "openvino":
            yield f"--accelerator asks for GPUs, but --runtime {self.runtime} runs on the CPU; leave one of them out."

    def _problems_of_columns(self) -> Iterator[str]:
        columns = [self.left_column, self.right_column, *filter(None, (self.label_column, self.fold_column))]
        for column in {column for column in columns if columns.count(column) > 1}:
            yield f"column '{column}' is given for two things; left, right, label and fold are different columns."
        yield from self._problems_of_groups()

    def _problems_of_groups(self) -> Iterator[str]:
        label = DEFAULT_LABEL if self.label_column is None else self.label_column
        why = {label: "the column of the labels: a {} of one label has one error rate, and none to compare it with"}
        for side, column in (("left", self.left_column), ("right", self.right_column)):
            why[column] = f"the column of the {side} images, so that each image would be a {{}} of its own"
        pairs = itertools.chain.from_iterable(self.group_column_pairs)
        for option, kind, columns in (
            ("--group-column", "group", self.group_columns),
            ("--group-columns", "group", pairs),
            ("--subject-columns", "subject", self.subject_columns or ()),
        ):
            for column in dict.fromkeys(columns):
                if column in why:
                    yield f"{option} names '{column}', {why[column].format(kind)}; name a column with the {kind}s."


Config = TypeVar("Config", bound=ScoringConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerificationConfig(ScoringConfig):
    """The settings of one run: a manifest in, a directory of scores out.

    Attributes:
        manifests: The paths or globs of CSV and Parquet files; a file that several of them match is read once.
        output: The directory of the scores; it is made if it does not exist.
        overwrite: Whether to replace a finished run in `output`.
        block_rows: The largest number of rows that travel through the pipeline as one element. An image is sent once to
            each block that names it, so larger blocks shuffle less.
        separator: The character between the columns of CSV files; None takes the comma, or what the header shows.
        bad_rows: The treatment of CSV rows with too few or too many fields, or with bytes that are not UTF-8, one of
            `BAD_ROWS`: the manifest is refused, or the rows are kept with the status `bad_row`.
        fmr: The false match rates, beside 1%, 0.1% and 0.01%, for which a run with labels names thresholds.
        threshold_from: An earlier run whose labels decide the threshold, and the FMR to keep there, as `RUN:fmr=RATE`.
        max_failed_rows: The limit on rows without a score; above it the exit code is 3.
        max_identity_faults: The limit on scored rows whose identity check is not `sane`; above it the exit code is 3.
        allow_empty: Whether a run in which no row has a score ends with exit code 0; without it the exit code is 3.
        limit: The number of rows to score, from the start of the manifest in the order of its files; None scores all.
        baseline: The run directory, or the `_summary.json`, of an earlier run to compare this run with.
        baseline_optional: Whether to continue without a baseline where `baseline` holds no finished run.
        max_stranger_matches: The limit on matches among pairs drawn at random; above it the exit code is 3.
        max_flips: The limit on rows that only one of `model` and `candidate` finds a match; above it the exit code is 3.
        max_group_ratio: The limit on the ratio of a group's highest FMR or FNMR to the lowest; above it the exit code is 3.
        max_drift: The limit on the population stability index of the scores against the baseline's; above it the exit code
            is 3.
        embeddings: The directory of an embedding store; an image that it holds and that has not changed is not encoded again.
        embeddings_version: The evidence that an image has not changed, one of `EMBEDDING_VERSIONS`: what its file system
            says about it, or its content, for which the image is fetched but not decoded.
        embeddings_rebuild: Whether to ignore what the store holds, and to replace it.
        embeddings_days: The number of days after which the store drops embeddings that no run has used; None keeps them.
    """

    manifests: tuple[str, ...]
    output: str
    overwrite: bool = False
    block_rows: int = 1_048_576
    separator: str | None = None
    bad_rows: str = "refuse"
    fmr: tuple[float, ...] = ()
    threshold_from: str | None = None
    max_failed_rows: Limit | None = None
    max_identity_faults: Limit | None = None
    allow_empty: bool = False
    limit: int | None = None
    baseline: str | None = None
    baseline_optional: bool = False
    max_stranger_matches: Limit | None = None
    max_flips: Limit | None = None
    max_group_ratio: float | None = None
    max_drift: float | None = None
    embeddings: str | None = None
    embeddings_version: str = "stat"
    embeddings_rebuild: bool = False
    embeddings_days: int | None = None

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from self._problems_of_paths()
        yield from self._problems_of_rows()
        yield from self._problems_of_thresholds()
        yield from self._problems_of_baseline()
        yield from self._problems_of_embeddings()

    def _problems_of_strangers(self) -> Iterator[str]:
        yield from super()._problems_of_strangers()
        if self.max_stranger_matches is not None and self.stranger_pairs == 0:
            yield "--max-stranger-matches needs strangers, and --stranger-pairs is 0; leave one of them out."

    def _problems_of_candidate(self) -> Iterator[str]:
        yield from super()._problems_of_candidate()
        if self.max_flips is not None and self.candidate is None:
            yield "--max-flips needs a candidate, and none is given; add --candidate MODEL."
        if self.embeddings and self.candidate is not None:
            yield "--embeddings keeps the embeddings of one model, and --candidate adds a second; leave one of them out."

    def _problems_of_paths(self) -> Iterator[str]:
        if not self.manifests:
            yield "manifests is empty; give one --manifest or more."
        if not self.output:
            yield "--output is empty; name a directory."
        for option, path in (("--output", _absolute(self.output)), ("--embeddings", self.embeddings or "")):
            if set(path) & set("*?["):
                yield f"{option} {path} holds one of * ? [, which Beam takes for a pattern; name another directory."

    def _problems_of_rows(self) -> Iterator[str]:
        if self.block_rows < 1:
            yield f"--block-rows is {self.block_rows}; give at least 1."
        if self.separator is not None and not _SEPARATOR.fullmatch(self.separator):
            yield f"--separator is {self.separator!r}; give one character such as ';', or tab."
        if self.limit is not None and self.limit < 1:
            yield f"--limit is {self.limit}; give at least 1."

    def _problems_of_thresholds(self) -> Iterator[str]:
        if self.max_group_ratio is not None and not 1 <= self.max_group_ratio < math.inf:
            yield f"--max-group-ratio is {self.max_group_ratio:g}; give a ratio of at least 1, such as 2."
        if self.max_group_ratio is not None and not (self.group_columns or self.group_column_pairs):
            yield "--max-group-ratio needs groups, and none are named; add --group-column NAME."
        for rate in self.fmr:
            if why := _why_no_fmr(rate):
                yield f"--fmr is {rate:g}; {why}."
        if self.threshold_from is not None:
            if self.threshold is not None:
                yield "--threshold and --threshold-from are both given; leave one of them out."
            try:
                split_threshold_source(self.threshold_from)
            except ValueError as error:
                yield f"--threshold-from is '{self.threshold_from}'; {error}."

    def _problems_of_baseline(self) -> Iterator[str]:
        if self.baseline == "":
            yield "--baseline is empty; name a run directory or a _summary.json."
        if self.baseline is None and (self.baseline_optional or self.max_drift is not None):
            option = "--baseline-optional" if self.baseline_optional else "--max-drift"
            yield f"{option} needs a baseline, and none is given; add --baseline DIR."
        if self.max_drift is not None and not 0 <= self.max_drift < math.inf:
            yield f"--max-drift is {self.max_drift}; give a population stability index such as 0.25."

    def _problems_of_embeddings(self) -> Iterator[str]:
        if self.embeddings == "":
            yield "--embeddings is empty; name a directory."
        if self.embeddings and _overlap(self.embeddings, self.output):
            yield (
                f"--embeddings {self.embeddings} and --output {self.output} are the same directory, or one contains the other; "
                "name two separate directories."
            )
        if self.embeddings_days is not None and self.embeddings_days < 1:
            yield f"--embeddings-days is {self.embeddings_days}; give at least 1."
        if (self.embeddings_days or 0) > _MAX_EMBEDDINGS_DAYS:
            yield f"--embeddings-days is {self.embeddings_days}; give {_MAX_EMBEDDINGS_DAYS} at most, or leave it out."
        for name in ("embeddings_version", "embeddings_rebuild", "embeddings_days"):
            if self.embeddings is None and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                yield f"{_option(name)} needs an embedding store, and none is given; add --embeddings DIR."


def with_candidate_threshold(config: Config) -> Config:
    """Returns a configuration, completed by both sidecars, whose threshold is the candidate's."""
    return dataclasses.replace(config, threshold=config.candidate_match_threshold())


def split_threshold_source(text: str) -> tuple[str, float]:
    """Returns the run and the FMR that `RUN:fmr=RATE` names.

    Raises:
        ValueError: If the text is no such thing, with the reason and the remedy.
    """
    run, separator, number = text.rpartition(":fmr=")
    if not (run and separator):
        raise ValueError("give RUN:fmr=RATE, such as scores/dt=2026-11-24:fmr=1e-3")
    try:
        rate = parse_share(number)
    except ValueError:
        raise ValueError(f"the FMR '{number}' is no number; give one such as fmr=1e-3 or fmr=0.1%") from None
    if why := _why_no_fmr(rate):
        raise ValueError(why)
    return run, rate


def parse_share(text: str) -> float:
    """Reads a share of pairs, such as `0.001`, `1e-3` or `0.1%`.

    Raises:
        ValueError: If the text is no number.
    """
    number = text.strip().removesuffix("%")
    return float(number) / 100 if number != text.strip() else float(number)


def _why_no_fmr(rate: float) -> str | None:
    """Returns why no threshold can be named for a false match rate, with the remedy; None where one can."""
    if 0 < rate < 1:
        return None
    if rate == 0:
        return "no number of pairs shows that none would match; give a false match rate above 0, such as 1e-5"
    return "give a false match rate between 0 and 1, such as 1e-5, or a percentage such as 0.001%"


def split_pixels(pixels: str) -> tuple[str, float | None]:
    """Returns a scale, one of `PIXELS`, and the threshold above which pixels are made white first; None without one."""
    scale, binary, threshold = pixels.partition(_BINARY)
    return scale, float(threshold) if binary else None


def _is_scale(pixels: str) -> bool:
    try:
        scale, threshold = split_pixels(pixels)
    except ValueError:
        return False
    return scale in PIXELS and (threshold is None or 0 <= threshold <= 255)


# One model runs on one GPU, so a run with more GPUs has more workers.
_MAX_FETCH_THREADS = 1024
_MAX_EMBEDDINGS_DAYS = 36_500
_MAX_STEADINESS_IMAGES = 2_000
_MAX_STRANGER_PAIRS = 1_000_000  # Half of the pairs that the drawn images can make.
_ACCELERATOR = re.compile(r"[a-z][a-z0-9-]*|type:[a-z][a-z0-9-]*;count:1(;[A-Za-z0-9:._-]+)*")


def accelerator_hint(accelerator: str) -> str:
    """Returns Dataflow's resource hint for one GPU a worker, made from a GPU type unless `accelerator` is a hint already."""
    return accelerator if accelerator.startswith("type:") else f"type:{accelerator};count:1;install-nvidia-driver"


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _overlap(first: str, second: str) -> bool:
    """Returns whether two directories are the same, or one contains the other."""
    first, second = _directory_prefix(first), _directory_prefix(second)
    return first.startswith(second) or second.startswith(first)


def _absolute(path: str) -> str:
    """Returns a path on this machine as Beam's sink of files makes it absolute."""
    return path if is_remote(path) else os.path.abspath(path)


def _directory_prefix(path: str) -> str:
    return path.rstrip("/") + "/" if is_remote(path) else os.path.join(os.path.realpath(path), "")


def _is_size(size: Sequence[int]) -> bool:
    return len(size) == 2 and all(side >= 1 for side in size)
