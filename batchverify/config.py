"""What a run is asked to do. Frozen, and validated when it is made."""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Sequence


class Refused(ValueError):
    """The user asked for something that cannot be done; nothing was read or written.

    Attributes:
        problems: one sentence each, with the value and the remedy.
    """

    def __init__(self, problems: Sequence[str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunFailed(RuntimeError):
    """The run began and could not be finished; the output has no `_SUCCESS`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How pairs are scored; what `VerifyPairs` needs to know.

    Attributes:
        model: path of a trained model on any file system that Beam opens, or None for the embedded one.
        threshold: a pair matches when its score is at least this, in [0, 1].
        identity_tolerance: by how much a score may exceed an identity score before it counts as a fault.
        left_column: manifest column with the first image's URI.
        right_column: manifest column with the second image's URI.
        label_column: column that says whether the pair is genuine; None takes `genuine` where it exists, and
            the empty string takes none.
        image_root: folder that relative URIs start from, and that no image may lie outside of; None means
            the manifest's folder, and no confinement.
        max_image_pixels: an image of more pixels is `too_large`, found before it is decoded.
        max_image_bytes: a file of more bytes is `too_large`, found before it is read.
        batch_size: images that the encoder is given at once.
        fetch_threads: images that are fetched and decoded at the same time in one worker process.
    """

    model: str | None = None
    threshold: float = 0.5
    identity_tolerance: float = 1e-4
    left_column: str = "left"
    right_column: str = "right"
    label_column: str | None = None
    image_root: str | None = None
    max_image_pixels: int = 64_000_000
    max_image_bytes: int = 64 * 2**20
    batch_size: int = 64
    fetch_threads: int = 8

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise Refused(problems)

    def _problems(self):
        if not 0 <= self.threshold <= 1:
            yield f"--threshold is {self.threshold}; a score lies in [0, 1], so give a number from 0 to 1."
        if not (math.isfinite(self.identity_tolerance) and self.identity_tolerance >= 0):
            yield f"--identity-tolerance is {self.identity_tolerance}; give a number that is not negative."
        for name in ("max_image_pixels", "max_image_bytes", "batch_size", "fetch_threads"):
            if getattr(self, name) < 1:
                yield f"--{name.replace('_', '-')} is {getattr(self, name)}; give at least 1."
        columns = [self.left_column, self.right_column, *([self.label_column] if self.label_column else [])]
        for column in {column for column in columns if columns.count(column) > 1}:
            yield f"column '{column}' is given for two things; left, right and label are three different columns."


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerificationConfig(ScoringConfig):
    """One run: a manifest in, a directory of scores out.

    Attributes:
        manifests: paths or globs of CSV and Parquet files; a file that several of them match is read once.
        output: directory of the scores; made if need be.
        overwrite: whether to replace a finished run in `output`.
        block_rows: at most so many rows travel through the pipeline as one element. An image is sent once to each
            block that names it, so larger blocks shuffle less.
        run_id: what this run is called in its own output.
    """

    manifests: tuple[str, ...]
    output: str
    overwrite: bool = False
    block_rows: int = 262_144
    run_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def _problems(self):
        yield from super()._problems()
        if isinstance(self.manifests, str) or not self.manifests:
            yield f"manifests is {self.manifests!r}; give one --manifest or more."
        if not self.output:
            yield "--output is empty; name a directory."
        if self.block_rows < 1:
            yield f"--block-rows is {self.block_rows}; give at least 1."


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What a run writes down about its model.

    Attributes:
        path: where it came from.
        digest: SHA-256 of the file, in hex.
        embedded: whether it is the one that comes with this package.
        image_shape: height, width and channels that it takes.
        embedding_size: numbers in one embedding.
    """

    path: str
    digest: str
    embedded: bool
    image_shape: tuple[int, int, int]
    embedding_size: int
