"""The sidecar is read once a launch, and to make a transform reads no file."""

import json
import platform
import shutil
import sys
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest

import batchverify
from batchverify.model.sidecar import GoldenPair, Sidecar, apply_sidecar, read_sidecar
from batchverify.pipeline.check import check_run
from batchverify.pipeline.keras_network import KerasNetwork
from tests.support.processes import SUBPROCESS_WORKERS

_opened: list[str] = []


def _note_opened(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str):
        _opened.append(arguments[0])


sys.addaudithook(_note_opened)


def times_opened(ending: str) -> int:
    return sum(path.endswith(ending) for path in _opened)


@pytest.fixture
def model(small_model, pictures, tmp_path) -> str:
    """The path of a model with a sidecar, which has a threshold and a golden pair."""
    path = tmp_path / "with-sidecar.keras"
    shutil.copy(small_model, path)
    golden = {"left": "pictures/p1.png", "right": str(pictures / "p1.png"), "score": 0.88, "tolerance": 0.01}
    Path(f"{path}.batchverify.json").write_text(json.dumps({"threshold": 0.25, "golden": [golden]}))
    (tmp_path / "pairs.csv").write_text("left,right\npictures/p0.png,pictures/p1.png\n")
    return str(path)


def test_a_sidecar_is_a_value(model, pictures):
    pair = GoldenPair(str(pictures / "p1.png"), str(pictures / "p1.png"), 0.88, 0.01)
    assert read_sidecar(model) == Sidecar({"threshold": 0.25}, (pair,))
    assert read_sidecar(model + ".other") == Sidecar()


def test_a_sidecar_sets_only_what_the_configuration_leaves_open():
    sidecar = Sidecar({"threshold": 0.25, "lambdas": ("l1",), "fit": "pad"})
    config = apply_sidecar(batchverify.ScoringConfig(lambdas=("squared",), threshold=0.0), sidecar)
    assert (config.threshold, config.lambdas, config.fit) == (0.0, ("squared",), "pad")
    assert apply_sidecar(config, sidecar) == config


@pytest.mark.parametrize("launch", [batchverify.run, check_run])
def test_a_launch_opens_the_sidecar_once(launch, model, tmp_path):
    config = batchverify.VerificationConfig(manifests=(str(tmp_path / "pairs.csv"),), output=str(tmp_path / "out"), model=model)
    _opened.clear()
    result = launch(config)
    assert times_opened("with-sidecar.keras.batchverify.json") == 1
    threshold = result.summary["run"]["threshold"] if launch is batchverify.run else result.config.threshold
    assert threshold == 0.25


def test_a_transform_of_ones_own_opens_the_sidecar_when_it_is_applied(model, pictures):
    pairs = pa.table({"left": [str(pictures / "p0.png")], "right": [str(pictures / "p1.png")]})
    _opened.clear()
    transform = batchverify.VerifyPairs(batchverify.ScoringConfig(model=model), expected_images=2)
    assert times_opened(".keras") == times_opened(".json") == 0
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create([("only", pairs)]) | transform
    assert times_opened("with-sidecar.keras.batchverify.json") == 1


def test_a_transform_of_a_model_that_does_not_exist_can_be_made():
    batchverify.VerifyPairs(batchverify.ScoringConfig(model="/nowhere/none.keras"))


def test_a_transform_with_a_damaged_sidecar_is_refused_when_it_is_applied(tmp_path):
    (tmp_path / "none.keras.batchverify.json").write_text("{")
    transform = batchverify.VerifyPairs(batchverify.ScoringConfig(model=str(tmp_path / "none.keras")))
    pipeline = beam.Pipeline(runner="FnApiRunner")
    with pytest.raises(batchverify.PreflightError, match="cannot be read"):
        _ = pipeline | beam.Create([]) | transform
    shutil.rmtree(pipeline.local_tempdir)  # Beam deletes it only after a run.


def spoil_golden_pair(model):
    path = Path(f"{model}.batchverify.json")
    content = json.loads(path.read_text())
    content["golden"][0]["score"] = 0.2
    path.write_text(json.dumps(content))


def test_each_worker_scores_the_golden_pairs(model, pictures):
    """A transform of one's own has no launcher that scores them first."""
    spoil_golden_pair(model)
    pairs = pa.table({"left": [str(pictures / "p0.png")], "right": [str(pictures / "p1.png")]})
    transform = batchverify.VerifyPairs(batchverify.ScoringConfig(model=model), expected_images=2)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([("only", pairs)]) | transform
    with pytest.raises(Exception, match=rf"should score 0\.2, but scores 0\.88.* on {platform.node()}"):
        pipeline.run()


def test_a_worker_whose_scores_differ_fails_the_run_in_a_sentence(model, tmp_path, monkeypatch):
    """The launcher passes here, as if its own device were in order; the workers are other processes."""
    spoil_golden_pair(model)
    monkeypatch.setattr(KerasNetwork, "check_golden_pairs", lambda *_: None)
    config = batchverify.VerificationConfig(manifests=(str(tmp_path / "pairs.csv"),), output=str(tmp_path / "out"), model=model)
    with pytest.raises(batchverify.RunError, match=r"should score 0\.2, but scores 0\.88.* some workers say so"):
        batchverify.run(config, SUBPROCESS_WORKERS)
    assert not list((tmp_path / "out").glob("scores-*"))
