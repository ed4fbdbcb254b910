"""The doctor's verdicts, and the certificate against the scores that a head really gives."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import batchverify
from batchverify.cli.main import main
from batchverify.config import ModelConfig
from batchverify.model.diagnosis import examine
from batchverify.model.identity_bound import UNKNOWN_BOUND, find_identity_bound
from batchverify.model.split import split_model
from tests.support.model_zoo import SHAPE, l1, siamese

DEMO = Path(batchverify.__file__).parent / "demo"


def head(weights, bias):
    layer = keras.layers.Dense(1, activation="sigmoid")
    layer.build((None, len(weights)))
    layer.set_weights([np.array(weights, np.float32)[:, None], np.array([bias], np.float32)])
    return layer


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code", "score"), [("sane", 0, 0.99999), ("faulty", 3, 0.5)])
def test_the_demo_models(name, code, score, demo, capsys):
    argv = ["--model", str(DEMO / f"{name}.keras"), "--manifest", str(demo / "demo.csv"), "--json"]
    assert main(["doctor", *argv]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["identity"]["identity_score_min"] == pytest.approx(score, abs=1e-4)
    assert found["sane"] == (code == 0)


def test_the_certificate_bounds_every_pair_and_names_the_exact_identity_score():
    weights, bias = [-1.0, 0.5, -0.2, 0.25, -3.0, -0.1], 1.5
    siamese_model = split_model(siamese(l1(), head(weights, bias)))
    certificate = find_identity_bound(siamese_model, ModelConfig())
    assert certificate.comparison == "l1" and certificate.holds is False
    assert certificate.identity_score == pytest.approx(1 / (1 + np.exp(-bias)))
    rng = np.random.default_rng(0)
    left, right = rng.uniform(0, 1, (2, 5000, 6)).astype(np.float32)
    scores = np.asarray(siamese_model.head([left, right]))
    assert certificate.identity_score < scores.max() <= certificate.bound
    reach = np.array([[0, 1, 0, 1, 0, 0]], np.float32)
    best = float(np.asarray(siamese_model.head([reach, np.zeros_like(reach)])).item())
    assert best == pytest.approx(certificate.bound, abs=1e-6)


def test_the_certificate_holds_where_no_weight_is_positive():
    certificate = find_identity_bound(split_model(siamese(l1(), head([-1.0, 0.0, -0.2, -1.0, -3.0, -0.1], 2.0))), ModelConfig())
    assert certificate.holds is True and certificate.bound == certificate.identity_score


def dense(weight, bias, activation="sigmoid", units=1, width=6):
    layer = keras.layers.Dense(units, activation=activation)
    layer.build((None, width))
    kernel = np.full((width, units), weight, np.float32) * np.linspace(0, 1, units + 1)[1:]
    layer.set_weights([kernel, np.linspace(0, bias, units + 1)[1:].astype(np.float32)])
    return layer


def behind(layer, function):
    return lambda joined: function(layer(joined))


# The ends of heads behind an l1 distance, and what is proven: the identity score, and whether no pair outscores it.
ENDS: dict[str, tuple[Any, dict[str, Any], tuple[float | None, bool | None]]] = {
    "sigmoid": (dense(-1.0, 2.0), {}, (2.0, True)),
    "reshaped": (behind(dense(-1.0, 2.0), lambda x: keras.layers.Reshape(())(keras.layers.Dropout(0.3)(x))), {}, (2.0, True)),
    "linear, then a sigmoid": (behind(dense(-1.0, 2.0, "linear"), keras.layers.Activation("sigmoid")), {}, (2.0, True)),
    "linear, then keras.ops": (behind(dense(1.0, 2.0, "linear"), keras.ops.sigmoid), {}, (2.0, False)),
    "logit": (dense(-1.0, 2.0, "linear"), {"output_is": "logit"}, (2.0, True)),
    "dissimilarity": (dense(1.0, -2.0), {"output_is": "dissimilarity"}, (2.0, True)),
    "softmax": (dense(-1.0, 2.0, "softmax", 2), {"match_column": 1}, (1.0, True)),
    "softmax, first column": (dense(1.0, -2.0, "softmax", 2), {"match_column": 0}, (1.0, True)),
    "softmax, reversed": (
        dense(-1.0, 2.0, "softmax", 2), {"match_column": 0, "output_is": "dissimilarity"}, (1.0, True)
    ),
    # The score falls with the distance, but is no sigmoid of the bias.
    "distance": (dense(1.0, 2.0, "linear"), {"output_is": "distance"}, (None, True)),
    "distance that is cut off": (dense(-1.0, -2.0, "linear"), {"output_is": "distance"}, (None, None)),
    # Nothing is proven of what stands behind the dense layer.
    "one less a sigmoid": (behind(dense(1.0, -2.0), lambda x: 1 - x), {}, (None, None)),
    "one less a sigmoid, by Rescaling": (behind(dense(1.0, -2.0), keras.layers.Rescaling(-1.0, 1.0)), {}, (None, None)),
    "exp(-x)": (behind(dense(1.0, 0.0, "linear"), lambda x: keras.ops.exp(-x)), {}, (None, None)),
    "linear": (dense(-0.1, 1.0, "linear"), {}, (None, None)),
    "square": (behind(dense(-1.0, 0.5, "linear"), keras.ops.square), {}, (None, None)),
    "tanh": (dense(-1.0, 2.0, "tanh"), {}, (None, None)),
    "two without a softmax": (dense(-1.0, 2.0, "sigmoid", 2), {"match_column": 1}, (None, None)),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_the_certificate_counts_what_stands_behind_the_dense_layer(name):
    end, settings, (bias, holds) = ENDS[name]
    certificate = find_identity_bound(split_model(siamese(l1(), end)), ModelConfig(**settings))
    expected = None if bias is None else pytest.approx(1 / (1 + np.exp(-bias)), abs=1e-6)
    assert (certificate.identity_score, certificate.holds) == (expected, holds)


def test_there_is_no_certificate_where_equal_embeddings_score_another_value():
    def guarded(a, b):
        return keras.ops.sqrt(keras.ops.sum((a - b) ** 2, axis=1, keepdims=True) + 1e-3)

    model = split_model(siamese(guarded, dense(-3.0, 1.0, width=1), width=100))
    assert find_identity_bound(model, ModelConfig()) == UNKNOWN_BOUND


def test_feature_maps_of_open_size_have_no_certificate(tmp_path, capsys):
    pixels, left, right = (keras.Input((None, None, 3)) for _ in range(3))
    encoder = keras.Model(pixels, keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255)(pixels)))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.ops.abs(encoder(left) - encoder(right)))
    keras.Model([left, right], dense(-1.0, 2.0, width=4)(pooled)).save(tmp_path / "m.keras")
    main(["doctor", "--model", str(tmp_path / "m.keras"), "--image-size", "12"])
    assert "the weights do not tell, so it is only measured" in capsys.readouterr().out


def centred():
    pixels = keras.Input(SHAPE)
    embedding = keras.layers.Dense(6)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels)))
    encoder = keras.Model(pixels, embedding - keras.ops.mean(embedding, axis=0, keepdims=True))
    return siamese(l1(), head([-1.0] * 6, 3.0), encoder=encoder)


def normalised_by_the_batch():
    pixels = keras.Input(SHAPE)
    scaled = keras.layers.BatchNormalization()(keras.layers.Rescaling(1 / 255)(pixels), training=True)
    encoder = keras.Model(pixels, keras.layers.Dense(6)(keras.layers.Flatten()(scaled)))
    return siamese(l1(), head([-1.0] * 6, 3.0), encoder=encoder)


@pytest.mark.parametrize(
    ("build", "kind", "rows"),
    [
        (centred, "keras", 12), (centred, "saved", 64), (normalised_by_the_batch, "saved", 12),
    ],
)  # fmt: skip
def test_statistics_of_the_batch_are_found(build, kind, rows, tmp_path):
    keras.utils.set_random_seed(3)
    model, path = build(), str(tmp_path / ("m.keras" if kind == "keras" else "m"))
    model.save(path) if kind == "keras" else model.export(path, verbose=False)
    diagnosis = examine(ModelConfig(model=path, pixels="0..255", batch_size=rows))
    assert any("batch statistics are left on" in note for note in diagnosis.findings["notes"].values())
    assert any("batch statistics are left on" in fault for fault in diagnosis.faults)


def test_dropout_left_on_is_found(tmp_path, capsys):
    class Restless(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, *SHAPE]), tf.TensorSpec([None, *SHAPE])])
        def serve(self, left, right):
            one, other = (tf.nn.dropout(side, 0.5) for side in (left, right))
            return tf.exp(-tf.reduce_mean(tf.abs(one - other), axis=[1, 2, 3]))

    module = Restless()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.serve)
    assert main(["doctor", "--model", str(tmp_path / "model"), "--pixels", "0..1"]) == 3
    assert "dropout or batch statistics are left on" in capsys.readouterr().out


def test_an_asymmetric_head_is_found(tmp_path, capsys):
    siamese(lambda a, b: keras.layers.Concatenate()([a, b])).save(tmp_path / "m.keras")
    main(["doctor", "--model", str(tmp_path / "m.keras")])
    assert "Left and right exchanged change a score" in capsys.readouterr().out


def test_a_head_without_a_distance_is_told_so(tmp_path, capsys):
    siamese(lambda a, b: keras.layers.Multiply()([a, b]), head([2.0, -2.0, 2.0, -2.0, 2.0, -2.0], -0.5)).save(
        tmp_path / "m.keras"
    )
    assert main(["doctor", "--model", str(tmp_path / "m.keras")]) == 3
    out = capsys.readouterr().out
    assert "The score of an image against itself depends on the image. Retrain with identity pairs, or use a head" in out
    assert "Retrain the head" not in out


def test_the_sidecar_that_the_doctor_writes_answers_for_the_model(tmp_path, capsys):
    model = str(tmp_path / "m.keras")
    siamese(l1(), head([-1.0] * 6, 3.0), rescale=False).save(model)
    assert main(["doctor", "--model", model]) == 2
    assert "--pixels" in capsys.readouterr().err
    assert main(["doctor", "--model", model, "--pixels", "0..1", "--write-sidecar"]) == 0
    assert main(["doctor", "--model", model]) == 0
    assert main(["doctor", "--model", model, "--pixels", "0..1", "--write-sidecar"]) == 2
    out, err = capsys.readouterr()
    assert "it exists already" in err and out.count("SANE.") == 2


def test_a_sidecar_that_cannot_be_written_is_refused_before_the_examination(capsys):
    assert main(["doctor", "--model", "/proc/self/status", "--write-sidecar"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("batchverify: --write-sidecar: /proc/self/status.batchverify.json cannot be written (")


def test_findings_are_printed_though_the_sidecar_cannot_be_written(tmp_path, capsys):
    model = str(tmp_path / f"{'m' * 240}.keras")  # The name of its sidecar is longer than names can be.
    siamese(l1(), head([-1.0] * 6, 3.0)).save(model)
    assert main(["doctor", "--model", model, "--write-sidecar"]) == 1
    out, err = capsys.readouterr()
    assert "SANE." in out and "cannot be written (File name too long)" in err


def test_an_untrained_network_that_scores_everything_alike_is_found(tmp_path, capsys):
    siamese(l1(), head([0.0] * 6, 0.0)).save(tmp_path / "m.keras")
    assert main(["doctor", "--model", str(tmp_path / "m.keras")]) == 3
    assert "Every pair scores 0.5000, whatever the images show" in capsys.readouterr().out
