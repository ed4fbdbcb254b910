"""The cut between encoder and head, found in the graph and proven."""

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import IgnoredInputError, SplitError
from batchverify.model.load import load_model
from batchverify.model.pair_model import FixedShapeCall
from batchverify.model.split import split_model

SHAPE = (8, 8, 3)


def tower(name=None) -> keras.Model:
    pixels = keras.Input(SHAPE)
    return keras.Model(pixels, keras.layers.Dense(5, activation="tanh")(keras.layers.Flatten()(pixels)), name=name)


def two_inputs():
    return keras.Input(SHAPE, name="left"), keras.Input(SHAPE, name="right")


def nested_encoder():
    encoder, (left, right) = tower(), two_inputs()
    distance = keras.ops.abs(encoder(left) - encoder(right))
    return keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(distance))


def shared_layers_written_out_twice():
    left, right = two_inputs()
    flat, dense = keras.layers.Flatten(), keras.layers.Dense(4)
    distance = keras.layers.Subtract()([dense(flat(left)), dense(flat(right))]) ** 2
    return keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(distance))


def concatenated_with_two_dense_layers():
    encoder, (left, right) = tower(), two_inputs()
    x = keras.layers.Concatenate()([encoder(left), encoder(right)])
    return keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(keras.layers.Dense(3)(x)))


def called_twice_for_each_image():
    encoder, (left, right) = tower(), two_inputs()
    difference = keras.layers.Subtract()([encoder(left), encoder(right)])
    product = keras.layers.Multiply()([encoder(left), encoder(right)])
    return keras.Model([left, right], keras.layers.Dense(1)(keras.layers.Concatenate()([difference, product])))


def called_twice_for_one_image():
    encoder, (left, right) = tower(), two_inputs()
    joined = keras.layers.Concatenate()([encoder(left), encoder(right), encoder(left)])
    return keras.Model([left, right], keras.layers.Dense(1)(joined))


BUILDERS = [
    nested_encoder, shared_layers_written_out_twice, concatenated_with_two_dense_layers, called_twice_for_each_image,
    called_twice_for_one_image,
]  # fmt: skip


@pytest.mark.parametrize("build", BUILDERS)
def test_the_parts_give_the_scores_of_the_whole(build):
    model = build()
    siamese = split_model(model)
    rng = np.random.default_rng(0)
    left, right = (rng.uniform(0, 255, (7, *SHAPE)).astype(np.float32) for _ in range(2))
    parts = siamese.score(left, right)
    np.testing.assert_allclose(parts, model([left, right]), atol=1e-5)


def test_towers_that_share_nothing_keep_an_encoder_each():
    left, right = two_inputs()
    distance = keras.ops.abs(tower("one")(left) - tower("other")(right))
    assert not split_model(keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(distance))).shared


def test_images_that_meet_before_any_weight_cannot_be_split():
    left, right = two_inputs()
    distance = keras.layers.Flatten()(keras.ops.abs(left - right))
    with pytest.raises(SplitError, match="meet before any layer with weights"):
        split_model(keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(distance)))


def test_layers_that_are_called_twice_on_each_image_are_one_encoder(tmp_path):
    called_twice_for_each_image().save(tmp_path / "m.keras")
    model = load_model(ModelConfig(model=str(tmp_path / "m.keras"), pixels="0..1", output_is="logit"))
    assert model.facts.structure.startswith("one encoder for both images")


def test_an_input_that_does_not_reach_the_output_is_found():
    left, right = two_inputs()
    encoder = tower()
    encoder(right)
    with pytest.raises(IgnoredInputError, match="'right'"):
        split_model(keras.Model([left, right], keras.layers.Dense(1)(encoder(left))))


def test_a_call_that_exhausts_the_memory_is_repeated_with_half():
    asked = []

    def at_most_two(rows):
        asked.append(len(rows))
        if len(rows) > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return rows * 2

    call = FixedShapeCall(at_most_two, 8)
    np.testing.assert_array_equal(call(np.arange(5.0)), np.arange(5.0) * 2)
    assert asked[:2] == [8, 4] and set(asked[2:]) == {2}
    call(np.arange(3.0))
    assert call.rows == 2 and asked[-2:] == [2, 2]


def test_a_thread_that_halves_the_rows_costs_another_one_none():
    first_is_in, halved = threading.Event(), threading.Event()

    def at_most_four_but_once(rows):
        if not first_is_in.is_set():
            first_is_in.set()
            assert halved.wait(20)
        elif len(rows) > 4:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return rows * 2

    call, rows = FixedShapeCall(at_most_four_but_once, 8), np.arange(20)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(call, rows)
        assert first_is_in.wait(20)
        np.testing.assert_array_equal(call(rows), rows * 2)
        halved.set()
        np.testing.assert_array_equal(first.result(), rows * 2)
    assert call.rows == 4
