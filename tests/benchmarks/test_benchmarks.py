"""The contenders of the speed benchmark do the same work, and one that does not is found out. Times decide nothing here."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.precision import Run, draw_manifest, table
from benchmarks.speed.contenders import CONTENDERS, difference, read_answer, with_options
from benchmarks.speed.images import SIZES, Camera
from benchmarks.speed.lock import KINDS, PATHS, encode, ensure_kind, make_network
from benchmarks.speed.manifests import CASES, build_pairs
from benchmarks.speed.report import ratio, summarise
from benchmarks.speed.runner import Measured, Record

pytestmark = pytest.mark.benchmarks
ROOT = Path(__file__).resolve().parents[2]
ALL = ["published", "runinference", "limit-tfdata", "limit-threads", "batchverify"]


@pytest.mark.parametrize("contenders", [["limit-threads", "batchverify"], pytest.param(ALL, marks=pytest.mark.exhaustive)])
def test_contenders_give_the_same_scores(contenders, tmp_path):
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.speed", "--network", "demo", "--scale", "0.00667", "--rounds", "1"]
    command += ["--check-only", "--contenders", *contenders, "--cache", str(tmp_path), "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(output.read_text())
    assert (found["pairs"], found["images"]) == (40, 51)
    assert {row["contender"]: row["problem"] for row in found["contenders"]} == dict.fromkeys(contenders)
    assert all(row["difference"] <= 1e-3 for row in found["contenders"])
    assert all(row["scores"][0] < 0.3 and row["scores"][1] > 0.7 for row in found["contenders"]), (
        "scores that are all alike agree whatever the contenders do"
    )


def test_an_answer_that_is_shifted_swapped_or_incomplete_differs(tmp_path):
    rng = np.random.default_rng(1)
    columns = {name: rng.random(50, np.float32) for name in ("score", "identity_left", "identity_right")}
    wrong = [columns | {"score": columns["score"] + np.float32(2e-3)}, columns | {"score": columns["score"][::-1]},
             columns | {"identity_left": columns["identity_right"]},
             columns | {"score": np.where(np.arange(50) == 7, np.float32(np.nan), columns["score"])},
             {name: values[:-1] for name, values in columns.items()}]  # fmt: skip
    reference, *answers = (_written(tmp_path / f"{n}.parquet", answer) for n, answer in enumerate([columns, *wrong]))
    assert difference(reference, reference) == 0
    assert all(difference(answer, reference) > 1e-3 for answer in answers)


def _written(path, columns) -> np.ndarray:
    pq.write_table(pa.table(columns), path)
    return read_answer(path)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_manifests_have_the_shape_they_are_named_for(case, scale):
    pairs = build_pairs(case, scale, seed=3)
    named = np.bincount(np.concatenate([pairs.left, pairs.right]), minlength=pairs.images)
    assert len(named) == pairs.images and named.min() >= 1
    assert not np.any(pairs.left == pairs.right)
    assert pairs.arithmetic == pytest.approx({"lfw": 4.67, "gallery": 60, "distinct": 3}[case], rel=0.01)
    if case != "lfw":
        assert set(named) == ({20} if case == "gallery" else {1})


def test_pictures_are_distinct_repeatable_and_as_large_as_photos(tmp_path):
    first, again = (Camera(SIZES["250x250"], seed=2) for _ in range(2))
    paths = [tmp_path / f"{number}.jpg" for number in range(40)]
    for number, path in enumerate(paths):
        first.save(number, path)
    files = [path.read_bytes() for path in paths]
    again.save(17, tmp_path / "again.jpg")
    assert (tmp_path / "again.jpg").read_bytes() == files[17]
    assert len(set(files)) == 40
    bits_per_pixel = [8 * len(data) / np.prod(SIZES["250x250"]) for data in files]
    assert min(bits_per_pixel) > 1.0 and max(bits_per_pixel) < 2.6


def test_each_kind_of_file_is_read_for_the_measurement_of_the_lock(tmp_path):
    for kind in KINDS:
        paths = ensure_kind(tmp_path, "250x250", kind, 6)
        for config in PATHS.values():
            assert encode(make_network(config, images_per_second=1e6), paths) == 6


def test_ratios_are_taken_round_by_round():
    # A machine that is slow for a whole round slows both.
    found = ratio([2.0, 20.0, 4.2], [1.0, 10.0, 2.0])
    assert (found.median, found.least, found.most) == (2.0, 2.0, 2.1)


def test_a_variant_has_variables_and_options_of_its_own():
    variant = with_options("--batch-size 8", ["kept='X_Y=1' --runtime openvino"])["kept"]
    command = variant.command(Path("pairs.csv"), Path("m.keras"), Path("out"))
    assert command[:5] == ["env", "X_Y=1", sys.executable, "-m", "batchverify"]
    assert command[-4:] == ["--batch-size", "8", "--runtime", "openvino"]
    assert variant.meaning == "X_Y=1 python -m batchverify --runtime openvino"


def test_a_contender_whose_package_is_missing_says_so():
    assert dataclasses.replace(CONTENDERS["spark"], needs=("no_such_package", "numpy")).missing() == ["no_such_package"]


def test_ratios_beyond_start_up_leave_it_out_and_take_the_faster_limit():
    times = {"published": (5, [49, 51, 50]), "limit-tfdata": (2, [14]), "limit-threads": (6, [15]), "batchverify": (10, [20])}
    records = [
        Record(CONTENDERS[name], Measured(start, 0, 0), [Measured(one, 0, 0) for one in rounds])
        for name, (start, rounds) in times.items()
    ]
    for record in records[1:]:
        record.rounds *= 3
    found = {row["contender"]: row for row in summarise(records, build_pairs("lfw", 0.01, 0))}
    assert found["published"]["beyond_by_batchverify"] == 4.5
    assert found["batchverify"]["beyond_by_limit"] == 0.9


def test_pairs_of_class_folders_are_half_genuine_and_the_same_for_one_seed(tmp_path):
    for number in range(12):
        path = tmp_path / "images" / "abc"[number // 4] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
    (tmp_path / "images" / "a" / "notes.txt").write_text("no image")
    first, again, other = (
        pd.read_csv(draw_manifest(tmp_path / "images", 60, seed, tmp_path / f"{n}.csv")) for n, seed in enumerate([1, 1, 2])
    )
    same_class = [Path(left).parent == Path(right).parent for left, right in zip(first["left"], first["right"], strict=True)]
    assert first["genuine"].astype(bool).tolist() == same_class and sum(same_class) == 30
    assert (first["left"] != first["right"]).all() and not first["right"].str.endswith(".txt").any()
    assert first.equals(again) and not first.equals(other)


def test_drift_counts_what_changed():
    def run(scores, matches, verdicts):
        rows = pa.table({"score": pa.array(scores, pa.float32()), "match": matches, "identity_check": verdicts})
        return Run(1.0, {"rows": {"scored": 3}, "images": {"total": 4}, "profile": None}, rows)

    found = {
        "one": run([0.5, 0.25, None, 0.75], ["false", "false", None, "true"], ["sane", "sane", "not_checked", "sane"]),
        "other": run([0.5, 0.5, 0.3, 0.5], ["false", "true", None, "false"], ["sane", "outscored", "not_checked", "sane"]),
        "failed": "failed with exit code 2: why",
    }
    counts, *_, one, other, failed = table(found)
    assert counts.startswith("3 pairs with scores over 4 images")
    assert one.split(" | ")[3:] == ["0", "0", "0", "0", "0 |"]
    assert other.split(" | ")[3:] == ["0.25", "0.17", "1", "2", "1 |"]
    assert "failed with exit code 2: why" in failed


def precision(*options):
    command = [sys.executable, "-m", "benchmarks.precision", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_precision_compares_the_rows_of_several_manifests_also_where_a_gate_is_not_met(tmp_path):
    head, *lines = (ROOT / "manifests" / "demo.csv").read_text().splitlines()
    manifests = []
    for name, rows in (("one", lines[:20]), ("two", lines[-25:])):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join([head, *rows]))
        manifests += ["--manifest", path]
    run = precision(*manifests, "--image-root", ROOT / "manifests", "--block-rows", 7, "--max-failed-rows", "0")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("42 pairs with scores")
    *_, reference, float32, bfloat16 = (line.split(" | ") for line in run.stdout.splitlines() if line.startswith("| "))
    assert reference[3:] == ["0", "0", "0", "0", "0 |"]
    assert float(float32[3]) < 1e-4
    # A processor without bfloat16 computes in float32 whatever it is asked for.
    knows_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert (1e-4 if knows_bfloat16 else 0) < float(bfloat16[3]) < (0.1 if knows_bfloat16 else 1e-4)
    assert float32[5:] == ["0", "0", "0 |"]


def test_precision_decides_itself_what_it_compares():
    options = ["--runtime=openvino", "--precision", "--output", "--embeddings", "--check", "--no-wait"]
    run = precision("--manifest", "manifests/demo.csv", *options)
    assert run.returncode == 2 and f"{' '.join(options)}: this command decides that itself" in run.stderr
