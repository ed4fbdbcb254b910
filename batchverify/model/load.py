"""Loads a model, splits it where that is possible, and tries it on generated images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import IgnoredInputError, PreflightError, SplitError, UnsuitableModelError, short_reason
from batchverify.model.facts import ModelFacts
from batchverify.model.inputs import decide_image_shape, find_pixel_scale, order_inputs, put_channels_last, why_scale_hidden
from batchverify.model.interview import Interview
from batchverify.model.load_file import load_file
from batchverify.model.loaded import LoadedModel
from batchverify.model.pair_model import PairModel
from batchverify.model.plan import plan_encoder, plan_split, plan_whole, refuse_channels_first
from batchverify.model.precision import computes_in_16_bits, refuse_without_layers, use_tensor_float_32, with_16_bits
from batchverify.model.preprocessing import Preprocessing, decide_preprocessing, scale_contradiction
from batchverify.model.private_copy import private_model
from batchverify.model.probe_images import probe_images
from batchverify.model.runtimes import choose_runtime
from batchverify.model.split import split_model
from batchverify.model.time_limit import within_limit
from batchverify.model.trial import SPLIT_CHECK_IMAGES, TRIAL_IMAGES, try_model

_LOG = logging.getLogger(__name__)


def load_model(config: ModelConfig, is_candidate: bool = False) -> PairModel:
    """Loads the model that `config` names, splits it where that is possible, and tries it on generated images.

    Args:
        config: The model, and what its file does not say.
        is_candidate: Whether it is a candidate; what is logged about it then names it.

    Raises:
        OpenQuestionError: If its file leaves something open; everything that is open is asked at once.
        PreflightError: If it cannot be used; the message is one sentence with the remedy.
    """
    if config.trust_model_code:
        _LOG.warning("--trust-model-code: any code that %s holds runs with your rights on every worker.", config.model)
    prepare_devices()
    config = choose_runtime(config)
    with private_model(config.model) as local:  # To fetch a large model may take its time.
        return within_limit(config.model, functools.partial(_load_and_try, config, is_candidate, local))


def _load_and_try(config: ModelConfig, is_candidate: bool, local: str, say_loaded: Callable[[], None]) -> PairModel:
    interview = Interview(config)
    loaded = interview.answer(functools.partial(load_file, local=local))
    say_loaded()
    model = interview.answer(functools.partial(_try_loaded, loaded))
    interview.end()
    log_decisions(model.facts, decisions_subject(config, is_candidate))
    return model


def decisions_subject(config: ModelConfig, is_candidate: bool) -> str:
    """Returns what the lines of `log_decisions` begin with, so that those of two models are told apart."""
    return f"Candidate {config.model}: " if is_candidate else ""


def log_decisions(facts: ModelFacts, subject: str = "") -> None:
    """Logs what was decided about a model when it was loaded.

    Args:
        facts: The facts about the model.
        subject: The result of `decisions_subject`.
    """
    if facts.encodings_per_pair:
        reason = facts.structure.removeprefix("whole: ")
        _LOG.info("%sThe network runs whole, twice for each pair and once more for each image: %s.", subject, reason)
    _LOG.info("%sImages: %s.", subject, facts.preprocessing)
    for note in facts.notes:
        _LOG.info("%s%s", subject, note)


def _try_loaded(loaded: LoadedModel, config: ModelConfig) -> PairModel:
    try:
        return _make_pair_model(loaded, config)
    except PreflightError:
        raise
    except Exception as error:  # A wrong graph can raise any exception in Keras, TensorFlow and here.
        refuse_channels_first(loaded.name, error)
        raise PreflightError(
            f"--model {loaded.name}: it can be loaded but not run ({short_reason(error)}); check that it works where it was "
            "trained, and save it again."
        ) from None


def _make_pair_model(loaded: LoadedModel, config: ModelConfig) -> PairModel:
    loaded = _check_inputs(loaded)
    shape = decide_image_shape(loaded.name, loaded.inputs, config.image_size)
    shown_scale = find_pixel_scale(loaded)
    preprocessing = decide_preprocessing(config, loaded.name, shape, shown_scale, why_scale_hidden(loaded))
    model = _assemble(loaded, preprocessing, config)
    notes = [
        *model.facts.notes,
        *filter(None, [scale_contradiction(config, shown_scale)]),
        *try_model(model, config),
        *filter(None, [model.describe_runtime(_make_images(model, TRIAL_IMAGES, seed=2))]),
    ]
    model.facts = dataclasses.replace(model.facts, notes=tuple(notes))
    return model


def _check_inputs(loaded: LoadedModel) -> LoadedModel:
    """Returns the model with its inputs in order, channels last; refuses one that takes neither one nor two images."""
    loaded = put_channels_last(loaded)
    if len(loaded.inputs) == 1:
        return loaded
    if len(loaded.inputs) == 2:
        return order_inputs(loaded)
    names = ", ".join(f"'{model_input.name}'" for model_input in loaded.inputs)
    raise UnsuitableModelError(
        f"--model {loaded.name}: it has {len(loaded.inputs)} inputs, {names}; give a model with two images, or one."
    )


def _assemble(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig) -> PairModel:
    if len(loaded.inputs) == 1:
        plan = plan_encoder(loaded, preprocessing, config)
        faster = plan_encoder(_encoder_in_16_bits(loaded, config), preprocessing, config)
        return PairModel(loaded, preprocessing, None, faster, config, plan)
    if config.compare:
        raise PreflightError(
            f"--compare is for a model with one input, but --model {loaded.name} has two and a head of its own."
        )
    reason = loaded.opaque
    if loaded.graph is not None:
        try:
            return _assemble_split(loaded, loaded.graph, preprocessing, config)
        except IgnoredInputError as error:
            raise PreflightError(
                f"--model {loaded.name}: {error}, so each pair would be judged by one image; rebuild the network from its "
                "code, load its weights, and save it again."
            ) from None
        except SplitError as error:
            reason = str(error)
    refuse_without_layers(loaded.name, config, "it runs whole, as the log says")
    plan = plan_whole(loaded, preprocessing, config, reason)
    return PairModel(loaded, preprocessing, None, plan, config)


def _assemble_split(loaded: LoadedModel, graph: keras.Model, preprocessing: Preprocessing, config: ModelConfig) -> PairModel:
    split = split_model(graph)
    plan = plan_split(loaded, preprocessing, config, split)
    faster = plan
    if computes_in_16_bits(config):
        encoder = with_16_bits(split.encoder, loaded.name, config.precision)
        faster = plan_split(loaded, preprocessing, config, dataclasses.replace(split, encoder=encoder))
    model = PairModel(loaded, preprocessing, split, faster, config, plan)
    model.check_split(_make_images(model, SPLIT_CHECK_IMAGES))
    return model


def _encoder_in_16_bits(loaded: LoadedModel, config: ModelConfig) -> LoadedModel:
    """Returns an encoder as `config.precision` has it."""
    if not computes_in_16_bits(config):
        return loaded
    if loaded.graph is None:
        refuse_without_layers(loaded.name, config, loaded.opaque)
    encoder = with_16_bits(loaded.graph, loaded.name, config.precision)
    return dataclasses.replace(loaded, call=lambda images: encoder(images, training=False))


def _make_images(model: PairModel, count: int, seed: int = 0) -> np.ndarray:
    return model.preprocessing.as_loaded(probe_images(model.facts.image_shape, count, seed))


def share_cores(threads: int) -> None:
    """Limits the cores that each step of the network uses, unless a limit is set or TensorFlow is in use already.

    Args:
        threads: The largest number of cores for one step.
    """
    if not tf.config.threading.get_intra_op_parallelism_threads():
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(threads)


def prepare_devices() -> None:
    """Has GPUs take memory as they need it, and compute in whole float32."""
    _let_gpu_memory_grow()
    use_tensor_float_32(False)


def _let_gpu_memory_grow() -> None:
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # TensorFlow uses the device already.
            _LOG.warning("GPU memory growth could not be turned on; TensorFlow was in use already.")
