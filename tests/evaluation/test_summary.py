"""The summary against pandas on the same rows, in whatever order its parts are merged."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

import batchverify
from batchverify.cli.main import main
from batchverify.evaluation import metrics
from batchverify.evaluation.extremes import MAX_TEXT_LENGTH, PAIRS_PER_KIND, is_cut
from batchverify.evaluation.summary import Summary, summarise_rows

FAULTY = str(Path(batchverify.__file__).parent / "demo" / "faulty.keras")
SANE = FAULTY.replace("faulty", "sane")
CONFIG = batchverify.ScoringConfig()


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory, read_scores) -> tuple[dict, pd.DataFrame]:
    """The faulty model, calibrated, on the demo manifest, with five folds: its summary, and its scores."""
    folder = tmp_path_factory.mktemp("folds")
    manifest = pd.read_csv(demo / "demo.csv", dtype=str, keep_default_na=False)
    numbers = np.arange(len(manifest))
    manifest.assign(fold=numbers % 5, half=numbers // 2 % 2).to_csv(folder / "pairs.csv", index=False)
    for ending in ("", ".batchverify.json"):
        shutil.copy(FAULTY + ending, folder / f"faulty.keras{ending}")
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "pairs.csv"),),
        output=str(folder / "out"),
        model=str(folder / "faulty.keras"),
        image_root=str(demo),
        block_rows=20,
        group_columns=("half",),
        review=(0.4, 0.6),
    )
    before = batchverify.run(dataclasses.replace(config, candidate=SANE)).summary
    assert main(["calibrate", config.output]) == 0
    tonight = dataclasses.replace(
        config, output=str(folder / "tonight"), baseline=config.output, embeddings=str(folder / "store")
    )
    # A run has a store of embeddings or a candidate.
    summary = batchverify.run(tonight).summary | {"candidate": before["candidate"]}
    flipped = {kind: before["extremes"][kind] for kind in ("matches_gained", "matches_lost")}
    return summary | {"extremes": summary["extremes"] | flipped}, read_scores(folder / "tonight")


def keys(pairs: list[dict]) -> list[int]:
    return [pair["manifest_row"] for pair in pairs]


@pytest.mark.slow
def test_the_extremes_are_those_that_pandas_finds(run):
    found, scores = run[0]["extremes"], run[1]
    impostors, genuines = scores[scores["genuine"] == "0"], scores[scores["genuine"] == "1"]
    for kind, rows, ascending in (("highest_impostors", impostors, False), ("lowest_genuines", genuines, True)):
        twin = rows.dropna(subset="score").sort_values(["score", "manifest_row"], ascending=[ascending, True]).head(12)
        assert keys(found[kind]) == twin["manifest_row"].tolist()
        for column in ("left", "right", "score", "identity_left", "manifest_file"):
            assert [pair[column] for pair in found[kind]] == twin[column].tolist()
    faults = scores[scores["identity_check"].isin(["outscored", "below_threshold"])]
    lack = np.maximum(faults["score"], 0.5) - faults[["identity_left", "identity_right"]].min(axis=1)
    twin = faults.assign(lack=lack).sort_values(["lack", "manifest_row"], ascending=[False, True]).head(12)
    assert keys(found["identity_faults"]) == twin["manifest_row"].tolist()
    assert {kind: keys(pairs) for kind, pairs in found.items() if kind.startswith("failed_")} == {
        "failed_missing": [122], "failed_unreadable": [123], "failed_no_uri": [124],
    }  # fmt: skip
    assert found["failed_missing"][0]["error"] == scores["error"][122] and found["failed_missing"][0]["label"] is True


@pytest.mark.slow
def test_the_histograms_are_those_that_pandas_counts(run):
    histograms, scores = run[0]["score_histograms"], run[1].dropna(subset="score")
    for label, kind in (("0", "impostor"), ("1", "genuine")):
        rows = scores[scores["genuine"] == label]
        assert np.array_equal(metrics.dense(histograms[kind]), metrics.histogram(rows["score"]))
        for fold, each in histograms["folds"].items():
            assert np.array_equal(metrics.dense(each[kind]), metrics.histogram(rows[rows["fold"] == fold]["score"]))
    assert set(histograms["folds"]) == set("01234") and run[0]["run"]["fold_column"] == "fold"
    faulty = scores[scores["identity_check"] != "sane"]
    assert np.array_equal(metrics.dense(histograms["identity_faults"]), metrics.histogram(faulty["score"]))
    sides = [scores[[side, f"identity_{side}"]].set_axis(["uri", "score"], axis=1) for side in ("left", "right")]
    images = pd.concat(sides).drop_duplicates("uri")
    # All but the image whose only row failed for its other side are in a scored row.
    assert metrics.dense(histograms["identity"]).sum() == run[0]["images"]["ok"] == len(images)


@pytest.mark.slow
def test_failures_are_counted_apart(run):
    rates, scores = run[0]["error_rates"], run[1]
    failed = scores[scores["score"].isna()]
    assert rates["genuine_failed"] == (failed["genuine"] == "1").sum() == 2
    assert rates["impostor_failed"] == (failed["genuine"] == "0").sum() == 0
    genuine = scores[scores["genuine"] == "1"]
    assert rates["generalised_fnmr"] == pytest.approx(1 - (genuine["score"] >= 0.5).mean())
    assert run[0]["failure_to_acquire"]["rate"] == 2 / 87


@pytest.mark.slow
def test_every_key_is_documented_and_of_its_type(run):
    """The table in docs/summary.md is the schema."""
    table = (Path(batchverify.__file__).parents[1] / "docs" / "summary.md").read_text(encoding="utf-8").replace("`", "")
    types: dict[str, Any] = {
        "int": int,
        "float": (int, float),
        "str": str,
        "list": list,
        "dict": dict,
        "bool": bool,
        "any": object,
    }
    documented = []
    for names, kind in re.findall(r"^\| (\S.*?) \| (\w+\??) \|", table, re.M)[1:]:  # but for the head
        for name in names.split(", "):
            pattern = re.escape(name).replace(r"\*", r"[^.\[]+")
            documented.append((re.compile(pattern), types[kind.rstrip("?")], kind.endswith("?")))
    used = set()

    def walk(value, path):
        matching = [number for number, (pattern, _, _) in enumerate(documented) if pattern.fullmatch(path)]
        if path and not isinstance(value, dict):
            assert matching, f"{path} is not documented"
        for number in matching:
            _, kind, nullable = documented[number]
            assert (value is None and nullable) or isinstance(value, kind), (path, value)
        used.update(matching)
        if isinstance(value, dict):
            for name, below in value.items():
                walk(below, f"{path}.{name}".lstrip("."))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for below in value:
                for name, inner in below.items():
                    walk(inner, f"{path}[].{name}")

    walk(json.loads(json.dumps(run[0])) | {"gates": [{"option": "o", "limit": "1", "found": 0, "rows": 1, "met": True}]}, "")
    assert not [documented[number][0].pattern for number in set(range(len(documented))) - used]


def scored_rows(rng: np.random.Generator, rows: int, first: int) -> pa.Table:
    """Rows as a run writes them, with many equal scores, a few failures, and labels and folds here and there."""
    score = np.round(rng.uniform(0, 1, rows), 1).astype(np.float32)
    failed = rng.uniform(size=rows) < 0.05
    low = score > 0.8
    status = np.where(failed, rng.choice(["missing", "empty"], rows), "ok")
    return pa.table(
        {
            "left": [f"a{number}" for number in rng.integers(99, size=rows)],
            "right": [f"b{number}" for number in rng.integers(99, size=rows)],
            "genuine": pa.array(rng.choice(["0", "1", ""], rows)),
            "fold": pa.array(rng.choice(["x", "y", ""], rows)),
            "manifest_file": pa.array(rng.choice(["one.csv", "two.csv"], rows)),
            "manifest_row": np.arange(first, first + rows),
            "score": pa.array(score, mask=failed),
            "match": pa.array(score >= 0.5, mask=failed),
            "identity_left": np.full(rows, 0.8, np.float32),
            "identity_right": np.full(rows, 0.9, np.float32),
            "identity_check": pa.array(np.where(failed, "not_checked", np.where(low, "outscored", "sane"))).dictionary_encode(),
            "same_image": np.zeros(rows, bool),
            "left_status": pa.array(status).dictionary_encode(),
            "right_status": pa.array(np.full(rows, "ok")).dictionary_encode(),
            "error": pa.array(["left image: gone" if lost else None for lost in failed], pa.string()),
        }
    )


def test_the_order_of_merging_makes_no_difference():
    rng = np.random.default_rng(4)
    tables = [scored_rows(rng, 200, first) for first in range(0, 1000, 200)]
    parts = [summarise_rows(table, CONFIG, "genuine", "fold") for table in tables]
    whole = summarise_rows(pa.concat_tables(tables), CONFIG, "genuine", "fold").to_json(0.5)
    assert len(whole["extremes"]["highest_impostors"]) == PAIRS_PER_KIND
    for order in itertools.islice(itertools.permutations(parts), 0, 120, 17):
        halves = Summary.merge(order[:2]), Summary.merge(order[2:]), Summary()
        assert Summary.merge(halves).to_json(0.5) == whole


def test_long_names_are_cut_and_say_so():
    table = scored_rows(np.random.default_rng(4), 3, 0)
    names = pa.array(["x" * 5000, "y" * MAX_TEXT_LENGTH, "z"])
    table = table.set_column(0, "left", names)
    pairs = summarise_rows(table, CONFIG, None, None).to_json(0.5)["extremes"]["highest_unlabelled"]
    found = {pair["left"][0]: pair["left"] for pair in pairs}
    assert is_cut(found["x"]) and found["x"].startswith("x" * MAX_TEXT_LENGTH) and len(found["x"]) < MAX_TEXT_LENGTH + 20
    assert not is_cut(found["y"]) and found["z"] == "z"


def test_a_column_of_too_many_values_is_no_fold():
    table = scored_rows(np.random.default_rng(4), 100, 0)
    table = table.set_column(3, "fold", pa.array([str(number) for number in range(100)]))
    parts = [summarise_rows(table.slice(start, 20), CONFIG, "genuine", "fold") for start in range(0, 100, 20)]
    merged = Summary.merge([Summary.merge(parts[:3]), Summary.merge(parts[3:])])
    found = merged.to_json(0.5)
    assert found["score_histograms"]["folds"] is None and found["error_rates"]["folds"] is None


@pytest.mark.parametrize(
    ("fold", "told"),
    [({"fold_column": "other"}, "no column 'other'"), ({"fold_column": "left"}, "given for two things"), ({}, "not folds")],
)
def test_a_fold_column_that_cannot_be_is_refused(fold, told, small_model, tmp_path):
    pq_path = tmp_path / "pairs.parquet"
    pd.DataFrame({"left": ["a"], "right": ["b"], "fold": [[1, 2]]}).to_parquet(pq_path)
    with pytest.raises(batchverify.PreflightError, match=told):
        batchverify.run(
            batchverify.VerificationConfig(manifests=(str(pq_path),), output=str(tmp_path / "o"), model=small_model, **fold)
        )


def test_the_intervals_of_a_candidate_are_those_of_its_own_errors():
    """The first model errs on few pairs of any subject; the candidate errs on all impostor pairs of eight subjects."""
    rng = np.random.default_rng(9)
    table, subjects = scored_rows(rng, 2_000, 0), rng.integers(0, 40, (2, 2_000))
    match = (subjects < 8).any(axis=0)
    columns = {
        "first": [f"s{number}" for number in subjects[0]],
        "second": [f"s{number}" for number in subjects[1]],
        "score_candidate": np.where(match, np.float32(0.9), np.float32(0.1)),
        "match_candidate": match,
        "identity_check_candidate": ["sane"] * 2_000,
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    config = batchverify.ScoringConfig(candidate="second.keras", candidate_threshold=0.5, subject_columns=("first", "second"))
    parts = [summarise_rows(table.slice(start, 500), config, "genuine", None) for start in range(0, 2_000, 500)]
    found = Summary.merge(parts).to_json(0.5, candidate_threshold=0.5)["candidate"]["error_rates"]

    for rate, label, errs in (("fmr", "0", match), ("fnmr", "1", ~match)):
        chosen = np.flatnonzero(table["genuine"].to_pandas() == label)
        error, pairs = errs.take(chosen), subjects.take(chosen, axis=1)
        residual = error - error.mean()
        shares = (pairs[:, None, :, None] == pairs[None, :, None, :]).any(axis=(0, 1))
        variance = residual @ shares @ residual * 40 / 39 / len(error) ** 2
        worth = error.mean() * (1 - error.mean()) / variance
        squares = np.array([residual[(pairs == subject).any(axis=0)].sum() for subject in range(40)]) ** 2
        freedom = squares.sum() ** 2 / np.sum(squares**2) - 1
        expected = metrics.wilson_interval(error.mean() * worth, worth, stats.t.ppf(0.975, freedom))
        assert found[rate] == pytest.approx(error.mean()) and found[f"{rate}_interval"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("unknown", [3, 30])
def test_faults_without_an_identity_score_come_first(unknown):
    table = scored_rows(np.random.default_rng(4), 200, 0)
    faults = np.flatnonzero(table["identity_check"].to_pandas() == "outscored")
    assert len(faults) >= 30
    identity = table["identity_left"].to_numpy().copy()
    identity[faults[-unknown:]] = np.nan
    table = table.set_column(table.column_names.index("identity_left"), "identity_left", pa.array(identity, from_pandas=True))
    found = summarise_rows(table, CONFIG, None, None).to_json(0.5)["extremes"]["identity_faults"]
    assert len(found) == PAIRS_PER_KIND
    assert [pair["identity_left"] is None for pair in found] == [place < unknown for place in range(PAIRS_PER_KIND)]
