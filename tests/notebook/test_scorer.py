"""`batchverify.load(model).score`: the scores of Keras itself, of one pair or of many."""

import logging
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import batchverify


@pytest.fixture(scope="module")
def scorer(small_model):
    return batchverify.load(small_model)


@pytest.fixture
def images() -> np.ndarray:
    """Six images in the size of the model, `(6, 16, 16, 3)`."""
    return np.random.default_rng(11).integers(0, 256, (6, 16, 16, 3), np.uint8)


def by_keras(model: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray(keras.models.load_model(model)([left.astype(np.float32), right.astype(np.float32)]))[:, 0]


def test_arrays_score_as_keras_scores_them(scorer, small_model, images):
    scores = scorer.score(images[:3], images[3:])
    assert scores.dtype == np.float32 and scores.shape == (3,)
    np.testing.assert_allclose(scores, by_keras(small_model, images[:3], images[3:]), atol=1e-6)


def test_one_pair_is_a_float_and_one_against_many_an_array(scorer, images):
    score = scorer.score(images[0], images[1])
    assert type(score) is float
    many = scorer.score(images[0], list(images))
    assert many.shape == (6,) and many[1] == np.float32(score)
    np.testing.assert_array_equal(scorer.score(list(images), images[0]), many)
    assert scorer.score([images[0]], [images[1]]).shape == (1,)
    assert scorer.score([], []).shape == (0,)


def test_paths_bytes_and_pictures_score_as_arrays_do(scorer, images, tmp_path, monkeypatch):
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    expected = scorer.score(images[0], images[1])
    assert scorer.score("0.png", str(tmp_path / "1.png")) == expected
    assert scorer.score(Path("0.png").read_bytes(), Image.open("1.png")) == expected
    assert scorer.score(pd.Series(["0.png"]), [Path("1.png")]).tolist() == [np.float32(expected)]


def test_an_image_that_cannot_be_read_has_no_score(scorer, images, caplog):
    with caplog.at_level(logging.WARNING, "batchverify"):
        assert np.isnan(scorer.score(images[0], "/no/such.png"))
        scores = scorer.score([images[0], b"junk", None], images[1])
    assert np.isnan(scores).tolist() == [False, True, True]
    assert caplog.messages[0].startswith("right image /no/such.png: ")
    assert caplog.messages[1].startswith("left image in memory: ") and "1 more pairs" in caplog.messages[1]


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (["a", "b"], ["a"] * 3, "there are 2 images on the left and 3 on the right"),
        (np.zeros((4, 4, 9), np.uint8), "a", r"left, row 0 holds an array of uint8 \(4, 4, 9\)"),
        (5, "a", "left, row 0 holds int '5', which is no image"),
    ],
)
def test_a_mistake_is_one_sentence(left, right, words, scorer):
    with pytest.raises(batchverify.PreflightError, match=words):
        scorer.score(left, right)


@pytest.mark.parametrize("options", [{"pixel": "0..1"}, {"stranger_pairs": 0}])
def test_options_that_it_does_not_take_are_refused(options, small_model):
    with pytest.raises(batchverify.PreflightError, match="load takes no option"):
        batchverify.load(small_model, **options)


def test_an_output_that_is_no_score_is_an_error_or_missing(tmp_path):
    pixels, left, right = (keras.Input((16, 16, 3)) for _ in range(3))
    encoder = keras.Model(pixels, keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels)))
    distance = 1.5 * keras.ops.mean(keras.ops.abs(encoder(left) - encoder(right)), axis=-1, keepdims=True)
    keras.Model([left, right], distance).save(tmp_path / "far.keras")
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    options = {"pixels": "0..255", "output_is": "dissimilarity"}
    told = r"gave the score -0\.5 to memory:\w+ and memory:\w+, and a score lies in \[0, 1\]"
    with pytest.raises(batchverify.RunError, match=told):
        batchverify.load(tmp_path / "far.keras", **options).score(black, white)
    kept = batchverify.load(tmp_path / "far.keras", on_nan="keep", **options).score([black, black], [white, black])
    assert np.isnan(kept[0]) and kept[1] == 1


def test_two_models_score_side_by_side(scorer, small_model, images, demo):
    other = batchverify.load(None)
    before = scorer.score(images[0], images[1])
    path = str(demo / "images" / "a2_c0_w0.png")
    assert other.score(path, path) == pytest.approx(1.0, abs=1e-3)
    assert scorer.score(images[0], images[1]) == before != other.score(images[0], images[1])
    assert batchverify.load(small_model, threshold=0.75).threshold == 0.75
