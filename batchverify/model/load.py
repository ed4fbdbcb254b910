"""Loads a model, splits it if it can be split, and tries it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging

import tensorflow as tf

from batchverify.config import ModelConfig
from batchverify.errors import IgnoredInputError, PreflightError, SplitError, short_reason
from batchverify.model.inputs import decide_image_shape, find_pixel_scale, order_inputs, why_scale_hidden
from batchverify.model.load_file import load_file
from batchverify.model.loaded import LoadedModel
from batchverify.model.pair_model import PairModel
from batchverify.model.plan import plan_encoder, plan_split, plan_whole
from batchverify.model.preprocessing import Preprocessing, decide_preprocessing, scale_contradiction
from batchverify.model.probe_images import probe_images
from batchverify.model.split import split_model
from batchverify.model.trial import PROOFS, TRIALS, try_model

_LOG = logging.getLogger(__name__)


def load_model(config: ModelConfig) -> PairModel:
    """Loads the model that `config` names, takes it apart if it can be, and tries it on images made up for that.

    Raises:
        PreflightError: if it cannot be used; in one sentence, with the remedy.
    """
    _let_gpu_memory_grow()
    loaded = load_file(config)
    try:
        return _ready(loaded, config)
    except PreflightError:
        raise
    except Exception as error:  # A graph that says what is not so leads Keras, TensorFlow and the code here to anything.
        raise PreflightError(
            f"--model {loaded.name}: it can be loaded but not run ({short_reason(error)}); check that it works where it was "
            "trained, and save it again."
        ) from None


def _ready(loaded: LoadedModel, config: ModelConfig) -> PairModel:
    name = loaded.name
    if len(loaded.inputs) not in (1, 2):
        found = ", ".join(f"'{one.name}'" for one in loaded.inputs)
        raise PreflightError(
            f"--model {name}: it has {len(loaded.inputs)} inputs, {found}; give a model with two images, or one."
        )
    if len(loaded.inputs) == 2:
        loaded = order_inputs(loaded)
    shape = decide_image_shape(name, loaded.inputs, config.image_size)
    found_scale = find_pixel_scale(loaded)
    preprocessing = decide_preprocessing(config, name, shape, found_scale, why_scale_hidden(loaded))
    model = _assemble(loaded, preprocessing, config)
    notes = [*model.facts.notes, *filter(None, [scale_contradiction(config, found_scale)])]
    notes += try_model(model, config)
    notes += filter(None, [model.judge_runtime(probe_images(model.facts.image_shape, TRIALS, seed=2))])
    model.facts = dataclasses.replace(model.facts, notes=tuple(notes))
    _LOG.info("Images: %s.", preprocessing)
    for note in notes:
        _LOG.info("%s", note)
    return model


def _assemble(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig) -> PairModel:
    if len(loaded.inputs) == 1:
        plan = plan_encoder(loaded, preprocessing, config)
        return PairModel(loaded, preprocessing, None, plan, config)
    if config.compare:
        raise PreflightError(
            f"--compare is for a model with one input, but --model {loaded.name} has two and a head of its own."
        )
    reason = loaded.opaque
    if loaded.graph is not None:
        try:
            siamese = split_model(loaded.graph)
            plan = plan_split(loaded, preprocessing, config, siamese)
            model = PairModel(loaded, preprocessing, siamese, plan, config)
            model.check_split(probe_images(model.facts.image_shape, PROOFS))
            return model
        except IgnoredInputError as error:
            raise PreflightError(
                f"--model {loaded.name}: {error}, so each pair would be judged by one image; rebuild the network from its "
                "code, load its weights, and save it again."
            ) from None
        except SplitError as error:
            reason = str(error)
    _LOG.info("The network runs whole, twice for each pair and once more for each image: %s.", reason)
    plan = plan_whole(loaded, preprocessing, config, reason)
    return PairModel(loaded, preprocessing, None, plan, config)


def share_cores(threads: int) -> None:
    """Has each of the network's steps use so many cores, unless somebody has said otherwise or TensorFlow is in use already.

    Args:
        threads: at most so many.
    """
    if not tf.config.threading.get_intra_op_parallelism_threads():
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(threads)


def _let_gpu_memory_grow() -> None:
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # TensorFlow has begun to use the device; it can't be changed any more.
            _LOG.warning("GPU memory growth could not be turned on; TensorFlow was in use already.")
