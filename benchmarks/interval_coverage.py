"""How often 95% intervals of FMR, FNMR and a group ratio cover the true value where pairs share subjects.

    python -m benchmarks.interval_coverage --rounds 2000

Each round draws subjects, and pairs of them. A subject has an effect on the score of all its pairs, as in Fogliato, Patil and
Perona (2024): the score of an impostor pair is the sum of two subjects' effects and noise, that of a genuine pair is one
subject's effect and noise. The true rate follows from the normal distribution. Beside the intervals of `_summary.json` stand
Wilson's, which take pairs for independent. For a ratio, each pair belongs to one of two groups at random, so that the groups
share most subjects, and the true ratio is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa

from batchverify.evaluation.clusters import ClusteredCounts, Subjects
from batchverify.evaluation.groups import count_groups, describe_groups
from batchverify.evaluation.metrics import INDEPENDENT, Rate


@dataclasses.dataclass(frozen=True)
class Case:
    """A distribution of pairs.

    Attributes:
        kind: `impostor` or `genuine`.
        subjects: Number of subjects.
        pairs: Number of pairs for each subject.
        effect: Standard deviation of a subject's effect; that of the noise is 1.
        rate: The true error rate.
    """

    kind: str
    subjects: int
    pairs: int
    effect: float
    rate: float


CASES = [
    Case(kind, subjects, 20, effect, rate)
    for kind in ("impostor", "genuine")
    for subjects in (50, 200, 1000)
    for effect, rate in ((0.3, 0.16), (0.7, 0.16), (0.3, 0.01), (0.7, 0.01))
]

RATIO_CASES = [
    Case(kind, subjects, 20, effect, 0.16)
    for kind in ("impostor", "genuine")
    for subjects in (10, 20, 50, 200)
    for effect in (0.3, 0.7)
]


def draw(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the subjects of pairs, int64 `(n, 2)`, and which pairs are errors, bool `(n,)`."""
    effects, count = rng.normal(0, case.effect, case.subjects), case.subjects * case.pairs
    left = rng.integers(0, case.subjects, count)
    if case.kind == "genuine":
        right, sums, variance = left, effects[left], case.effect**2 + 1
    else:
        right = (left + rng.integers(1, case.subjects, count)) % case.subjects
        sums, variance = effects[left] + effects[right], 2 * case.effect**2 + 1
    limit = NormalDist().inv_cdf(1 - case.rate) * math.sqrt(variance)
    return np.stack([left, right], axis=1), sums + rng.normal(0, 1, count) > limit


def coverage(case: Case, rounds: int, seed: int = 0) -> tuple[float, float]:
    """Returns the shares of rounds in which the interval that knows of subjects, and Wilson's, cover the true rate."""
    rng = np.random.default_rng(seed)
    covered = np.zeros(2)
    for _ in range(rounds):
        subjects, is_error = draw(case, rng)
        rate = Rate(int(is_error.sum()), len(is_error))
        counts = ClusteredCounts.count(subjects.astype(np.uint64), np.ones(subjects.shape, bool), is_error)
        for column, size in enumerate((counts.effective_sample_size(rate), INDEPENDENT)):
            low, high = size.interval(rate) or (0, 1)
            covered[column] += low <= case.rate <= high
    known, simple = covered / rounds
    return float(known), float(simple)


def ratio_coverage(case: Case, rounds: int, seed: int = 0) -> tuple[float, float]:
    """Returns the shares of rounds in which the intervals of worst to best, and of worst to all, cover 1.

    Rounds in which two groups cannot be told apart don't count. Two groups whose interval cannot be told cover it.
    """
    rng = np.random.default_rng(seed)
    found = [ratios for _ in range(rounds) if (ratios := _draw_ratios(case, rng))]
    intervals = [[ratios[name]["interval"] or (0, math.inf) for ratios in found] for name in ("worst_to_best", "worst_to_all")]
    to_best, to_all = (float(np.mean([low <= 1 <= high for low, high in each])) for each in intervals)
    return to_best, to_all


def _draw_ratios(case: Case, rng: np.random.Generator) -> dict[str, Any] | None:
    pairs, is_error = draw(case, rng)
    is_genuine, count = case.kind == "genuine", len(is_error)
    is_match = is_error ^ is_genuine
    table = pa.table({"group": np.where(rng.random(count) < 0.5, "a", "b"), "match": is_match})
    hashes = rng.integers(0, 2**64, case.subjects, np.uint64)
    subjects = Subjects(hashes[pairs], np.ones(pairs.shape, bool), is_match)
    labels = np.full(count, is_genuine, np.int8)
    groups = count_groups(table, is_match.astype(np.float32), labels, {"group": ("group", "group")}, subjects)
    section = (describe_groups(groups) or {})["group"]
    ratios: dict[str, Any] | None = section["fnmr_ratios" if is_genuine else "fmr_ratios"]
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="rounds for each case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: %(default)s)")
    options = parser.parse_args()
    _print_table(CASES, coverage, "covers, by subjects | covers, Wilson's", options)
    print()
    _print_table(RATIO_CASES, ratio_coverage, "ratio to the best | ratio to all", options)


def _print_table(
    cases: Sequence[Case], measure: Callable[[Case, int, int], tuple[float, float]], columns: str, options: argparse.Namespace
) -> None:
    print(f"| pairs | subjects | pairs a subject | effect | true rate | {columns} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        shares = (f"{share:.1%}" for share in measure(case, options.rounds, options.seed))
        fields = (case.kind, case.subjects, case.pairs, case.effect, case.rate, *shares)
        print(f"| {' | '.join(map(str, fields))} |", flush=True)


if __name__ == "__main__":
    main()
