"""Number formats of fewer bits in which TensorFlow computes a network, where the user asks for one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason

_SIXTEEN_BITS = ("float16", "bfloat16")


def computes_in_16_bits(config: ModelConfig) -> bool:
    """Returns whether TensorFlow computes the encoder in a format of 16 bits."""
    return config.runtime == "tensorflow" and config.precision in _SIXTEEN_BITS


def with_16_bits(encoder: keras.Model, name: str, precision: str) -> keras.Model:
    """Returns a copy of an encoder that computes in Keras' mixed precision: weights and outputs stay as they are.

    Args:
        encoder: The encoder.
        name: The model's name, for messages.
        precision: `float16` or `bfloat16`.

    Raises:
        PreflightError: If a layer cannot be made again with another type.
    """
    policy = keras.DTypePolicy(f"mixed_{precision}")

    def copy_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": policy})

    try:
        copy = keras.models.clone_model(encoder, clone_function=copy_layer, recursive=True)
        copy.set_weights(encoder.get_weights())
    except Exception as error:  # A layer raises any exception where its config does not take the type.
        raise PreflightError(
            f"--precision {precision}: --model {name} cannot be computed in it ({short_reason(error)}); leave it out."
        ) from None
    return copy


def refuse_without_layers(name: str, config: ModelConfig, reason: str) -> None:
    """Refuses formats of 16 bits for a model whose encoder's layers are not at hand.

    Raises:
        PreflightError: With the reason.
    """
    if computes_in_16_bits(config):
        raise PreflightError(f"--precision {config.precision} is not for --model {name}: {reason}; leave it out.")


def use_tensor_float_32(is_used: bool) -> None:
    """Sets whether a GPU rounds float32 to 10 bits in matrix products and convolutions; TensorFlow would by default."""
    tf.config.experimental.enable_tensor_float_32_execution(is_used)


@contextlib.contextmanager
def whole_float_32() -> Iterator[None]:
    """Has a GPU compute in float32 as it is, for as long as the context lasts."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    use_tensor_float_32(False)
    try:
        yield
    finally:
        use_tensor_float_32(before)
