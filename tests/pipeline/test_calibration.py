"""Calibration by the real command line: a labelled run, `calibrate`, and runs after it."""

import json
import shutil
from pathlib import Path
from typing import Any

import apache_beam as beam
import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import Row
from apache_beam.testing.util import assert_that

import batchverify
from batchverify.cli.main import main
from batchverify.evaluation import calibration as fits
from batchverify.manifest.plan import plan_manifest
from batchverify.model.facts import ModelFacts
from batchverify.model.sidecar import read_sidecar
from batchverify.pipeline.calibration import plan_calibration
from tests.support.manifests import draw_shades
from tests.support.processes import SUBPROCESS_WORKERS

pytestmark = pytest.mark.slow
COUNT = 80


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory) -> Path:
    """Pictures of one colour each, a labelled manifest of pairs of them, one without labels, a model, and a labelled run."""
    rng = np.random.default_rng(11)
    folder = tmp_path_factory.mktemp("calibration")
    shades = draw_shades(folder, rng, COUNT, noise=20)
    left, right = rng.integers(0, COUNT, (2, 900))
    genuine = (np.abs(shades[left] - shades[right]).sum(axis=1) < 150).astype(int)
    frame = pd.DataFrame({"left": [f"{n}.png" for n in left], "right": [f"{n}.png" for n in right], "genuine": genuine})
    frame.loc[899, "right"] = "none.png"
    frame.to_csv(folder / "pairs.csv", index=False)
    frame.drop(columns="genuine").to_csv(folder / "tonight.csv", index=False)
    shutil.copy(small_model, folder / "model.keras")
    assert main(words(folder, "pairs", "labelled")) == 0
    return folder


def words(folder: Path, manifest: str, output: str, *more: str) -> list[str]:
    model = ["--model", str(folder / "model.keras")]
    return ["--manifest", str(folder / f"{manifest}.csv"), *model, "--output", str(folder / output), "--overwrite", *more]


@pytest.fixture
def sidecar(folder):
    """The path of the model's sidecar, which does not exist before the test and after it."""
    path = folder / "model.keras.batchverify.json"
    yield path
    path.unlink(missing_ok=True)


def twin_of(scores: pd.Series, knots: list[list[float]]) -> np.ndarray:
    """The llrs of scores, the plain way."""
    at, llrs = np.array(knots).T
    scores = np.clip(scores.to_numpy(np.float64), at[0], at[-1])
    return np.interp(np.log(scores / (1 - scores)), np.log(at / (1 - at)), llrs)


def assert_equals_twin(scores: pd.DataFrame, sidecar: Path, prior: float) -> None:
    twin = twin_of(scores["score"], json.loads(sidecar.read_text())["calibration"]["knots"])
    np.testing.assert_allclose(scores["llr"], twin, rtol=1e-5)
    np.testing.assert_allclose(scores["probability"], prior / (prior + (1 - prior) * np.exp(-twin)), rtol=1e-5)


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_run_calibrate_run_again(method, folder, sidecar, read_scores, capsys):
    sidecar.write_text('{"threshold": 0.25, "golden": []}')
    assert main(words(folder, "pairs", "before")) == 0
    assert not {"llr", "probability"} & set(read_scores(folder / "before"))
    assert main(["calibrate", str(folder / "labelled"), "--method", method]) == 0
    said = capsys.readouterr().out
    assert f"{sidecar}: later runs" in said and f"Llr       {method}, fitted on " in said
    assert list(json.loads(sidecar.read_text())) == ["threshold", "golden", "calibration"]

    assert main(words(folder, "pairs", "after", "--prior", "0.01", "--review", "0.4", "0.6")) == 0
    scores, summary = read_scores(folder / "after"), json.loads((folder / "after" / "_summary.json").read_text())
    assert list(scores.columns[-3:]) == ["review", "llr", "probability"]
    schema = pq.read_schema(next((folder / "after").glob("scores-*.parquet")))
    assert schema.field("llr").type == schema.field("probability").type == pa.float32()
    assert schema.metadata[b"batchverify.calibration"].startswith(f"{method}, fitted on".encode())
    failed = scores[scores["score"].isna()]
    assert len(failed) == 1 and failed[["llr", "probability"]].isna().all(axis=None)
    assert_equals_twin(scores.dropna(subset="score"), sidecar, 0.01)

    found = summary["calibration"]
    genuine, impostor = (scores.loc[scores["genuine"] == label, "llr"].dropna() for label in ("1", "0"))
    plain = (np.log2(1 + np.exp(-genuine)).mean() + np.log2(1 + np.exp(impostor)).mean()) / 2
    assert found["cllr"] == pytest.approx(plain, abs=2e-3) and 0 <= found["cllr_min"] <= found["cllr"] < 1
    assert sum(entry["genuine"] for entry in found["reliability"]) <= len(genuine)
    said = capsys.readouterr().out
    assert f"Cllr      {found['cllr']:.3f} bits" in said and "probability at a prior of 0.01" in said
    page = (folder / "after" / "_report.html").read_text()
    assert 'id="calibration"' in page and "Observed share of genuine pairs by predicted probability" in page
    assert "--prior=0.01" in page


def test_a_model_is_found_where_the_run_found_it(folder, sidecar, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["--manifest", "pairs.csv", "--model", "model.keras", "--output", "relative"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", str(folder / "relative")]) == 0
    assert sidecar.exists() and not list(tmp_path.iterdir())


def test_llrs_that_mislead_are_called_so(folder, sidecar, read_scores, capsys):
    assert main(["calibrate", str(folder / "labelled")]) == 0
    content = json.loads(sidecar.read_text())
    content["calibration"]["knots"] = [[0.1, 5.0], [0.9, 9.0]]
    sidecar.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(words(folder, "pairs", "out")) == 0
    cost = json.loads((folder / "out" / "_summary.json").read_text())["calibration"]["cllr"]
    assert cost > 1 and "MISLEADING: calibrate again" in capsys.readouterr().out
    assert f"their Cllr is {cost:.3f} bits" in (folder / "out" / "_report.html").read_text()


def test_without_labels_there_are_llrs_and_no_cllr(folder, sidecar, read_scores, monkeypatch, capsys):
    assert main(["calibrate", str(folder / "labelled")]) == 0
    monkeypatch.setattr(fits, "has_scikit_learn", lambda: False)
    assert main(words(folder, "tonight", "out")) == 0
    scores = read_scores(folder / "out")
    assert scores.columns[-1] == "llr" and scores["llr"].notna().sum() == 899
    assert json.loads((folder / "out" / "_summary.json").read_text())["calibration"] is None
    said = capsys.readouterr().out
    assert "Llr       logistic, fitted on" in said and "\nCllr" not in said.partition("Rows")[2]


def test_with_labels_the_missing_extra_is_named_before_the_work(folder, sidecar, monkeypatch, capsys):
    assert main(["calibrate", str(folder / "labelled")]) == 0
    monkeypatch.setattr(fits, "has_scikit_learn", lambda: False)
    assert main(words(folder, "pairs", "none")) == 2
    assert "pip install 'batchverify[calibration]'" in capsys.readouterr().err and not (folder / "none").exists()
    assert main(["calibrate", str(folder / "labelled")]) == 2
    assert "calibrate needs scikit-learn" in capsys.readouterr().err


def test_workers_in_other_processes_and_a_transform_of_ones_own_give_the_same(folder, sidecar, read_scores):
    assert main(["calibrate", str(folder / "labelled")]) == 0
    assert main(words(folder, "pairs", "here", "--prior", "0.2")) == 0
    assert main(words(folder, "pairs", "there", "--prior", "0.2", *SUBPROCESS_WORKERS)) == 0
    here = read_scores(folder / "here")
    for column in ("llr", "probability"):
        np.testing.assert_allclose(here[column], read_scores(folder / "there")[column], rtol=1e-4)
    pairs = pa.table({side: [str(folder / name) for name in here[side][:50]] for side in ("left", "right")})
    config = batchverify.ScoringConfig(model=str(folder / "model.keras"), prior=0.2)
    written = str(folder / "own.parquet")
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        verified = pipeline | beam.Create([("only", pairs)]) | batchverify.VerifyPairs(config, expected_images=80)
        _ = verified.scores | beam.Map(pq.write_table, written)
    rows = pq.read_table(written)
    assert rows.column_names[-2:] == ["llr", "probability"]
    row_options = {"model": config.model, "prior": 0.2, "candidate": config.model, "review": (0.4, 0.6)}
    optional = ["review", "llr", "probability", "score_candidate", "match_candidate", "identity_check_candidate"]

    def check(found: list[Any]) -> None:
        assert list(found[0]._asdict())[-6:] == optional and len(found) == 50
        by_pair = {(row.left, row.right): row for row in found}
        found = [by_pair[pair] for pair in zip(*(pairs[side].to_pylist() for side in ("left", "right")), strict=True)]
        np.testing.assert_allclose([row.llr for row in found], here["llr"][:50], rtol=1e-4)
        np.testing.assert_allclose([row.probability for row in found], here["probability"][:50], rtol=1e-4)
        assert [(row.score, row.match) for row in found] == [(row.score_candidate, row.match_candidate) for row in found]

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        elements = pipeline | beam.Create([Row(**pair) for pair in pairs.to_pylist()])
        scored = elements | batchverify.VerifyRows(expected_images=80, **row_options)
        assert_that(scored, check)
        assert [name for name, *_ in scored.element_type._fields][-6:] == optional
    np.testing.assert_allclose(rows["llr"].to_numpy(), here["llr"][:50], rtol=1e-4)


def retrain(folder: Path) -> None:
    """Puts another model in the place of the calibrated one."""
    model = keras.models.load_model(folder / "model.keras")
    model.layers[-1].set_weights([weight * 0.9 for weight in model.layers[-1].get_weights()])
    model.save(folder / "model.keras")


def test_the_calibration_of_another_model_is_not_used(folder, small_model, sidecar, read_scores, caplog, capsys):
    assert main(["calibrate", str(folder / "labelled")]) == 0
    try:
        retrain(folder)
        assert main(words(folder, "pairs", "out")) == 0
        assert "llr" not in read_scores(folder / "out")
        reason = "it was fitted for another model, sha256:"
        assert f"Llr       NONE. The calibration of the model's sidecar is not used: {reason}" in capsys.readouterr().out
        assert "is not used, so there is no column llr" in caplog.text
        summary = json.loads((folder / "out" / "_summary.json").read_text())
        assert summary["run"]["calibration_ignored"].startswith(reason) and summary["run"]["calibration"] is None
        assert "The calibration of the model’s sidecar is not used" in (folder / "out" / "_report.html").read_text()
        assert main(words(folder, "pairs", "none", "--prior", "0.1")) == 2
        assert reason in capsys.readouterr().err and not (folder / "none").exists()

        transform = batchverify.VerifyPairs(batchverify.ScoringConfig(model=str(folder / "model.keras")))
        pipeline = beam.Pipeline(runner="FnApiRunner")
        pairs = pa.table({"left": [str(folder / "0.png")], "right": [str(folder / "1.png")]})
        _ = pipeline | beam.Create([("only", pairs)]) | transform
        with pytest.raises(Exception, match=reason):
            pipeline.run()

        assert main(["calibrate", str(folder / "labelled")]) == 2
        assert "is not the model of that run" in capsys.readouterr().err
        assert main(["calibrate", str(folder / "labelled"), "--model", small_model]) == 0  # the same bytes, elsewhere
        assert Path(f"{small_model}.batchverify.json").exists()
    finally:
        Path(f"{small_model}.batchverify.json").unlink(missing_ok=True)
        shutil.copy(small_model, folder / "model.keras")


def test_the_calibration_of_scores_of_another_meaning_is_not_used(folder, sidecar, read_scores, capsys):
    assert main(["calibrate", str(folder / "labelled")]) == 0
    assert main(words(folder, "pairs", "out", "--color", "bgr")) == 0
    assert "llr" not in read_scores(folder / "out")
    assert "is not used: it was fitted for another color, so for scores of another meaning" in capsys.readouterr().out
    assert main(words(folder, "pairs", "out", "--threshold", "0.9", "--batch-size", "7")) == 0  # no score changes
    assert "llr" in read_scores(folder / "out")


@pytest.mark.parametrize("prior", ["0", "1", "1.5", "-0.1", "nan"])
def test_a_prior_that_is_no_share_is_refused(prior, folder, capsys):
    assert main(words(folder, "pairs", "none", f"--prior={prior}")) == 2
    assert "give the share of genuine pairs among all pairs, between 0 and 1" in capsys.readouterr().err


def test_a_prior_without_a_calibration_is_refused(folder, capsys):
    assert main(words(folder, "pairs", "none", "--prior", "0.1")) == 2
    told = "model.keras.batchverify.json has none; fit one on a labelled run of it with batchverify calibrate RUN"
    assert told in capsys.readouterr().err and not (folder / "none").exists()
    transform = batchverify.VerifyPairs(batchverify.ScoringConfig(prior=0.1))
    pipeline = beam.Pipeline(runner="FnApiRunner")
    with pytest.raises(batchverify.PreflightError, match="the embedded model has none"):
        _ = pipeline | beam.Create([]) | transform
    shutil.rmtree(pipeline.local_tempdir)  # Beam deletes it only after a run.


def test_a_manifest_with_such_a_column_is_refused_only_with_a_calibration(folder, sidecar, tmp_path, capsys):
    frame = pd.read_csv(folder / "tonight.csv").assign(LLR="later", Probability="high")
    frame.head(20).to_csv(folder / "taken.csv", index=False)
    assert main(words(folder, "taken", "out")) == 0
    assert main(["calibrate", str(folder / "labelled")]) == 0
    assert main(words(folder, "taken", "out")) == 2
    said = capsys.readouterr().err
    assert "column 'LLR' is one that the output adds; rename it in the manifest." in said and "Probability" not in said
    assert main(words(folder, "taken", "out", "--prior", "0.5")) == 2
    assert "column 'Probability' is one that the output adds" in capsys.readouterr().err


def test_a_second_calibration_takes_the_place_of_the_first(folder, sidecar):
    assert main(["calibrate", str(folder / "labelled")]) == 0
    assert main(["calibrate", str(folder / "labelled" / "_summary.json"), "--method", "isotonic"]) == 0
    calibration = read_sidecar(str(folder / "model.keras")).calibration
    assert calibration is not None and calibration.method == "isotonic" and len(calibration.knots) > 2
    sidecar.write_text('{"threshold": 0.5, "calibration": "a damaged one"}')
    assert main(["calibrate", str(folder / "labelled")]) == 0
    assert json.loads(sidecar.read_text())["calibration"]["method"] == "logistic"


def test_a_sidecar_with_mistakes_stays_as_it_is(folder, sidecar, capsys):
    sidecar.write_text('{"treshold": 0.5}')
    assert main(["calibrate", str(folder / "labelled")]) == 2
    assert "'treshold' is not a setting" in capsys.readouterr().err and sidecar.read_text() == '{"treshold": 0.5}'


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ("nowhere", "nowhere does not exist; name the --output of a finished run."),
        (
            "unlabelled",
            "that run has no labels, which say which pairs are genuine; name one with labels.",
        ),
        ("embedded", "the run used the embedded model, which has no sidecar of yours"),
    ],
)
def test_a_run_that_cannot_calibrate_is_refused(run, told, demo, folder, capsys):
    if run == "unlabelled":
        assert main(words(folder, "tonight", run, "--limit", "20")) == 0
    elif run == "embedded":
        assert main(["--manifest", str(demo / "demo.csv"), "--output", str(folder / run)]) == 0
    assert main(["calibrate", str(folder / run)]) == 2
    assert told in capsys.readouterr().err
    if run == "embedded":
        assert main(["calibrate", str(folder / run), "--sidecar", str(folder / "copy.keras.batchverify.json")]) == 0
        assert read_sidecar(str(folder / "copy.keras")).calibration is not None


def test_the_doctor_and_the_check_say_whether_there_is_a_calibration(folder, sidecar, capsys):
    assert main(["calibrate", str(folder / "labelled")]) == 0
    assert main(words(folder, "pairs", "none", "--check")) == 0
    assert "calibrated: logistic, fitted on" in capsys.readouterr().out
    main(["doctor", "--model", str(folder / "model.keras"), "--json"])
    found = json.loads(capsys.readouterr().out)["calibration"]
    assert found["of_the_sidecar"].startswith("logistic") and found["fits_this_model"] == "yes"


def test_dataflow_with_labels_needs_an_image_that_has_scikit_learn(folder, sidecar):
    assert main(["calibrate", str(folder / "labelled")]) == 0
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "pairs.csv"),), output=str(folder / "none"), model=str(folder / "model.keras")
    )
    content = read_sidecar(config.model)
    assert content.calibration is not None
    digest = content.calibration.model_digest.removeprefix("sha256:")
    facts = ModelFacts("model.keras", digest, (16, 16, 3), 12, 48, "", 1, 0, "")
    plan = plan_manifest(config)
    own = PipelineOptions(["--runner=DataflowRunner", "--sdk_container_image=mine"])
    assert plan_calibration(config, content, facts, plan, own).used == content.calibration
    with pytest.raises(batchverify.PreflightError, match="scikit-learn, which Beam's own image lacks"):
        plan_calibration(config, content, facts, plan, PipelineOptions(["--runner=DataflowRunner"]))
