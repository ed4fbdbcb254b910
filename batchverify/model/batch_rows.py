"""The number of images that a network computes at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.model.loaded import LoadedModel
from batchverify.model.plan import ExecutionPlan
from batchverify.model.preprocessing import Preprocessing

_MAX_VALUES = 2**28
# TensorFlow ends the whole process where a processor's memory does not hold a batch, and larger ones are no faster there.
_MAX_BYTES_OF_AN_OPERATION = 2**29
_BYTES_PER_VALUE_IF_UNKNOWN = 128


def choose_rows(plan: ExecutionPlan, loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig) -> int:
    """Returns the number of images, or of pairs of images where the model is used whole, that are computed at once.

    It is the batch size, unless a network has one of its own, or a batch is so large that memory may not hold it: one of
    more than 2**28 values, or, on a processor, one of which an operation takes and gives more than 512 MiB. A GPU needs no
    such limit, because there a batch that memory does not hold fails alone, and is computed in smaller ones.

    Args:
        plan: The functions that encode and compare.
        loaded: The model as it was loaded.
        preprocessing: The steps between a decoded image and the network.
        config: The batch size.
    """
    if loaded.inputs[0].batch:
        return loaded.inputs[0].batch
    values = math.prod(preprocessing.image_shape)
    rows = max(1, min(config.batch_size, _MAX_VALUES // values))
    if rows <= ModelConfig.batch_size or tf.config.list_physical_devices("GPU"):
        return rows
    largest = rows * values * _BYTES_PER_VALUE_IF_UNKNOWN
    if loaded.runtime == "tensorflow":
        largest = _largest_operation_bytes(plan, preprocessing, rows)
    return max(ModelConfig.batch_size, min(rows, rows * _MAX_BYTES_OF_AN_OPERATION // largest))


def _largest_operation_bytes(plan: ExecutionPlan, preprocessing: Preprocessing, rows: int) -> int:
    """Returns the size of what the operation with the largest tensors takes and gives, for so many images or pairs of them."""
    if plan.encode:
        images = tf.TensorSpec((rows, *preprocessing.image_shape), preprocessing.layout().pixel_dtype)
        graph = trace(plan.encode, images)
    else:
        graph = trace(plan.compare, *[tf.TensorSpec((rows, plan.embedding[0]), plan.embedding[1])] * 2)
    return max(sum(map(_tensor_bytes, [*operation.inputs, *operation.outputs])) for operation in graph.get_operations())


def trace(function: Callable[..., Any], *arguments: tf.TensorSpec) -> tf.Graph:
    """Returns the graph of a function of tensors."""
    return tf.function(function, autograph=False).get_concrete_function(*arguments).graph


def _tensor_bytes(tensor: tf.Tensor) -> int:
    is_known = tensor.shape.is_fully_defined() and tensor.dtype not in (tf.resource, tf.string, tf.variant)
    return math.prod(tensor.shape.as_list()) * tensor.dtype.size if is_known else 0
