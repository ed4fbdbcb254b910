"""Night after night: the run that is compared with an earlier one, checked beforehand, or limited to its first rows."""

import json
import os
import shutil

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

import batchverify
from batchverify.cli.main import main
from batchverify.cli.messages import baseline_message
from batchverify.evaluation.baseline import read_baseline
from batchverify.evaluation.summary_version import SUMMARY_VERSION
from batchverify.manifest import csv, plan
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.read import read_blocks
from batchverify.pipeline.distinct_count import DistinctCounter
from batchverify.pipeline.manifest_scan import scan_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten pictures, `pairs.csv` of 60 pairs of them and one missing, and the same in two files, `1.csv` and `2.parquet`."""
    folder = tmp_path_factory.mktemp("nights")
    rng = np.random.default_rng(4)
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"p{number}.png")
    names = [*(f"p{number}.png" for number in range(10)), "none.png"]
    pairs = pd.DataFrame({side: [names[i] for i in rng.integers(11, size=60)] for side in ("left", "right")})
    pairs.to_csv(folder / "pairs.csv", index=False)
    pairs[:25].to_csv(folder / "1.csv", index=False)
    pq.write_table(pa.Table.from_pandas(pairs[25:], preserve_index=False), folder / "2.parquet", row_group_size=10)
    return folder


@pytest.fixture(scope="module")
def night(folder, small_model):
    """The directory of a finished run of all pairs."""
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "pairs.csv"),), output=str(folder / "first"), model=small_model
    )
    batchverify.run(config)
    return folder / "first"


def arguments(folder, model, output, *more) -> list[str]:
    return ["--manifest", str(folder / "pairs.csv"), "--output", str(output), "--model", model, *map(str, more)]


def summary_of(output) -> dict:
    return json.loads((output / "_summary.json").read_text())


# --baseline


@pytest.mark.slow
def test_a_night_is_compared_with_the_one_before(folder, night, small_model, tmp_path, read_scores, capsys):
    fewer = pd.read_csv(folder / "pairs.csv")[lambda pairs: pairs["left"] > "p4"]
    fewer.to_csv(folder / "fewer.csv", index=False)
    drifted = arguments(folder, small_model, tmp_path / "out", "--baseline", night, "--max-drift", 0.01, "--threshold", 0.4)
    drifted[1] = str(folder / "fewer.csv")
    assert main(drifted) == 3
    told = capsys.readouterr()
    assert "gate not met: the drift of" in told.err and "--max-drift allows 0.01" in told.err
    assert f"against {night}: the scores have" in told.out and "threshold 0.5 before, 0.4 now" in told.out
    found, before, now = summary_of(tmp_path / "out")["baseline"], read_scores(night), read_scores(tmp_path / "out")
    assert found["path"] == str(night) and found["run_id"] == summary_of(night)["run"]["run_id"]
    assert found["match_rate"] == [frame["match"].dropna().mean() for frame in (before, now)]
    assert found["score_mean"] == pytest.approx([before["score"].mean(), now["score"].mean()], abs=1e-4)
    assert found["ks"] == pytest.approx(stats.ks_2samp(before["score"].dropna(), now["score"].dropna()).statistic, abs=0.02)
    assert found["model_changed"] is False and found["failures"] == {"missing": [1, 1]}
    assert summary_of(tmp_path / "out")["gates"][-1]["found"] == found["psi"] > 0.01


@pytest.mark.slow
def test_the_same_night_again_has_not_drifted(folder, night, small_model, tmp_path):
    again = arguments(folder, small_model, tmp_path / "out", "--baseline", night / "_summary.json", "--max-drift", 0)
    assert main(again) == 0
    found = summary_of(tmp_path / "out")["baseline"]
    assert found["psi"] == found["ks"] == 0
    assert main([*again[:6], "--overwrite", "--baseline", str(tmp_path / "out")]) == 0  # compared with what it replaces


def test_a_night_without_a_score_does_not_pass_for_a_quiet_one(folder, night, small_model, tmp_path, capsys):
    (folder / "gone.csv").write_text("left,right\nnone.png,none.png\n")
    lost = arguments(folder, small_model, tmp_path / "out", "--baseline", night, "--max-drift", 100)
    lost[1] = str(folder / "gone.csv")
    assert main(lost) == 3
    assert "has no index, as a run has no scores" in capsys.readouterr().err
    assert summary_of(tmp_path / "out")["baseline"]["psi"] is None


def damaged(night, tmp_path, change) -> str:
    copy = tmp_path / "night"
    shutil.copytree(night, copy)
    change(copy)
    return str(copy)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: shutil.rmtree(run), "does not exist; name an earlier run"),
        (lambda run: (run / "_SUCCESS").unlink(), "holds no finished run; name an earlier run"),
        (lambda run: (run / "_summary.json").unlink(), "cannot be read"),
        (lambda run: os.truncate(run / "_summary.json", 300), "it may be truncated"),
        (lambda run: (run / "_summary.json").write_text('{"summary_version": 99}'), "has version 99"),
        (lambda run: (run / "_summary.json").write_text('{"summary_version": 2}'), "has version 2"),
        (lambda run: (run / "_summary.json").write_text(f'{{"summary_version": {SUMMARY_VERSION}}}'), "it lacks 'run'"),
        (lambda run: (run / "_summary.json").write_text("[" * 100_000), "nested too deeply"),
        (lambda run: (run / "_summary.json").write_text("[]"), "does not hold a JSON object"),
    ],
)
def test_a_baseline_that_cannot_be_compared_with_is_refused_before_anything(change, told, folder, night, tmp_path, capsys):
    before = damaged(night, tmp_path, change)
    assert main(arguments(folder, "none.keras", tmp_path / "out", "--baseline", before)) == 2
    said = capsys.readouterr().err
    assert told in said and len(said.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_first_night_goes_on_without_the_one_before(folder, small_model, tmp_path, caplog):
    first = arguments(folder, small_model, tmp_path / "out", "--baseline", tmp_path / "before", "--baseline-optional")
    assert main([*first, "--max-drift", "0.1"]) == 0
    assert "does not exist: this run is not compared with any other, and --max-drift is not checked" in caplog.text
    assert summary_of(tmp_path / "out")["baseline"] is None and summary_of(tmp_path / "out")["gates"] == []


def test_an_optional_baseline_that_is_damaged_is_refused_all_the_same(night, tmp_path):
    before = damaged(night, tmp_path, lambda run: os.truncate(run / "_summary.json", 300))
    config = batchverify.VerificationConfig(manifests=("m",), output="o", baseline=before, baseline_optional=True)
    with pytest.raises(batchverify.PreflightError, match="truncated"):
        read_baseline(config)


@pytest.mark.parametrize("settings", [{"max_drift": 0.1}, {"baseline_optional": True}, {"baseline": "b", "max_drift": -1.0}])
def test_options_of_a_baseline_need_one_and_make_sense(settings):
    with pytest.raises(batchverify.PreflightError, match=r"--baseline|--max-drift"):
        batchverify.VerificationConfig(manifests=("m",), output="o", **settings)


# --limit


@pytest.mark.parametrize(("names", "limit", "rows"), [
    (["pairs.csv"], 7, 7), (["pairs.csv"], 60, 60), (["pairs.csv"], 1000, 60), (["1.csv", "2.parquet"], 25, 25),
    (["1.csv", "2.parquet"], 26, 26), (["1.csv", "2.parquet"], 41, 41), (["2.parquet", "1.csv"], 34, 34),
    (["2.parquet", "1.csv"], 36, 36), (["2.parquet", "1.csv"], 20, 20),
])  # fmt: skip
@pytest.mark.parametrize("block_rows", [4, 1000])
def test_a_limit_takes_the_first_rows_in_the_order_of_the_files(names, limit, rows, block_rows, folder):
    files = tuple(str(folder / name) for name in names)
    whole, limited = (
        batchverify.VerificationConfig(manifests=files, output="o", limit=most, block_rows=block_rows) for most in (None, limit)
    )
    read = [
        pa.concat_tables([block for shard in plan.shards for block in read_blocks(shard, plan.schema, whole)])
        for plan in (plan_manifest(whole), plan_manifest(limited))
    ]
    assert read[1].num_rows == rows == plan_manifest(limited).expected_rows
    assert read[1].equals(read[0].slice(0, rows))


def test_a_limit_reads_no_file_and_no_row_group_beyond_it(folder, tmp_path):
    shutil.copy(folder / "2.parquet", tmp_path / "2.parquet")
    with open(tmp_path / "2.parquet", "r+b") as file:  # the last row groups lose their data, and the footer is left
        start = pq.read_metadata(tmp_path / "2.parquet").row_group(2).column(0).dictionary_page_offset
        file.seek(start)
        file.write(bytes(64))
    config = batchverify.VerificationConfig(manifests=(str(tmp_path / "2.parquet"),), output="o", limit=15)
    assert [shard.row_groups for shard in plan_manifest(config).shards] == [(0, 1)]
    with pytest.raises(batchverify.PreflightError, match="damaged"):
        plan_manifest(batchverify.VerificationConfig(manifests=(str(tmp_path / "2.parquet"),), output="o"))


@pytest.mark.slow
def test_a_limited_run_says_so(folder, small_model, tmp_path, read_scores, capsys):
    assert main(arguments(folder, small_model, tmp_path / "out", "--limit", 7)) == 0
    assert "(of the first 7, --limit)" in capsys.readouterr().out
    assert read_scores(tmp_path / "out")["manifest_row"].tolist() == list(range(7))
    found = summary_of(tmp_path / "out")
    assert found["run"]["limit"] == 7 and found["rows"]["total"] == 7
    assert main(arguments(folder, small_model, tmp_path / "none", "--limit", 0)) == 2


# --check


def test_a_check_tells_the_plan_and_writes_nothing(folder, night, small_model, tmp_path, capsys):
    assert main(arguments(folder, small_model, tmp_path / "deep" / "out", "--check", "--baseline", night)) == 0
    told = capsys.readouterr().out
    for words in (
        "60 rows in 1 file\n",
        "11 distinct images",
        "11 tried: 10 ok, 1 missing",
        "none.png: there is no such file",
        "blocks of rows: 1, buckets of images: 1, runner: FnApiRunner",
        "images/s",
        "GiB",
        "nothing was written",
    ):
        assert words in told
    assert list(tmp_path.iterdir()) == []


def test_a_check_knows_the_runner_and_the_limit(folder, small_model, tmp_path, capsys):
    assert main(arguments(folder, small_model, tmp_path / "out", "--check", "--limit", 9, "--runner=PrismRunner")) == 0
    told = capsys.readouterr().out
    assert "9 rows (the first 9, --limit)" in told and "runner: PrismRunner" in told and "for each worker process" in told


def test_a_check_of_a_model_that_runs_whole_times_its_pairs(folder, tmp_path, capsys):
    left, right = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    mixed = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(keras.ops.abs(left - right)))
    whole = keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(mixed))
    whole.save(tmp_path / "whole.keras")
    assert main(arguments(folder, str(tmp_path / "whole.keras"), tmp_path / "out", "--check", "--pixels", "0..255")) == 0
    told = capsys.readouterr().out
    assert "whole: " in told and "pairs/s were measured" in told


def test_names_in_a_baseline_cannot_drive_the_terminal():
    changed = {"path": "b", "psi": 0.5, "match_rate": [None, 1], "failures": {"\x1b[2J": [1, 0]}, "model_changed": True}
    told = baseline_message({**changed, "threshold": [0.5, 0.5]})
    assert "\x1b" not in told and "have moved a lot (PSI 0.500), with ANOTHER MODEL" in told


def test_a_check_refuses_what_a_run_refuses(folder, night, small_model, tmp_path, capsys):
    assert main(arguments(folder, small_model, night, "--check")) == 2
    assert main(arguments(folder, "none.keras", tmp_path / "out", "--check")) == 2
    assert main(arguments(folder, small_model, tmp_path / "out", "--check", "--baseline", tmp_path / "none")) == 2
    said = capsys.readouterr().err
    for words in ("holds a finished run", "none.keras: there is no such file", "does not exist"):
        assert words in said
    (tmp_path / "file").touch()
    assert main(arguments(folder, small_model, tmp_path / "file" / "out", "--check")) in (1, 2)
    assert "cannot be" in capsys.readouterr().err


def test_a_check_finds_mistakes_that_the_look_before_a_run_does_not_reach(folder, small_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "_VALIDATION_BYTES", 1)
    monkeypatch.setattr(csv, "_CSV_BLOCK_BYTES", 200)
    lines = ["left,right,genuine", *["p1.png,p2.png,1"] * 50, "p1.png,p2.png,perhaps", *["p1.png,p2.png,1"] * 50]
    (folder / "label.csv").write_text("\n".join(lines))
    (folder / "short.csv").write_text("\n".join([*lines[:40], "p1.png", *lines[:40]]))
    for name, told in (("label.csv", "row 50: the label is 'perhaps'"), ("short.csv", "row 39: there are 1 fields")):
        checked = arguments(folder, small_model, tmp_path / "out", "--check")
        checked[1] = str(folder / name)
        plan_manifest(batchverify.VerificationConfig(manifests=(checked[1],), output="o"))
        assert main(checked) == 2
        assert told in capsys.readouterr().err


def test_distinct_texts_are_counted_exactly_while_few_and_nearly_when_many():
    few, many = DistinctCounter(max_hashes=1000, sample_size=50), DistinctCounter(max_hashes=4000, sample_size=50)
    for start in range(0, 90_000, 3_000):  # each block shares two thirds with the last
        texts = pa.array([f"image{number}" for number in range(start, start + 9_000)])
        few.add(texts.slice(0, 20).filter(pa.array([start < 3_000] * 20)))
        many.add(texts)
    assert few.is_exact() and few.count() == len(few.sample()) == 20
    assert not many.is_exact() and many.count() == pytest.approx(96_000, rel=0.05)
    drawn = [int(text.removeprefix("image")) for text in many.sample()]
    assert len(set(drawn)) == 50 and 30_000 < np.mean(drawn) < 66_000


def test_a_survey_counts_what_a_manifest_holds(folder):
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "1.csv"), str(folder / "2.parquet")), output="o", block_rows=10
    )
    survey = scan_manifest(plan_manifest(config), config)
    assert (survey.files, survey.rows, survey.images.count()) == (2, 60, 11)
    assert survey.blocks == 3 + 4 and survey.max_images_per_block <= 11
