"""The output contract: statuses, verdicts, columns."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class ImageStatus(enum.StrEnum):
    """The outcome for one image of a pair."""

    OK = "ok"
    MISSING = "missing"
    DENIED = "denied"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    UNAVAILABLE = "unavailable"
    OUTSIDE_ROOT = "outside_root"
    NO_URI = "no_uri"
    BAD_ROW = "bad_row"


class ImageTraits(enum.IntFlag):
    """What an image file holds beyond the colours of one upright picture. Libraries treat each of these in their own way."""

    NONE = 0
    TURNED = 1  # EXIF says that the picture is to be turned or reflected.
    TRANSPARENT = 2
    MULTI_FRAME = 4


class IdentityCheck(enum.StrEnum):
    """What the identity scores of a row's images say about its score."""

    SANE = "sane"
    BELOW_THRESHOLD = "below_threshold"
    OUTSCORED = "outscored"
    NOT_CHECKED = "not_checked"


STATUSES = tuple(ImageStatus)
VERDICTS = tuple(IdentityCheck)

# An output so far outside [0, 1] is still a score: the cosine of an embedding with itself was 0.0000008 above 1 in float32.
SCORE_ROUNDING = 1e-5
# A column with more values does not name groups.
MAX_GROUPS = 1_000
# A column that blocks have between workers: the reason why a row that is kept cannot be scored; null for all other rows.
BAD_ROW_COLUMN = "batchverify.bad_row"
MANIFEST_FILE, MANIFEST_ROW = "manifest_file", "manifest_row"
_CATEGORY = pa.dictionary(pa.int8(), pa.string())

PROVENANCE_FIELDS = (
    pa.field(MANIFEST_FILE, pa.string(), nullable=False),
    pa.field(MANIFEST_ROW, pa.int64(), nullable=False),
)
RESULT_FIELDS = (
    pa.field("score", pa.float32()),
    pa.field("match", pa.bool_()),
    pa.field("identity_left", pa.float32()),
    pa.field("identity_right", pa.float32()),
    pa.field("identity_check", _CATEGORY, nullable=False),
    pa.field("same_image", pa.bool_()),
    pa.field("left_status", _CATEGORY, nullable=False),
    pa.field("right_status", _CATEGORY, nullable=False),
    pa.field("error", pa.string()),
)
# Only a run with --review has this column.
REVIEW_FIELD = pa.field("review", pa.bool_())
# Only a run whose model is calibrated has the first of these columns, and only with --prior the second.
LLR_FIELD = pa.field("llr", pa.float32())
PROBABILITY_FIELD = pa.field("probability", pa.float32())
# Only a run with --candidate has these columns. They are null where the candidate has no score.
CANDIDATE_FIELDS = (
    pa.field("score_candidate", pa.float32()),
    pa.field("match_candidate", pa.bool_()),
    pa.field("identity_check_candidate", _CATEGORY),
)
RESERVED_COLUMNS = frozenset(field.name for field in PROVENANCE_FIELDS + RESULT_FIELDS) | {BAD_ROW_COLUMN}


def optional_fields(with_review: bool, with_llr: bool, with_probability: bool) -> list[pa.Field]:
    """Returns the columns that not every run has, in their order.

    Args:
        with_review: Whether the rows that people should look at are marked.
        with_llr: Whether the model is calibrated.
        with_probability: Whether, in addition, the prior is known.
    """
    given = {REVIEW_FIELD: with_review, LLR_FIELD: with_llr, PROBABILITY_FIELD: with_llr and with_probability}
    return [field for field, is_given in given.items() if is_given]


def output_schema(
    manifest: pa.Schema, metadata: Mapping[str, str] | None = None, optional: Sequence[pa.Field] = ()
) -> pa.Schema:
    """Returns the schema of the scores: the columns of the manifest, then those that a run adds.

    Args:
        manifest: The columns of the manifest.
        metadata: The metadata to store in the files, under keys that begin with `batchverify.`.
        optional: The result of `optional_fields` for the run.
    """
    fields = [*manifest, *PROVENANCE_FIELDS, *RESULT_FIELDS, *optional]
    return pa.schema(fields, {f"batchverify.{key}": value for key, value in (metadata or {}).items()})


def is_match(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Returns which float32 `scores` are matches, bool `(n,)`. No other place defines what a match is."""
    return scores >= np.float32(threshold)


def is_score(values: np.ndarray) -> np.ndarray:
    """Returns which outputs of a model, float32 `(n,)`, are scores: numbers in [0, 1]; bool `(n,)`."""
    return (values >= 0) & (values <= 1)  # NaN is neither.


def without_rounding(values: np.ndarray) -> np.ndarray:
    """Returns outputs of a model, float32 `(n,)`, with 0 and 1 for those that rounding alone has put outside [0, 1]."""
    return np.where(np.abs(values - 0.5) <= 0.5 + SCORE_ROUNDING, np.clip(values, 0, 1), values)


def category(codes: np.ndarray, names: tuple[enum.StrEnum, ...], missing: np.ndarray | None = None) -> pa.DictionaryArray:
    """Returns `dictionary<string>` for `codes`, int8 positions in `names`; null where `missing`, bool `(n,)`."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8(), mask=missing), pa.array([str(name) for name in names]))


def category_codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Returns the codes in a column of names, text or what `category` made, integers `(n,)`, -1 for null; and the names."""
    named = column.dictionary_encode().unify_dictionaries().combine_chunks()
    return pc.fill_null(named.indices, -1).to_numpy(), named.dictionary.to_pylist()


def is_category(column: pa.ChunkedArray, *names: str) -> np.ndarray:
    """Returns which values of a column of names are one of `names`, bool `(n,)`; null is none of them."""
    codes, known = category_codes(column)
    is_one: np.ndarray = np.append([name in names for name in known], False)[codes]  # The last entry is that of null.
    return is_one


def is_text(kind: pa.DataType) -> bool:
    """Returns whether `kind` holds text: string, large_string, string_view, or a dictionary of these."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
