"""Model files as their owners have them: compiled with old optimizers, saved from notebooks, copied in part."""

import os
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.diagnosis import examine
from batchverify.model.identity_bound import find_identity_bound
from batchverify.model.load import load_model
from tests.support.model_zoo import SHAPE, l1, lambda_l1, siamese

pytestmark = pytest.mark.slow

# tf_keras itself can revive its optimizers, so it must not be there.
SCORE_WITHOUT_TF_KERAS = """
import sys
sys.modules["tf_keras"] = None
import numpy as np
from batchverify.config import ModelConfig
from batchverify.model.load import load_model
model = load_model(ModelConfig(model=sys.argv[1], pixels="0..255"))
images = np.load(sys.argv[2])
np.save(sys.argv[3], model.compare(model.encode(images), model.encode(images[::-1])))
"""


def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (6, *SHAPE)).astype(np.float32)


def refusal(path, **options) -> str:
    with pytest.raises(PreflightError) as refused:
        load_model(ModelConfig(model=str(path), pixels="0..255", **options))
    return str(refused.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[tf_keras.Model, str]:
    """A model of Keras 2 that was trained with an optimizer with slot variables, and its SavedModel."""
    model = siamese(l1(tf_keras), k=tf_keras)
    model.compile(tf_keras.optimizers.legacy.Adam(), "binary_crossentropy")
    model.fit([images(), images()[::-1]], np.ones((6, 1)), verbose=0)
    path = str(tmp_path_factory.mktemp("trained") / "model")
    model.save(path, save_format="tf")
    return model, path


@pytest.mark.processes
def test_a_saved_model_with_an_old_optimizer_scores_as_it_did_where_it_was_trained(trained, tmp_path):
    model, path = trained
    np.save(tmp_path / "images.npy", images())
    command = [sys.executable, "-c", SCORE_WITHOUT_TF_KERAS, path, tmp_path / "images.npy", tmp_path / "scores.npy"]
    subprocess.run(list(map(str, command)), check=True, timeout=300, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    expected = model.predict([images(), images()[::-1]], verbose=0)[:, 0]
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, atol=1e-5)


def test_a_saved_model_without_its_variables_is_told_as_that(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "variables")
    assert "its weights are missing; copy the folder again, with variables/" in refusal(tmp_path / "model")


class L1Dist(keras.layers.Layer):
    def call(self, left, right):
        return keras.ops.abs(left - right)


class CosineDistance(keras.layers.Layer):
    def call(self, left, right):
        return 1 - keras.ops.sum(left * right, -1, keepdims=True)


@pytest.mark.parametrize(("layer", "kind"), [(L1Dist, "l1"), (CosineDistance, "cosine_distance")])
def test_a_class_of_a_notebook_is_named_with_what_it_seems_to_compute(layer, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(layer, "__module__", "__main__")  # Keras then writes null for its module.
    siamese(lambda left, right: layer(name="distance")(left, right)).save(tmp_path / "model.keras")
    assert f"use --custom-object {layer.__name__}={kind} (or " in refusal(tmp_path / "model.keras")
    load_model(ModelConfig(model=str(tmp_path / "model.keras"), custom_objects=(f"{layer.__name__}={kind}",)))


# Outputs that are low for a match


def scores_of(model, left, right) -> np.ndarray:
    return model.compare(model.encode(left), model.encode(right))


def falling() -> keras.Model:
    """A head whose output is near 0 for equal embeddings and rises with their distance, as contrastive losses train it."""
    model = siamese(l1(), keras.layers.Dense(1, activation="sigmoid", name="score"))
    model.get_layer("score").set_weights([np.full((6, 1), 9.0, np.float32), np.array([-4.0], np.float32)])
    return model


def test_dissimilarity_is_one_minus_the_output(tmp_path):
    model = falling()
    model.save(tmp_path / "model.keras")
    loaded = load_model(ModelConfig(model=str(tmp_path / "model.keras"), output_is="dissimilarity"))
    expected = 1 - np.asarray(model([images(), images()[::-1]]))[:, 0]
    np.testing.assert_allclose(scores_of(loaded, images(), images()[::-1]), expected, atol=1e-5)
    assert loaded.split is not None
    bound = find_identity_bound(loaded.split, ModelConfig(output_is="dissimilarity"))
    assert bound.holds and bound.identity_score == pytest.approx(1 - 1 / (1 + np.exp(4.0)), abs=1e-6)
    assert find_identity_bound(loaded.split, ModelConfig()).holds is False


def test_the_doctor_names_a_reversed_output_and_believes_the_corrected_one(tmp_path):
    falling().save(tmp_path / "model.keras")
    (fault,) = examine(ModelConfig(model=str(tmp_path / "model.keras"))).faults
    assert "Add --output-is dissimilarity" in fault
    assert examine(ModelConfig(model=str(tmp_path / "model.keras"), output_is="dissimilarity")).faults == []


def test_the_doctor_names_a_network_that_cannot_tell_images_apart(tmp_path):
    model = siamese(l1(), keras.layers.Dense(1, activation="sigmoid", name="score"))
    model.get_layer("score").set_weights([np.full((6, 1), -1e-4, np.float32), np.array([2.0], np.float32)])
    model.save(tmp_path / "model.keras")
    assert "cannot tell images apart" in " ".join(examine(ModelConfig(model=str(tmp_path / "model.keras"))).faults)


# Lambdas with numbers of their own


@pytest.mark.parametrize("k", [keras, tf_keras], ids=["Keras 3", "Keras 2"])
def test_the_factor_of_a_lambda_is_read_from_its_arguments(k, tmp_path):
    k.utils.set_random_seed(3)
    image = k.Input(SHAPE)
    flat = k.layers.Dense(6)(k.layers.Flatten()(k.layers.Rescaling(1 / 255)(image)))
    size = {"output_shape": (6,)}
    halved = k.layers.Lambda(lambda x, scale: x * scale, arguments={"scale": 0.5}, name="half", **size)(flat)
    added = k.layers.Lambda(
        lambda inputs, scale: inputs[0] + inputs[1] * scale, arguments={"scale": 0.17}, name="block", **size
    )([flat, halved])
    model = siamese(l1(k), k=k, encoder=k.Model(image, added, name="encoder"))
    path = tmp_path / ("model.keras" if k is keras else "model.h5")
    model.save(path)
    assert "--lambda half=scale, as its code seems to do" in refusal(path)
    loaded = load_model(ModelConfig(model=str(path), lambdas=("scaled_add", "half=scale")))
    expected = np.asarray(model([images(), images()[::-1]]))[:, 0]
    np.testing.assert_allclose(scores_of(loaded, images(), images()[::-1]), expected, atol=1e-5)


DISTANCES = {
    "none": lambda t: tf.sqrt(tf.reduce_sum(tf.square(t[0] - t[1]), axis=1, keepdims=True)),
    "added": lambda t: tf.sqrt(tf.reduce_sum(tf.square(t[0] - t[1]), axis=1, keepdims=True) + 1e-5),
    "smallest": lambda t: tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(t[0] - t[1]), axis=1, keepdims=True), 1e-9)),
    "epsilon": lambda t: tf.sqrt(
        tf.maximum(tf.reduce_sum(tf.square(t[0] - t[1]), axis=1, keepdims=True), tf_keras.backend.epsilon())
    ),
}


@pytest.mark.parametrize("guard", DISTANCES)
def test_the_guard_of_a_euclidean_lambda_is_that_of_its_own_code(guard, tmp_path):
    model = siamese(lambda a, b: tf_keras.layers.Lambda(DISTANCES[guard], name="distance")([a, b]), k=tf_keras)
    model.save(tmp_path / "model.h5")
    loaded = load_model(ModelConfig(model=str(tmp_path / "model.h5"), lambdas=("euclidean",)))
    for other in (images(), images()[::-1]):
        expected = np.asarray(model([images(), other]))[:, 0]
        np.testing.assert_allclose(scores_of(loaded, images(), other), expected, atol=2e-6)


@pytest.mark.parametrize(("k", "name"), [(keras, "m.keras"), (tf_keras, "m.h5"), (tf_keras, "m.keras")])
def test_hard_sigmoid_is_that_of_the_keras_that_wrote_the_file(k, name, tmp_path):
    k.utils.set_random_seed(4)
    pixels = k.Input(SHAPE)
    x = k.layers.Conv2D(4, 3, activation="hard_sigmoid")(k.layers.Rescaling(1 / 255)(pixels))
    x = k.layers.Activation("hard_sigmoid")(k.layers.Reshape((10, 40))(x))
    x = k.layers.Bidirectional(k.layers.LSTM(5, recurrent_activation="hard_sigmoid"))(x)
    encoder = k.Model(pixels, k.layers.Dense(6, activation=k.activations.hard_sigmoid)(x), name="encoder")
    model = siamese(l1(k), k=k, encoder=encoder)
    model.save(tmp_path / name)
    loaded = load_model(ModelConfig(model=str(tmp_path / name)))
    np.testing.assert_allclose(loaded.encode(images()), encoder.predict(images(), verbose=0), atol=1e-5)


@pytest.mark.parametrize("name", ["m.h5", "m.keras"])
@pytest.mark.parametrize("layer", ["Resizing", "UpSampling2D"])
def test_keras_2_does_not_round_whole_pixels_that_it_resizes(layer, name, tmp_path):
    tf_keras.utils.set_random_seed(4)
    pixels = tf_keras.Input(SHAPE, dtype="uint8")
    sizes = {"Resizing": {"height": 7, "width": 9}, "UpSampling2D": {"size": 2}}
    x = getattr(tf_keras.layers, layer)(**sizes[layer], interpolation="bilinear")(pixels)
    x = tf_keras.layers.Flatten()(tf_keras.layers.Rescaling(1 / 255)(x))
    model = siamese(l1(tf_keras), k=tf_keras, encoder=tf_keras.Model(pixels, x), dtype="uint8")
    model.save(tmp_path / name)
    loaded, whole = load_model(ModelConfig(model=str(tmp_path / name))), images().astype(np.uint8)
    expected = np.asarray(model([whole, whole[::-1]]))[:, 0]
    np.testing.assert_allclose(scores_of(loaded, whole, whole[::-1]), expected, atol=1e-6)


def test_several_axes_in_an_hdf5_file_are_refused_as_keras_3_would_leave_them_out(tmp_path):
    pixels = tf_keras.Input(SHAPE)
    x = tf_keras.layers.Dense(3)(tf_keras.layers.UnitNormalization(axis=[1, 2])(pixels))
    encoder = tf_keras.Model(pixels, tf_keras.layers.Flatten()(x))
    encoder.save(tmp_path / "m.h5")
    assert "works on the axes [1, 2], which Keras 3 does not read" in refusal(tmp_path / "m.h5", compare="l1")
    encoder.save(tmp_path / "m.keras")
    loaded = load_model(ModelConfig(model=str(tmp_path / "m.keras"), pixels="0..255", compare="l1"))
    np.testing.assert_allclose(loaded.encode(images()), encoder.predict(images(), verbose=0), atol=1e-5)


def test_an_autoencoder_is_no_encoder(tmp_path):
    image = keras.Input(SHAPE)
    blurred = keras.layers.Conv2D(3, 3, padding="same")(keras.layers.Rescaling(1 / 255)(image))
    keras.Model(image, blurred).save(tmp_path / "model.keras")
    assert "as an autoencoder does, and no embeddings; save its encoder" in refusal(tmp_path / "model.keras", compare="cosine")


def test_the_doctor_says_how_much_scores_move_under_other_loaders(demo):
    loaders = examine(ModelConfig(), images=str(demo / "images")).findings["loaders"]
    moved = {name: [float(number) for number in re.findall(r"\d\.\d+", text)] for name, text in loaders.items()}
    # On files without EXIF or transparency, torchvision's pixels are those of this program's own training.
    assert moved["as_torchvision"] == [0, 0] and "as_batchverify" not in moved
    assert moved["as_keras-load-img"][1] > 0.01 and set(moved) >= {"as_tf", "as_pillow", "as_opencv", "as_skimage"}
    assert moved["as_keras-load-img"] == moved["as_keras-generator"]


def channels_first(*layers) -> keras.Model:
    """A Siamese network for images (3, 12, 10)."""
    keras.utils.set_random_seed(5)
    image = keras.Input((3, 12, 10))
    x = keras.layers.Rescaling(1 / 255)(image)
    for layer in layers:
        x = layer(x)
    encoder = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    left, right = keras.Input((3, 12, 10), name="left"), keras.Input((3, 12, 10), name="right")
    return keras.Model(
        [left, right], keras.layers.Dense(1, activation="sigmoid")(keras.ops.abs(encoder(left) - encoder(right)))
    )


@pytest.mark.parametrize("kind", ["keras", "saved"])
def test_images_are_transposed_for_a_network_that_takes_their_channels_first(kind, tmp_path):
    model = channels_first(keras.layers.Permute((2, 3, 1)), keras.layers.Conv2D(3, 3))
    path = tmp_path / ("m.keras" if kind == "keras" else "m")
    model.save(path) if kind == "keras" else model.export(str(path), verbose=False)
    found = load_model(ModelConfig(model=str(path), pixels="0..255"))
    pictures = np.random.default_rng(3).integers(0, 256, (6, 12, 10, 3)).astype(np.float32)
    planes = pictures.transpose(0, 3, 1, 2)
    embeddings = found.encode(pictures)
    expected = model([planes, np.roll(planes, 1, axis=0)])[:, 0]
    np.testing.assert_allclose(found.compare(embeddings, np.roll(embeddings, 1, axis=0)), expected, atol=1e-6)
    assert any("images (3, 12, 10), with their channels first" in note for note in found.facts.notes)
    assert found.facts.structure.startswith("one encoder" if kind == "keras" else "whole")


@pytest.mark.processes
def test_convolutions_that_a_processor_cannot_compute_are_refused(tmp_path):
    """Without oneDNN and without a GPU, TensorFlow has no convolution with channels first."""
    channels_first(keras.layers.Conv2D(3, 3, data_format="channels_first")).save(tmp_path / "m.keras")
    doctor = [sys.executable, "-m", "batchverify", "doctor", "--model", tmp_path / "m.keras", "--pixels", "0..255"]
    without = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(doctor, env=without, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "which TensorFlow does not compute on this processor; run it on a GPU" in done.stderr


def keras_io_contrastive(k) -> keras.Model:
    """The network of keras.io's "Image similarity estimation using a Siamese Network with a contrastive loss", smaller."""
    image = k.Input((28, 28, 1))
    x = k.layers.BatchNormalization()(image)
    for _ in range(2):
        x = k.layers.AveragePooling2D(pool_size=(2, 2))(k.layers.Conv2D(4, (5, 5), activation="tanh")(x))
    x = k.layers.BatchNormalization()(k.layers.Flatten()(x))
    embedding = k.Model(image, k.layers.Dense(10, activation="tanh")(x))
    first, second = k.Input((28, 28, 1)), k.Input((28, 28, 1))
    towers = [embedding(first), embedding(second)]

    def euclidean_distance(vectors):
        x, y = vectors
        squares = tf.math.reduce_sum(tf.math.square(x - y), axis=1, keepdims=True)
        return tf.math.sqrt(tf.math.maximum(squares, 1e-7))

    merged = k.layers.Lambda(euclidean_distance, output_shape=(1,))(towers)
    output = k.layers.Dense(1, activation="sigmoid")(k.layers.BatchNormalization()(merged))
    return k.Model([first, second], output)


@pytest.mark.parametrize(("k", "name"), [(keras, "m.keras"), (tf_keras, "m.h5"), (tf_keras, "m.keras")])
def test_keras_ios_contrastive_network_scores_one_minus_what_it_gives(k, name, tmp_path):
    k.utils.set_random_seed(2)
    model = keras_io_contrastive(k)
    digits = np.random.default_rng(4).integers(0, 256, (10, 28, 28, 1)).astype(np.float32)
    model.compile("sgd", "binary_crossentropy")
    model.fit([digits, digits[::-1]], np.zeros((10, 1)), verbose=0)
    model.save(tmp_path / name)
    found = load_model(
        ModelConfig(model=str(tmp_path / name), pixels="0..255", lambdas=("euclidean",), output_is="dissimilarity")
    )
    embeddings = found.encode(digits)
    expected = 1 - model.predict([digits, digits[::-1]], verbose=0)[:, 0]
    np.testing.assert_allclose(found.compare(embeddings, embeddings[::-1]), expected, atol=1e-5)
    assert found.facts.structure.startswith("one encoder")


# Weights alone


@pytest.fixture(params=["keras 3", "keras 2"])
def weights_alone(request, tmp_path):
    """A network, the file of its weights, and the text of its architecture."""
    k = keras if request.param == "keras 3" else tf_keras
    k.utils.set_random_seed(6)
    model = siamese(l1(k), k=k)
    path = tmp_path / ("m.weights.h5" if k is keras else "m.h5")
    model.save_weights(path)
    return model, path, model.to_json()


def assert_scores_are_its_own(model, path, **options):
    found = load_model(ModelConfig(model=str(path), pixels="0..255", **options))
    embeddings = found.encode(images())
    expected = model.predict([images(), images()[::-1]], verbose=0)[:, 0]
    np.testing.assert_allclose(found.compare(embeddings, embeddings[::-1]), expected, atol=1e-5)
    assert found.facts.structure.startswith("one encoder")
    return found


@pytest.mark.parametrize("place", ["beside", "named"])
def test_weights_alone_are_scored_with_their_architecture(place, weights_alone, tmp_path):
    model, path, text = weights_alone
    file = tmp_path / ("m.json" if place == "beside" else "elsewhere.json")
    file.write_text(text)
    found = assert_scores_are_its_own(model, path, **({} if place == "beside" else {"architecture": str(file)}))
    file.write_text(text.replace('"sigmoid"', '"linear"'))
    assert load_model(
        ModelConfig(model=str(path), pixels="0..255", architecture=str(file), output_is="logit")
    ).facts.digest != (found.facts.digest)


def test_weights_without_an_architecture_are_refused_with_the_remedy(weights_alone):
    assert "give that as --architecture" in refusal(weights_alone[1])


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"class_name": "Functional"}', "no json", "[" * 10**5])
def test_an_architecture_that_is_none_is_refused(text, weights_alone, tmp_path):
    (tmp_path / "a.json").write_text(text)
    assert "--model" in refusal(weights_alone[1], architecture=str(tmp_path / "a.json"))


def test_an_architecture_that_cannot_be_read_or_is_not_needed_is_refused(weights_alone, tmp_path):
    model, path, text = weights_alone
    assert "--architecture none.json: it cannot be read" in refusal(path, architecture="none.json")
    (tmp_path / "a.json").write_text(text)
    model.save(tmp_path / "whole.keras")
    assert "has its own; leave it out" in refusal(tmp_path / "whole.keras", architecture=str(tmp_path / "a.json"))


def test_code_in_an_architecture_does_not_run(tmp_path):
    """It is said what it computes instead, as for whole files."""
    model = siamese(lambda_l1())
    model.save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.json").write_text(model.to_json())
    assert "--lambda" in refusal(tmp_path / "m.weights.h5")
    assert_scores_are_its_own(model, tmp_path / "m.weights.h5", lambdas=("l1",))
