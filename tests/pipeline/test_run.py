"""The job against an in-memory twin: the whole model, called on each pair's decoded images."""

import json
import uuid
from pathlib import Path

import apache_beam as beam
import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

import batchverify
from batchverify.images.decode import decode
from batchverify.images.failure import ImageFailure
from batchverify.images.fetch import fetch_bytes
from batchverify.images.layout import ImageLoader, Layout
from batchverify.images.picture_loader import PictureLoader
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.read import read_keyed
from batchverify.pipeline.image_table import ImageTable, ImageTableLoader
from batchverify.pipeline.two_readings import read_uris
from batchverify.worker_stats import WorkerStats
from tests.support.manifests import write_pairs
from tests.support.processes import SUBPROCESS_WORKERS

pytestmark = pytest.mark.slow


def twin_of(manifest: pd.DataFrame, folder: Path, model_path: str, loader: ImageLoader) -> pd.DataFrame:
    """Scores a manifest the plain way, one pair at a time."""
    model = keras.models.load_model(model_path)
    height, width = model.inputs[0].shape[1:3]
    call = tf.function(lambda left, right: model([left, right], training=False))

    def read(name):
        if not name:
            return "no_uri"
        data = fetch_bytes(str(folder / name), 64 * 2**20)
        pixels = data if isinstance(data, ImageFailure) else decode(data, Layout(height, width, loader=loader))
        return str(pixels.status) if isinstance(pixels, ImageFailure) else pixels[None].astype(np.float32)

    def score(left, right):
        if isinstance(left, str) or isinstance(right, str):
            return np.nan
        return float(call(left, right).numpy().item())

    rows = []
    for left, right in zip(map(read, manifest["left"]), map(read, manifest["right"]), strict=True):
        rows.append(
            {
                "score": score(left, right),
                "identity_left": score(left, left),
                "identity_right": score(right, right),
                "left_status": left if isinstance(left, str) else "ok",
                "right_status": right if isinstance(right, str) else "ok",
            }
        )
    return pd.DataFrame(rows)


def assert_equals_twin(scores: pd.DataFrame, manifest: pd.DataFrame, twin: pd.DataFrame) -> None:
    for column in ("pair_id", "left", "right", "genuine"):
        assert scores[column].tolist() == manifest[column].tolist()
    for column in ("score", "identity_left", "identity_right"):
        np.testing.assert_allclose(scores[column].astype(float), twin[column], atol=1e-5, equal_nan=True)
    for column in ("left_status", "right_status"):
        assert scores[column].astype(str).tolist() == twin[column].tolist()


@pytest.fixture(scope="module")
def demo_manifest(demo):
    return pd.read_csv(demo / "demo.csv", dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def demo_twin(demo, demo_manifest):
    embedded = Path(batchverify.__file__).parent / "demo" / "sane.keras"
    return twin_of(demo_manifest, demo, str(embedded), PictureLoader())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_demo_equals_its_twin(kind, demo, demo_manifest, demo_twin, tmp_path, read_scores):
    config = batchverify.VerificationConfig(manifests=(str(demo / f"demo.{kind}"),), output=str(tmp_path / "out"))
    result = batchverify.run(config)
    scores = read_scores(tmp_path / "out")
    assert_equals_twin(scores, demo_manifest, demo_twin)
    assert scores["match"].tolist() == [None if np.isnan(s) else s >= 0.5 for s in demo_twin["score"]]
    assert result.counters["images_encoded"] == 85
    assert result.counters["images_failed"] == 2


@pytest.mark.processes
def test_workers_in_other_processes_give_the_same(demo, demo_manifest, demo_twin, tmp_path, read_scores):
    config = batchverify.VerificationConfig(manifests=(str(demo / "demo.csv"),), output=str(tmp_path / "out"))
    batchverify.run(config, SUBPROCESS_WORKERS)
    assert_equals_twin(read_scores(tmp_path / "out"), demo_manifest, demo_twin)


def test_the_demo_shows_each_special_case(demo, tmp_path, read_scores):
    config = batchverify.VerificationConfig(manifests=(str(demo / "demo.csv"),), output=str(tmp_path / "out"))
    batchverify.run(config)
    same_bytes, same_file, missing, corrupt, unnamed = read_scores(tmp_path / "out").tail(5).itertuples()
    assert same_bytes.same_image and same_bytes.score == pytest.approx(same_bytes.identity_left, abs=1e-6)
    assert same_file.same_image and same_file.identity_check == "sane"
    assert (missing.right_status, missing.identity_check) == ("missing", "not_checked")
    assert missing.error.startswith("right image ") and missing.error.endswith("there is no such file")
    assert corrupt.left_status == "unreadable" and corrupt.match is None
    assert (unnamed.right_status, unnamed.error) == ("no_uri", "right image (none): the manifest names no image")


def test_the_faulty_model_is_found_out(demo, tmp_path, read_scores):
    model = Path(batchverify.__file__).parent / "demo" / "faulty.keras"
    config = batchverify.VerificationConfig(manifests=(str(demo / "demo.csv"),), output=str(tmp_path / "out"), model=str(model))
    result = batchverify.run(config)
    scores = read_scores(tmp_path / "out")
    assert result.summary["identity"]["score_max"] == pytest.approx(0.5)
    outscored = scores[scores["identity_check"] == "outscored"]
    assert len(outscored) == result.summary["identity"]["outscored"] > 20
    assert (outscored["score"] > 0.5).all()


@pytest.mark.parametrize(("batch_size", "block_rows"), [(1, 100), (3, 5), (64, 1)])
def test_scores_depend_on_neither_batch_nor_block(batch_size, block_rows, small_model, pictures, tmp_path, read_scores):
    manifest = write_pairs(tmp_path, pictures)
    found = []
    for name, settings in (("plain", {}), ("other", {"batch_size": batch_size, "block_rows": block_rows})):
        config = batchverify.VerificationConfig(
            manifests=(str(manifest),), output=str(tmp_path / name), model=small_model, **settings
        )
        result = batchverify.run(config)
        assert result.counters["images_encoded"] == 10  # each once, however many blocks ask for it
        found.append(read_scores(tmp_path / name))
    np.testing.assert_allclose(found[0]["score"], found[1]["score"], atol=1e-6)
    assert found[0]["manifest_row"].tolist() == found[1]["manifest_row"].tolist() == list(range(57))


@pytest.fixture
def wide_model(tmp_path) -> str:
    """A Siamese network with a convolution that takes 2 MiB for each image of 16×16 pixels."""
    pixels, left, right = (keras.Input((16, 16, 3)) for _ in range(3))
    x = keras.layers.Conv2D(2048, 1, activation="relu")(keras.layers.Rescaling(1 / 255)(pixels))
    encoder = keras.Model(pixels, keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(x)))
    score = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="ones", bias_initializer="ones")
    keras.Model([left, right], score(-keras.ops.abs(encoder(left) - encoder(right)))).save(tmp_path / "wide.keras")
    return str(tmp_path / "wide.keras")


def test_a_batch_that_memory_cannot_hold_is_computed_in_parts(wide_model, pictures, tmp_path, read_scores):
    """TensorFlow ends the whole process where a processor's memory does not hold a batch."""
    manifests = (str(write_pairs(tmp_path, pictures)),)
    for name, batch_size in (("plain", 64), ("huge", 10**8)):
        config = batchverify.VerificationConfig(
            manifests=manifests, output=str(tmp_path / name), model=wide_model, batch_size=batch_size
        )
        batchverify.run(config)
    plain, huge = (read_scores(tmp_path / name) for name in ("plain", "huge"))
    pd.testing.assert_frame_equal(huge, plain, rtol=0, atol=1e-6)


def test_verify_pairs_in_a_pipeline_of_ones_own(small_model, pictures):
    table = pa.table({"photo": [str(pictures / "p0.png")], "id_card": [str(pictures / "p1.png")], "customer": [7]})
    config = batchverify.ScoringConfig(model=small_model, left_column="photo", right_column="id_card")
    found = []
    pipeline = beam.Pipeline(runner="FnApiRunner")
    verified = pipeline | beam.Create([("only", table)]) | batchverify.VerifyPairs(config, expected_images=2)
    _ = verified.scores | beam.Map(lambda scores, at=str(pictures / "own.parquet"): pq.write_table(scores, at))
    pipeline.run().wait_until_finish()
    found = pq.read_table(pictures / "own.parquet").to_pylist()
    assert found[0]["customer"] == 7 and 0 < found[0]["score"] < 1


def test_one_process_gives_what_sending_images_gives(small_model, pictures, tmp_path, read_scores):
    """Several files and blocks; rows that name no image, or one that is missing."""
    names = [*(str(pictures / f"p{number}.png") for number in range(10)), "", "/nowhere.png"]
    chosen = np.random.default_rng(3).integers(len(names), size=(2, 60))
    table = pa.table({side: [names[i] for i in row] for side, row in zip(("left", "right"), chosen, strict=True)})
    for number, start in enumerate((0, 40)):
        pq.write_table(table.slice(start, 40), tmp_path / f"pairs-{number}.parquet")
    manifests = tuple(str(tmp_path / f"pairs-{number}.parquet") for number in range(2))
    config = batchverify.VerificationConfig(manifests=manifests, output=str(tmp_path / "out"), model=small_model, block_rows=7)
    batchverify.run(config)
    in_one_process = read_scores(tmp_path / "out")
    assert len(in_one_process) == 60
    plan = plan_manifest(config)
    blocks = [block for shard in plan.shards for block in read_keyed(shard, plan, config)]
    pipeline = beam.Pipeline(runner="FnApiRunner")
    verified = pipeline | beam.Create(blocks) | batchverify.VerifyPairs(config, expected_images=30_000)
    _ = verified.scores | beam.Map(lambda scores: pq.write_table(scores, tmp_path / f"sent-{uuid.uuid4()}"))
    pipeline.run().wait_until_finish()
    sent = pd.concat(pd.read_parquet(path) for path in tmp_path.glob("sent-*"))
    keys = ["manifest_file", "manifest_row"]
    pd.testing.assert_frame_equal(
        in_one_process.sort_values(keys, ignore_index=True), sent.sort_values(keys, ignore_index=True), check_dtype=False
    )


@pytest.mark.parametrize("change", ["another order", "another image", "fewer rows"])
def test_a_manifest_that_changes_between_its_two_readings_fails_the_run(change, small_model, pictures, tmp_path, monkeypatch):
    names = [str(pictures / f"p{number}.png") for number in range(4)]
    manifest = tmp_path / "pairs.csv"
    manifest.write_text("left,right\n" + "".join(f"{left},{names[0]}\n" for left in names))
    changed = {
        "another order": [*names[1:], names[0]], "another image": [*names[:3], str(pictures / "p5.png")],
        "fewer rows": names[:3],
    }[change]  # fmt: skip

    def put(self, images, put=ImageTable.put):
        put(self, images)
        manifest.write_text("left,right\n" + "".join(f"{left},{names[0]}\n" for left in changed))

    monkeypatch.setattr(ImageTable, "put", put)
    config = batchverify.VerificationConfig(manifests=(str(manifest),), output=str(tmp_path / "out"), model=small_model)
    with pytest.raises(batchverify.RunError, match="the manifest has changed since the run began"):
        batchverify.run(config)
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_run_directory_is_whole_or_not_at_all(small_model, pictures, tmp_path, read_scores):
    manifest, output = write_pairs(tmp_path, pictures), tmp_path / "out"
    output.mkdir()
    (output / "_RUNNING").write_text("a run that crashed")
    (output / "scores-00000-of-00009.parquet").write_bytes(b"left by it")
    (output / "notes.txt").write_text("not ours")
    config = batchverify.VerificationConfig(manifests=(str(manifest),), output=str(output), model=small_model)
    batchverify.run(config)
    assert sorted(path.name for path in output.iterdir()) == [
        "_SUCCESS", "_report.html", "_summary.json", "notes.txt", "scores-00000-of-00001.parquet",
    ]  # fmt: skip
    with pytest.raises(batchverify.PreflightError, match="--overwrite"):
        batchverify.run(config)


def test_files_say_how_they_were_made(small_model, pictures, tmp_path):
    manifest = write_pairs(tmp_path, pictures)
    config = batchverify.VerificationConfig(
        manifests=(str(manifest),), output=str(tmp_path / "out"), model=small_model, threshold=0.7
    )
    result = batchverify.run(config)
    metadata = pq.read_schema(tmp_path / "out" / "scores-00000-of-00001.parquet").metadata
    assert metadata[b"batchverify.threshold"] == b"0.7"
    assert metadata[b"batchverify.run_id"] == result.summary["run"]["run_id"].encode()
    assert metadata[b"batchverify.model_digest"].startswith(b"sha256:")
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert summary["rows"]["total"] == sum(n for _, n in summary["score_histograms"]["unlabelled"]) == 57


@pytest.mark.parametrize("text", ["", "left,right\n", "left,right,name\n"])
def test_a_manifest_without_rows_gives_a_well_formed_output(text, small_model, tmp_path, read_scores):
    (tmp_path / "pairs.csv").write_text(text)
    config = batchverify.VerificationConfig(
        manifests=(str(tmp_path / "pairs.csv"),), output=str(tmp_path / "out"), model=small_model
    )
    batchverify.run(config)
    scores = read_scores(tmp_path / "out")
    assert len(scores) == 0 and {"left", "score", "identity_check"} <= set(scores.columns)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_label_far_into_a_manifest_that_is_none_fails_the_run_before_an_image_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr("batchverify.manifest.plan._VALIDATION_BYTES", 1)
    monkeypatch.setattr("batchverify.manifest.csv._CSV_BLOCK_BYTES", 200)
    rows = ["p1.png,p2.png,1"] * 50
    (tmp_path / "pairs.csv").write_text("\n".join(["left,right,genuine", *rows, "p1.png,p2.png,perhaps", *rows]))
    config = batchverify.VerificationConfig(manifests=(str(tmp_path / "pairs.csv"),), output="unused", block_rows=10)
    requests = read_uris(None, plan_manifest(config), config, ImageTableLoader(), WorkerStats())
    with pytest.raises(batchverify.RunError, match=r"pairs\.csv, row 50: the label is 'perhaps'"):
        next(requests)


def test_a_mistake_far_into_a_manifest_fails_the_run_clearly(small_model, pictures, tmp_path, monkeypatch):
    manifest = write_pairs(tmp_path, pictures)
    config = batchverify.VerificationConfig(manifests=(str(manifest),), output=str(tmp_path / "out"), model=small_model)
    plan = plan_manifest(config)
    # The file changes between the look before the run and the run: a row loses a field.
    manifest.write_text(manifest.read_text() + "only one field\n")
    monkeypatch.setattr("batchverify.pipeline.plan.plan_manifest", lambda _: plan)
    with pytest.raises(batchverify.RunError, match=r"pairs\.csv, row 57: there are 1 fields where the header has 2"):
        batchverify.run(config)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
