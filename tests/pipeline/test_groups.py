"""Error rates by group, against pandas and scikit-learn on the scores."""

import datetime
import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn.metrics import roc_curve

import batchverify
from batchverify.cli.main import main
from batchverify.evaluation.clusters import Subjects
from batchverify.evaluation.groups import count_groups, describe_differential, describe_groups, group_label, merge_groups
from batchverify.evaluation.metrics import wilson_interval
from tests.support.manifests import draw_shades

pytestmark = pytest.mark.slow
COUNT, THRESHOLD = 60, 0.78


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of three regions, in one of which the labels are often wrong, and of one region with few rows."""
    rng = np.random.default_rng(21)
    folder = tmp_path_factory.mktemp("groups")
    shades = draw_shades(folder, rng, COUNT, noise=15)
    left, right = rng.integers(0, COUNT, (2, 3_000))
    genuine = np.abs(shades[left] - shades[right]).sum(axis=1) < 180
    region = rng.choice(["north", "south", "", "isle"], 3_000, p=[0.45, 0.4, 0.14, 0.01])
    genuine ^= (region == "south") & (rng.random(3_000) < 0.3)
    names = np.array([f"{number}.png" for number in range(COUNT)] + ["missing.png"])
    left = np.where(rng.random(3_000) < 0.02, COUNT, left)
    label = np.where(rng.random(3_000) < 0.05, "", genuine.astype(int).astype(str))
    frame = pd.DataFrame({"left": names[left], "right": names[right], "genuine": label, "region": region})
    frame["row"], frame["right_side"] = np.arange(3_000), right % 2
    frame["thousand"] = [str(number) if number else "" for number in np.arange(3_000) % 1_001]
    frame.to_csv(folder / "pairs.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def finished(folder, small_model, tmp_path_factory, read_scores):
    output = str(tmp_path_factory.mktemp("run") / "out")
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "pairs.csv"),),
        output=output,
        model=small_model,
        group_columns=("region",),
        threshold=THRESHOLD,
        block_rows=400,
    )
    return batchverify.run(config).summary["groups"]["region"], read_scores(output)


def test_counts_and_rates_are_those_of_pandas(finished):
    section, scores = finished
    scores["region"] = scores["region"].replace("", "(none)").fillna("(none)")
    assert [group_label(group) for group in section["each"]] == sorted(scores["region"].unique())
    for group in section["each"]:
        rows = scores[scores["region"] == group_label(group)]
        scored = rows[rows["score"].notna()]
        impostor, genuine = (scored[scored["genuine"].astype(str) == label]["match"].astype(bool) for label in "01")
        assert (group["rows"], group["failed"]) == (len(rows), rows["score"].isna().sum())
        assert (group["impostor"], group["genuine"]) == (len(impostor), len(genuine))
        assert group["fmr"] == pytest.approx(impostor.mean()) and group["fnmr"] == pytest.approx(1 - genuine.mean())
        assert group["fmr_interval"] == pytest.approx(wilson_interval(impostor.sum(), len(impostor)))


def test_the_eer_is_that_of_scikit_learn(finished):
    section, scores = finished
    for group in section["each"]:
        if group["value"] in ("north", "south"):
            rows = scores[
                (scores["region"] == group["value"]) & scores["score"].notna() & scores["genuine"].astype(str).isin(["0", "1"])
            ]
            fmr, tmr, _ = roc_curve(rows["genuine"].astype(int), rows["score"], drop_intermediate=False)
            best = np.argmin(np.abs(fmr - (1 - tmr)))
            assert group["eer"] == pytest.approx((fmr[best] + 1 - tmr[best]) / 2, abs=0.02)


def test_ratios_leave_out_groups_that_are_too_small(finished):
    section, _ = finished
    rates = {group["value"]: group for group in section["each"]}
    assert not rates["isle"]["fnmr_can_be_told"] and rates["south"]["fnmr_can_be_told"]
    ratios = section["fnmr_ratios"]
    assert ratios["worst"] == "south" and ratios["best"] != "isle"
    best = rates[ratios["best"]]
    lowest = max(best["fnmr"], 0.5 / best["genuine"])
    assert ratios["worst_to_best"]["ratio"] == pytest.approx(rates["south"]["fnmr"] / lowest)
    assert ratios["worst_to_all"]["ratio"] == pytest.approx(rates["south"]["fnmr"] / section["fnmr"])


def test_the_interval_of_a_ratio_is_that_of_the_bootstrap(finished):
    """Rows are independent here; 4,000 draws with replacement give the same interval of the ratio, nearly."""
    section, scores = finished
    scores = scores[scores["score"].notna() & (scores["genuine"].astype(str) == "0")]
    ratios, rng = section["fmr_ratios"], np.random.default_rng(1)
    sides = []
    for group in (ratios["worst"], ratios["best"]):
        matches = scores.loc[scores["region"].fillna("").replace("", "(none)") == group, "match"].astype(bool).to_numpy()
        sides.append(rng.choice(matches, (4_000, len(matches))).mean(axis=1))
    expected = np.quantile(np.log(np.maximum(sides[0], 1e-9) / np.maximum(sides[1], 1e-9)), (0.025, 0.975))
    assert np.log(ratios["worst_to_best"]["interval"]) == pytest.approx(expected, abs=0.1)


def test_blocks_do_not_change_a_figure(finished, folder, small_model, tmp_path):
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "pairs.csv"),),
        output=str(tmp_path / "out"),
        model=small_model,
        group_columns=("region",),
        threshold=THRESHOLD,
    )
    assert batchverify.run(config).summary["groups"]["region"] == finished[0]


def test_a_gate_on_the_ratio_gives_exit_code_3(folder, small_model, tmp_path, capsys):
    words = [
        "--manifest",
        str(folder / "pairs.csv"),
        "--model",
        small_model,
        "--output",
        str(tmp_path / "out"),
        "--threshold",
        str(THRESHOLD),
    ]
    assert main([*words, "--group-column", "region", "--max-group-ratio", "1.01"]) == 3
    caught = capsys.readouterr()
    assert "the ratio of the worst group to the best is" in caught.err and "where --max-group-ratio allows 1.01" in caught.err
    assert "Groups    region: " in caught.out and "for south" in caught.out
    assert "Error rates by region" in (tmp_path / "out" / "_report.html").read_text()
    assert main([*words, "--group-column", "region", "--max-group-ratio", "1e6", "--overwrite"]) == 0
    assert main([*words, "--group-column", "region", "--max-group-ratio", "9", "--limit", "9", "--overwrite"]) == 3
    assert "cannot be told" in capsys.readouterr().err
    unlabelled = [*words, "--label-column", "", "--group-column", "region", "--overwrite"]
    for check in ([], ["--check"]):
        assert main([*unlabelled, "--max-group-ratio", "9", *check]) == 2
        assert "--max-group-ratio compares error rates, and the manifest has no labels" in capsys.readouterr().err
    assert main(unlabelled) == 0
    assert "Groups    region: no labels, so no error rates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--group-column", "row"], "column 'row' has 3,000 values in 3,000 rows, and 1,000 groups are the most"),
        (["--group-columns", "region", "regoin"], "there is no column 'regoin', only"),
        (
            ["--group-column", "left"],
            "--group-column names 'left', the column of the left images, so that each image would be a group of its own",
        ),
        (["--group-columns", "region", "right"], "--group-columns names 'right', the column of the right images"),
        (
            ["--subject-columns", "left", "right"],
            "--subject-columns names 'left', the column of the left images, so that each image would be a subject",
        ),
        (
            ["--group-column", "genuine"],
            "--group-column names 'genuine', the column of the labels: a group of one label has one",
        ),
        (["--label-column", "region", "--group-column", "region"], "--group-column names 'region', the column of the labels"),
        (["--group-columns", "region", "region"], "--group-columns is 'region' 'region'; name two columns"),
        (["--group-column", "regoin"], "there is no column 'regoin', only"),
        (["--max-group-ratio", "2"], "--max-group-ratio needs groups, and none are named; add --group-column NAME."),
        (["--group-column", "region", "--max-group-ratio", "0.5"], "--max-group-ratio is 0.5; give a ratio of at least 1"),
    ],
    ids=[
        "too many values",
        "no such right column",
        "images as groups",
        "images as groups of images",
        "images as subjects",
        "labels as groups",
        "named labels as groups",
        "one column twice",
        "no such column",
        "no groups",
        "below 1",
    ],
)
def test_what_cannot_be_is_refused(words, message, folder, small_model, tmp_path, capsys):
    where = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*where, *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_thousand_values_are_groups_beside_those_of_our_own(folder, small_model, tmp_path, capsys):
    where = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*where, "--group-column", "thousand", "--check"]) == 0, capsys.readouterr().err
    table = pd.read_csv(folder / "pairs.csv", dtype=str, keep_default_na=False, usecols=["thousand"])
    table["next"] = np.where(np.arange(3_000) < 2_000, table["thousand"], table["thousand"].shift(-1, fill_value=""))
    rows = pa.Table.from_pandas(table.assign(match=False))
    scores, labels = np.full(3_000, 0.5, np.float32), np.zeros(3_000, np.int8)
    parts = [
        count_groups(rows.slice(start, 1_500), scores[:1_500], labels[:1_500], {"both": ("thousand", "next")})
        for start in (0, 1_500)
    ]
    section = (describe_groups(merge_groups(parts)) or {})["both"]
    assert [group["kind"] for group in section["each"]] == ["mixed", "none", *["value"] * 1_000]
    rows = rows.set_column(0, "thousand", pa.array(np.arange(3_000) % 1_002).cast(pa.string()))
    assert count_groups(rows, scores, labels, {"one": ("thousand", "thousand")}) == {"one": None}


@pytest.mark.parametrize("check", [[], ["--check"]], ids=["run", "check"])
@pytest.mark.parametrize("option", ["--group-column", "--group-columns", "--subject-columns"])
@pytest.mark.parametrize("values", [[[1], [2]], [{"a": 1}, {"a": 2}], [b"\xff", b"a"]], ids=["list", "struct", "binary"])
def test_columns_that_hold_no_names_are_refused(values, option, check, folder, small_model, tmp_path, capsys):
    table = pa.table({"left": ["1.png", "2.png"], "right": ["2.png", "3.png"], "x": values, "genuine": [0, 1], "y": ["a", "b"]})
    pq.write_table(table, folder / "odd.parquet")
    words = ["--manifest", str(folder / "odd.parquet"), "--model", small_model, "--output", str(tmp_path / "out")]
    columns = ["x"] if option == "--group-column" else ["y", "x"]
    assert main([*words, option, *columns, *check]) == 2
    assert f"column 'x' holds {table['x'].type}, not names; name another with {option}." in capsys.readouterr().err


def test_dates_numbers_and_dictionaries_are_names(folder, small_model, tmp_path):
    day = pa.array([datetime.date(2026, 11, day) for day in (1, 2, 1)])
    columns = {
        "day": day,
        "whole": [1, 2, 1],
        "flag": [True, None, False],
        "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
    }
    table = pa.table({"left": ["1.png", "2.png", "3.png"], "right": ["2.png", "3.png", "4.png"], **columns})
    pq.write_table(table, folder / "kinds.parquet")
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "kinds.parquet"),), output=str(tmp_path / "out"), model=small_model,
        group_columns=tuple(columns), subject_columns=("day", "kind"),
    )  # fmt: skip
    groups = batchverify.run(config).summary["groups"]
    found = {name: [(group["value"], group["rows"]) for group in section["each"]] for name, section in groups.items()}
    assert found["day"] == [("2026-11-01", 2), ("2026-11-02", 1)] and found["whole"] == [("1", 2), ("2", 1)]
    assert found["flag"] == [(None, 1), ("false", 1), ("true", 1)] and found["kind"] == [("a", 2), ("b", 1)]


def test_names_that_begin_alike_are_told_apart_and_a_text_is_no_name(folder, small_model, tmp_path, capsys):
    long = ["n" * 500 + end for end in "aab"]
    frame = pd.DataFrame({"left": ["1.png", "2.png", "3.png"], "right": ["2.png", "3.png", "4.png"], "g": long})
    frame.to_csv(folder / "long.csv", index=False)
    words = ["--manifest", str(folder / "long.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--group-column", "g"]) == 0
    each = json.loads((tmp_path / "out" / "_summary.json").read_text())["groups"]["g"]["each"]
    assert [(group["value"], group["rows"]) for group in each] == [(long[0], 2), (long[2], 1)]
    frame.assign(g="n" * 1_001).to_csv(folder / "long.csv", index=False)
    assert main([*words, "--group-column", "g", "--overwrite"]) == 2
    assert "column 'g' has a value of 1,001 characters, and groups have names of 1,000 at most" in capsys.readouterr().err


def test_the_eer_of_saturated_scores_is_that_of_scikit_learn():
    rng = np.random.default_rng(5)
    logits = np.concatenate([rng.normal(9, 1, 4_000), rng.normal(13, 1, 4_000)]).astype(np.float32)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    labels = np.repeat([0, 1], 4_000).astype(np.int8)
    table = pa.table({"g": ["x"] * 8_000, "match": scores >= 0.5})
    section = describe_groups(count_groups(table, scores, labels, {"g": ("g", "g")}))
    fmr, tmr, _ = roc_curve(labels, scores, drop_intermediate=False)
    best = np.argmin(np.abs(fmr - (1 - tmr)))
    assert section
    assert section["g"]["each"][0]["eer"] == pytest.approx((fmr[best] + 1 - tmr[best]) / 2, abs=0.005)


@pytest.fixture(scope="module")
def of_images(tmp_path_factory, small_model, read_scores):
    """A run whose images have a region each, and a subject; its summary, and its scores with the regions in them."""
    rng = np.random.default_rng(31)
    folder = tmp_path_factory.mktemp("of_images")
    draw_shades(folder, rng, 50, noise=30)
    region, subject = rng.choice(["east", "west", ""], 50, p=[0.5, 0.4, 0.1]), np.arange(50) // 2
    left, right = rng.integers(0, 50, (2, 2_000))
    sides = {"left": left, "right": right}
    columns: dict[str, object] = {side: [f"{number}.png" for number in numbers] for side, numbers in sides.items()}
    columns |= {f"{side}_region": region[numbers] for side, numbers in sides.items()}
    columns |= {f"{side}_subject": subject[numbers] for side, numbers in sides.items()}
    frame = pd.DataFrame(columns | {"genuine": (subject[left] == subject[right]).astype(int)})
    frame.to_csv(folder / "pairs.csv", index=False)
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "pairs.csv"),), output=str(folder / "out"), model=small_model, threshold=0.6, block_rows=300,
        group_column_pairs=(("left_region", "right_region"),), subject_columns=("left_subject", "right_subject"),
    )  # fmt: skip
    return batchverify.run(config).summary, read_scores(str(folder / "out")), region, subject


def test_a_pair_belongs_to_the_group_of_both_images(of_images):
    summary, scores, *_ = of_images
    left, right = (scores[f"{side}_region"].fillna("").replace("", "(none)") for side in ("left", "right"))
    expected = left.where(left == right, "(mixed)").where((left != "(none)") & (right != "(none)"), "(none)")
    section = summary["groups"]["left_region / right_region"]
    for ratios in (section["fmr_ratios"], section["fnmr_ratios"]):
        assert ratios is None or {ratios["worst"], ratios["best"]} == {"east", "west"}
    assert section["fmr_ratios"]
    assert {group_label(group): group["rows"] for group in section["each"]} == expected.value_counts().to_dict()


def test_strangers_of_a_group_are_its_images_with_each_other(of_images):
    """All pairs of 50 images are drawn; here they are counted one by one, without those of one subject."""
    summary, scores, region, subject = of_images
    numbers = [scores[side].str.extract(r"(\d+)\.png")[0].astype(int) for side in ("left", "right")]
    matches = dict(zip(zip(*numbers, strict=True), scores["match"], strict=True))
    section = summary["groups"]["left_region / right_region"]
    found = {group_label(group): group["strangers"] for group in section["each"]}
    assert found["(mixed)"] is None
    for value, name in (("east", "east"), ("west", "west"), ("", "(none)")):
        members = np.flatnonzero(region == value)
        pairs = [(one, other) for one in members for other in members if one < other and subject[one] != subject[other]]
        assert found[name]["pairs"] == len(pairs)
        known = [matches[pair] if pair in matches else matches.get(pair[::-1]) for pair in pairs]
        sure, unknown = sum(match is True or match == 1 for match in known), sum(match is None for match in known)
        assert sure <= round(found[name]["match_rate"] * len(pairs)) <= sure + unknown
        low, high = found[name]["match_rate_interval"]
        assert low <= found[name]["match_rate"] <= high


def test_intervals_of_a_run_know_of_subjects(of_images):
    """The variance over all two pairs that share a subject, from the written rows."""
    summary, scores, *_ = of_images
    rates = summary["error_rates"]
    page = Path(summary["run"]["options"]["output"], "_report.html").read_text()
    assert "They know which pairs share a subject" in page and "assume independent pairs" not in page
    rows = scores[scores["genuine"].astype(str) == "0"]
    error = rows["match"].astype(bool).to_numpy()
    residual = error - error.mean()
    subjects = rows[["left_subject", "right_subject"]].astype(int).to_numpy()
    shares = np.any(subjects[:, None, :, None] == subjects[None, :, None, :], axis=(2, 3))
    count = len(np.unique(subjects))
    variance = residual @ shares @ residual * count / (count - 1) / len(error) ** 2
    worth = error.mean() * (1 - error.mean()) / variance
    squares = np.array([residual[(subjects == subject).any(axis=1)].sum() for subject in np.unique(subjects)]) ** 2
    freedom = squares.sum() ** 2 / np.sum(squares**2) - 1
    expected = wilson_interval(error.mean() * worth, worth, stats.t.ppf(0.975, freedom))
    assert rates["intervals_by"] == "subjects" and rates["fmr"] == pytest.approx(error.mean())
    assert rates["fmr_interval"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("columns", [{"group_columns": ("nowhere",)}, {"subject_columns": ("nowhere", "elsewhere")}])
def test_a_block_without_a_column_is_refused_in_a_sentence(columns, small_model):
    pairs = pa.table({"left": ["1.png"], "right": ["2.png"]})
    pipeline = beam.Pipeline(runner="FnApiRunner")
    blocks = pipeline | beam.Create([("block", pairs)])
    blocks | batchverify.VerifyPairs(batchverify.ScoringConfig(model=small_model, **columns), expected_images=2)
    with pytest.raises(Exception, match=r"a block has no column 'nowhere', only 'left', 'right'; name the right one\."):
        pipeline.run()


def test_two_columns_have_a_section_each_and_no_column_none(folder, small_model, tmp_path):
    words = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--group-column", "region", "--group-column", "right_side"]) == 0
    assert list(json.loads((tmp_path / "out" / "_summary.json").read_text())["groups"]) == ["region", "right_side"]
    assert main([*words, "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "_summary.json").read_text())["groups"] is None


def grouped(groups, scores, labels, other=None) -> dict[str, Any]:
    """Returns the section of one column of groups, of the given scores and labels."""
    table = pa.table({"g": groups, "h": groups if other is None else other, "match": np.asarray(scores) >= 0.5})
    columns = {"g": ("g", "g" if other is None else "h")}
    return (describe_groups(count_groups(table, np.asarray(scores, np.float32), np.asarray(labels, np.int8), columns)) or {})[
        "g"
    ]


def test_values_that_are_called_as_our_own_groups_are_values():
    left, right = ["(mixed)", "(none)", "a", "", "'(none)'", None], ["(mixed)", "(none)", "b", "a", "'(none)'", "a"]
    each = grouped(left, [0.1] * 6, [0] * 6, right)["each"]
    assert [(group["kind"], group["value"], group["rows"]) for group in each] == [
        ("mixed", None, 1), ("none", None, 2), ("value", "'(none)'", 1), ("value", "(mixed)", 1), ("value", "(none)", 1),
    ]  # fmt: skip
    assert [group_label(group) for group in each] == ["(mixed)", "(none)", "''(none)''", "'(mixed)'", "'(none)'"]


def test_a_value_that_is_called_as_our_own_group_can_be_the_worst():
    """100 impostor pairs each: 40 of the value (none) match, 20 of b, and 90 of the rows without a value."""
    scores = np.concatenate([np.arange(100) < matches for matches in (40, 20, 90)]).astype(float)
    section = grouped(["(none)"] * 100 + ["b"] * 100 + [""] * 100, scores, [0] * 300)
    assert (section["fmr_ratios"]["worst"], section["fmr_ratios"]["best"]) == ("(none)", "b")
    assert section["fmr_ratios"]["worst_to_best"]["ratio"] == pytest.approx(2)
    assert "FMR 40.00% for '(none)' and 20.00% for b (2.0 times" in describe_differential("g", section)


def test_an_interval_that_tells_nothing_is_said_so():
    """One subject has all errors of a, so its rate has one degree of freedom, whose t is 12.7."""
    errors = np.zeros(200, bool)
    errors[:30] = errors[100:140] = True
    names = ["s"] * 30 + ["t"] * 70 + [f"u{number}" for number in range(100)]
    table = pa.table({"g": ["a"] * 100 + ["b"] * 100, "match": errors, "l": names, "r": [""] * 200})
    subjects = Subjects.read(table, ("l", "r"))
    labels = np.zeros(200, np.int8)
    groups = count_groups(table, errors.astype(np.float32), labels, {"g": ("g", "g")}, subjects)
    section = (describe_groups(groups) or {})["g"]
    to_best = section["fmr_ratios"]["worst_to_best"]
    assert to_best["ratio"] == pytest.approx(40 / 30) and to_best["interval"] is None
    assert "(1.3 times, too few pairs to tell an interval; " in describe_differential("g", section)
    told = grouped(["a"] * 100 + ["b"] * 100, errors, labels)
    low, high = told["fmr_ratios"]["worst_to_best"]["interval"]
    reach = 1.96 * np.sqrt(0.7 / 30 + 0.6 / 40)  # The delta method: (1 - p) / errors of both rates.
    assert (low, high) == pytest.approx((4 / 3 * np.exp(-reach), 4 / 3 * np.exp(reach)), rel=1e-3)


def test_the_interval_of_a_ratio_has_a_width_where_all_pairs_are_errors():
    ratios = grouped(["a"] * 20 + ["b"] * 20, [0.9] * 40, [0] * 40)["fmr_ratios"]
    for name in ("worst_to_best", "worst_to_all"):
        low, high = ratios[name]["interval"]
        assert ratios[name]["ratio"] == 1 and low < 0.98 and high > 1.02


def test_the_interval_of_a_ratio_has_a_width_where_both_groups_have_the_same_pairs():
    """The two rates of 10 subjects seem to err together entirely, which so few subjects cannot show."""
    left, right = np.divmod(np.arange(200) % 90, 9)
    right += right >= left
    names = [[f"s{number}" for number in side] for side in (left, right)]
    table = pa.table({"g": ["a", "b"] * 100, "match": left < 2, "l": names[0], "r": names[1]})
    groups = count_groups(
        table, np.zeros(200, np.float32), np.zeros(200, np.int8), {"g": ("g", "g")}, Subjects.read(table, ("l", "r"))
    )
    ratios = (describe_groups(groups) or {})["g"]["fmr_ratios"]
    for name in ("worst_to_best", "worst_to_all"):
        low, high = ratios[name]["interval"]
        assert low < 0.8 < 1.2 < high


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """One manifest in both formats, with columns of booleans, floats, whole numbers with a gap, and times."""
    folder = tmp_path_factory.mktemp("typed")
    draw_shades(folder, np.random.default_rng(3), 6, noise=5)
    images = [f"{number}.png" for number in range(6)]
    frame = pd.DataFrame(
        {"left": images, "right": images[1:] + images[:1], "genuine": [True, False, False, True, False, False]}
    )
    frame["flag"] = [True, False, True, True, False, False]
    frame["size"] = [1.0, 2.5, 1e-5, 1e16, 1.0, np.nan]
    frame["site"] = pd.array([7, None, 7, 8, 8, 8]).astype("float64")
    frame["day"] = pd.to_datetime(["2026-11-01"] * 3 + ["2026-11-02"] * 3)
    frame["fold"] = [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]
    frame.to_csv(folder / "pairs.csv", index=False)
    frame.to_parquet(folder / "pairs.parquet")
    return folder


def test_a_manifest_has_the_same_groups_in_both_formats(typed, small_model, tmp_path):
    found = []
    for name in ("pairs.csv", "pairs.parquet"):
        config = batchverify.VerificationConfig(
            manifests=(str(typed / name),), output=str(tmp_path / name), model=small_model, threshold=0.5,
            group_columns=("flag", "size", "site", "day"), subject_columns=("size", "site"), steadiness_images=0,
        )  # fmt: skip
        summary = batchverify.run(config).summary
        found.append([summary[section] for section in ("groups", "strangers", "error_rates")])
    assert found[0] == found[1]
    groups = {name: {group["value"]: group["rows"] for group in section["each"]} for name, section in found[0][0].items()}
    assert groups["flag"] == {"true": 3, "false": 3} and groups["site"] == {None: 1, "7": 2, "8": 3}
    assert groups["size"] == {None: 1, "1": 2, "2.5": 1, "0.00001": 1, "10000000000000000": 1}
    assert groups["day"] == {"2026-11-01": 3, "2026-11-02": 3}
    assert [fold["fold"] for fold in found[0][2]["folds"]["each"]] == ["1", "2"]
