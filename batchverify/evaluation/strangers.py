"""Strangers: images of one run, drawn at random and compared. The share that matches estimates the FMR without labels.

ISO/IEC 19795-1 calls the comparison of two people who have nothing to do with each other a zero-effort impostor comparison.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from batchverify.config import Limit
from batchverify.evaluation import metrics
from batchverify.evaluation.clusters import ClusteredCounts
from batchverify.schema import is_match
from batchverify.words import agree, counted

# Matches above this share make a run untrustworthy, where `--max-stranger-matches` names no other limit.
DEFAULT_LIMIT = Limit(10, is_percentage=True)
# Fewer say nothing about a model: the pairs of the manifest, which may be mates, are a large share of what they can make.
_LEAST_IMAGES, _LEAST_PAIRS = 20, 100
_QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
FEW_MATCH, MANY_MATCH, TOO_FEW = "few_match", "many_match", "too_few_images"


@dataclasses.dataclass(frozen=True)
class Strangers:
    """The comparisons of a run's strangers.

    Attributes:
        section: The section `strangers` of `_summary.json`.
        histogram: Histogram of their scores, int64 `(metrics.BINS,)`.
        groups: By grouping and by group, a value or `NO_VALUE`, the entries `strangers` of the section `groups`.
    """

    section: Mapping[str, Any]
    histogram: np.ndarray
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)

    def with_subjects(self, counts: np.ndarray) -> Strangers:
        """Returns the comparisons with what is odd about the subjects of the images.

        Args:
            counts: The number of subjects that the manifest names for each image, int64 `(n,)`.
        """
        odd = {"without_subject": int(np.count_nonzero(counts == 0)), "of_several_subjects": int(np.count_nonzero(counts > 1))}
        return dataclasses.replace(self, section={**self.section, **odd})


@dataclasses.dataclass(frozen=True)
class ImageGroups:
    """The groups of the drawn images.

    Attributes:
        names: The groups: values, or `NO_VALUE`.
        codes: The number of each image's group, int64 `(images,)`; -1 where it has none, or several.
    """

    names: Sequence[str]
    codes: np.ndarray


def draw_pairs(images: int, pairs: int, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which images to compare: each with the next in a ring, then each with the next but one, and so on.

    As the images are in a random order, the pairs are a random draw, and all images are in about as many of them.

    Args:
        images: The number of images.
        pairs: The number of pairs to draw; fewer are drawn if there are no more.
        left_out: Pairs that are not to be drawn: the lower position times `images`, plus the higher one; int64, in any order.

    Returns:
        Positions of the left and of the right images, int64 `(n,)` each; the left one is the lower.
    """
    ring, lefts, rights, drawn = np.arange(images), [], [], 0
    for step in range(1, images // 2 + 1):
        if drawn >= pairs:
            break
        first = ring[: images // 2] if 2 * step == images else ring
        second = (first + step) % images
        left, right = np.minimum(first, second), np.maximum(first, second)
        kept = ~np.isin(left * images + right, left_out)
        lefts.append(left[kept])
        rights.append(right[kept])
        drawn += int(kept.sum())
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *lefts])[:pairs], np.concatenate([none, *rights])[:pairs]


def match_interval(matches: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[float, float] | None:
    """Returns the 95% interval of the share of matches, which knows that pairs share images; None without pairs.

    Args:
        matches: Which pairs match, bool `(n,)`.
        left: Positions of the left images, int64 `(n,)`.
        right: Positions of the right images, int64 `(n,)`.
    """
    images = np.stack([left, right], axis=1).astype(np.uint64)
    rate = metrics.Rate(int(np.count_nonzero(matches)), len(matches))
    counts = ClusteredCounts.count(images, np.ones(images.shape, bool), matches)
    return counts.effective_sample_size(rate).interval(rate)


def describe_strangers(
    scores: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    run_images: int,
    mates_known_by: str | None,
    left_out: Mapping[str, int],
    threshold: float,
    limit: Limit | None,
    groups: Mapping[str, ImageGroups] | None = None,
) -> Strangers:
    """Describes the scores of strangers.

    Args:
        scores: Their scores, float32 `(n,)`; NaN where the model gave none.
        left: Positions of the left images, int64 `(n,)`.
        right: Positions of the right images, int64 `(n,)`.
        run_images: The number of distinct images of the run that have an embedding.
        mates_known_by: What says which images show the same subject: `subjects`, `labels`, or None.
        left_out: Numbers of pairs of the drawn images that are no strangers, by reason.
        threshold: The lowest score that is a match.
        limit: The limit on matches that the user has set, or None.
        groups: The groups of the images, by grouping.
    """
    is_number = ~np.isnan(scores)
    scores, left, right = scores[is_number], left[is_number], right[is_number]
    matches = is_match(scores, threshold)
    rate = metrics.Rate(int(np.count_nonzero(matches)), len(scores))
    images = len(np.union1d(left, right))
    section = {
        "images": images,
        "pairs": rate.trials,
        "matches": rate.errors,
        "match_rate": rate.value,
        "match_rate_interval": match_interval(matches, left, right),
        "score_quantiles": _quantiles(scores),
        "left_out": dict(left_out),
        "mates_known_by": mates_known_by,
        "without_subject": None,
        "of_several_subjects": None,
        "share_of_one_mate": 1 / (run_images - 1) if run_images > 1 else None,
        "limit": str(limit or DEFAULT_LIMIT),
        "verdict": _verdict(rate, images, limit or DEFAULT_LIMIT),
    }
    of_groups = {name: _describe_groups(found, matches, left, right) for name, found in (groups or {}).items()}
    return Strangers(section, metrics.histogram(scores), of_groups)


def _describe_groups(
    groups: ImageGroups, matches: np.ndarray, left: np.ndarray, right: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Returns, for each group, the strangers of which both images belong to it."""
    is_within = (groups.codes[left] == groups.codes[right]) & (groups.codes[left] >= 0)
    matches, left, right = matches[is_within], left[is_within], right[is_within]
    described = {}
    for code, name in enumerate(groups.names):
        rows = groups.codes[left] == code
        if rows.any():
            rate = metrics.Rate(int(np.count_nonzero(matches[rows])), int(np.count_nonzero(rows)))
            interval = match_interval(matches[rows], left[rows], right[rows])
            described[name] = {"pairs": rate.trials, "match_rate": rate.value, "match_rate_interval": interval}
    return described


def _verdict(rate: metrics.Rate, images: int, limit: Limit) -> str:
    if images < _LEAST_IMAGES or rate.trials < _LEAST_PAIRS:
        return TOO_FEW
    return FEW_MATCH if limit.allows(rate.errors, rate.trials) else MANY_MATCH


def _quantiles(scores: np.ndarray) -> list[list[float]]:
    # A score that occurs, not one between two of them.
    return [[share, float(np.quantile(scores, share, method="lower"))] for share in _QUANTILES if len(scores)]


# What is likely where too many strangers match, and what to do about it; the terminal and the report say the same.
_CAUSES = (
    "the images are of another kind than those that the model was trained on; or their pixels have another scale (--pixels); "
    "or the encoder has collapsed and gives all images nearly the same embedding; or the threshold is too low."
)
_MATES = " If most images show the same subject, they are no strangers: name the columns with the subjects (--subject-columns)."
REMEDY = (
    "don’t use these matches. Examine the model on these images (batchverify doctor --manifest), compare its preprocessing "
    "with that of its training, and take a threshold from labelled pairs of this kind."
)


def describe_causes(section: Mapping[str, Any]) -> str:
    """Returns in words why too many strangers may match."""
    return _CAUSES + ("" if section["mates_known_by"] == "subjects" else _MATES)


def describe_rate(section: Mapping[str, Any]) -> str:
    """Returns the share of strangers that match, with its counts and its interval, in words."""
    if not section["pairs"]:
        return "no two images could be drawn at random"
    low, high = map(percent, section["match_rate_interval"])
    pairs = "pair" if section["pairs"] == 1 else "pairs"
    drawn = f"{section['matches']:,} of {section['pairs']:,} {pairs} of images drawn at random"
    return f"{percent(section['match_rate'])} of strangers match: {drawn} (95% interval {low} to {high})"


def describe_mates(section: Mapping[str, Any]) -> str:
    """Returns in words which images of the same subject are among the strangers, and what they do to the rate."""
    known_by, share = section["mates_known_by"], section["share_of_one_mate"]
    if known_by == "subjects":
        return "Images of one subject are left out." + _describe_odd_subjects(section)
    if section["without_subject"] is not None:
        return "The columns of --subject-columns name no subject, so other images of the same subject may be among them."
    kept = "Pairs labelled genuine are left out, but other" if known_by == "labels" else "Other"
    effect = (
        ""
        if share is None
        else f": each one that an image has raises the rate by {percent(share)[:-1]} percentage points at most"
    )
    return f"{kept} images of the same subject may be among them{effect} (--subject-columns leaves them out)."


def _describe_odd_subjects(section: Mapping[str, Any]) -> str:
    words = ""
    if without := section["without_subject"]:
        words += f" The manifest names no subject for {without:,} of the drawn images, so mates of these may be among them."
    if several := section["of_several_subjects"]:
        words += (
            f" It names several subjects for {several:,} of the drawn images: are the two columns of --subject-columns in the "
            "right order?"
        )
    return words


def describe_shortage(section: Mapping[str, Any]) -> str:
    """Returns in words why strangers were not judged."""
    why = {"same_content": "are copies of one file", "genuine": "are labelled genuine", "same_subject": "show one subject"}
    reason, count = max(section["left_out"].items(), key=lambda item: item[1], default=("", 0))
    left_out = f"{counted(count, 'pair')} {agree(count, 'is', 'are')} left out because {agree(count, 'its images', 'they')}"
    cause = f"; {left_out} {why[reason]}" if count else ""
    pairs, images = counted(section["pairs"], "pair"), counted(section["images"], "image")
    compared = f"{pairs} of {images} {agree(section['pairs'], 'was', 'were')} compared"
    return f"it takes {_LEAST_PAIRS} pairs of {_LEAST_IMAGES} images, and {compared}{cause}"


def percent(rate: float) -> str:
    """Returns a rate in percent with one digit behind the point, or as many as a rate near 0 or 1 needs."""
    if rate in (0, 1):
        return f"{rate:.0%}"
    digits = max(1, -math.floor(math.log10(min(rate, 1 - rate))) - 2)
    return f"{rate:.{min(digits, 6)}%}"
