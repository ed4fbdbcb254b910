"""A trained model as the pipeline uses it: images to embeddings, two embeddings to a score.

A model that cannot be taken apart is used whole: its "embedding" of an image is the image's own pixels, and its
comparison runs the network. So there is one dataflow for all models, and every image is read once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from batchverify.comparisons import SCORE_FORMULAS, as_score, compare_embeddings
from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.freezing import FrozenFunction
from batchverify.loading import LoadedModel, ModelInput, load_file
from batchverify.model.facts import ModelFacts
from batchverify.preprocessing import Preprocessing, contradiction, decide_preprocessing, pixels_in_graph
from batchverify.runtimes import on_runtime
from batchverify.siamese import IgnoredInputError, Siamese, SplitError, prove, split_siamese
from batchverify.trials import trial_images

_LOG = logging.getLogger(__name__)
_FLOATS_COMPARED_AT_ONCE = 2**24
_MOST_PAIRS_AT_ONCE = 8192
_TRIALS, _PROOFS = 12, 6
_MOST_DIFFERENCE = 1e-3
_MOST_PIXELS = 2**22
_NUMBERS_ENCODED_AT_ONCE = 2**28


class PairModel:
    """A Siamese network, ready to be called with NumPy arrays.

    Every call has one fixed shape, padded at the end, so that there is one trace of each function. A call that
    exhausts the device's memory is repeated with half the rows, and the smaller shape is kept.

    Attributes:
        facts: what a run writes down about the model.
        preprocessing: what is done to an image before the network sees it.
        loaded: the model as it was loaded.
        siamese: its two parts; None where it is used whole, or has one input.
    """

    def __init__(
        self, loaded: LoadedModel, preprocessing: Preprocessing, siamese: Siamese | None, plan: _Plan, config: ModelConfig
    ):
        self.loaded, self.preprocessing, self.siamese, self._plan = loaded, preprocessing, siamese, plan
        self._runtime = config.runtime, config.precision
        numbers = preprocessing.height * preprocessing.width * preprocessing.channels
        rows = loaded.inputs[0].batch or max(1, min(config.batch_size, _NUMBERS_ENCODED_AT_ONCE // numbers))
        self._encode = plan.encode and FixedShapeCall(on_runtime(plan.encode, config), rows)
        size, dtype = plan.embedding
        pairs = max(1, min(_MOST_PAIRS_AT_ONCE, _FLOATS_COMPARED_AT_ONCE // size))
        compare = FrozenFunction(plan.compare) if plan.encode else on_runtime(plan.compare, config)
        self._compare = FixedShapeCall(compare, pairs if plan.encode else rows)
        self.facts = ModelFacts(
            path=loaded.name,
            digest=loaded.digest,
            image_shape=(preprocessing.height, preprocessing.width, preprocessing.channels),
            embedding_size=size,
            embedding_bytes=size * np.dtype(dtype).itemsize,
            structure=plan.structure,
            encodings_per_image=plan.encodings_per_image,
            encodings_per_pair=plan.encodings_per_pair,
            preprocessing=str(preprocessing),
            notes=plan.notes,
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns embeddings, float32 `(n, d)`, of uint8 images `(n, height, width, channels)`; uint8 if used whole."""
        return images.reshape(len(images), -1) if self._encode is None else self._encode(images)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns scores, float32 `(n,)`, of two arrays of embeddings `(n, d)`."""
        return self._compare(left, right)

    def operations(self) -> tuple[int, int]:
        """Returns floating-point operations of encoding one image, and of comparing one pair, as TensorFlow counts them."""
        images = tf.TensorSpec((1, *self.facts.image_shape), tf.uint8)
        kept = tf.TensorSpec((1, self.facts.embedding_size), self._plan.embedding[1])
        return (
            _count_operations(self._plan.encode, images) if self._plan.encode else 0,
            _count_operations(self._plan.compare, kept, kept),
        )

    def judge_runtime(self, images: np.ndarray) -> str | None:
        """Compares another runtime's scores with TensorFlow's own on uint8 images `(n, height, width, channels)`, n > 0.

        Returns:
            By how much they differ, in words; None where TensorFlow runs the network.

        Raises:
            PreflightError: if they differ by more than rounding does and no less precision was asked for.
        """
        runtime, precision = self._runtime
        if runtime == "tensorflow":
            return None
        difference = self._difference(images)
        if precision == "float32" and not difference <= _MOST_DIFFERENCE:
            raise PreflightError(
                f"--runtime {runtime}: its scores differ from TensorFlow's by {difference:.2g}, "
                f"more than {_MOST_DIFFERENCE:g}; leave --runtime out."
            )
        return (
            f"Run by {runtime} in {precision}: on {len(images)} images its scores differ from TensorFlow's by {difference:.1g}."
        )

    def _difference(self, images: np.ndarray) -> float:

        def scores(encode: Callable[[Any], Any] | None, compare: Callable[[Any, Any], Any]) -> np.ndarray:
            kept = np.asarray(encode(images)) if encode else images.reshape(len(images), -1)
            return np.stack([np.asarray(compare(kept, np.roll(kept, shift, axis=0))) for shift in range(min(3, len(images)))])

        return float(np.nanmax(np.abs(scores(self._encode, self._compare) - scores(self._plan.encode, self._plan.compare))))

    def prove(self, images: np.ndarray) -> None:
        """Compares the parts with the whole network on uint8 images `(n, height, width, channels)`.

        Raises:
            SplitError: if they differ.
        """
        if self.siamese is not None and len(images):
            dtype = self.loaded.inputs[0].dtype
            left = self.preprocessing.to_input(images, dtype)
            right = self.preprocessing.to_input(np.roll(images, 1, axis=0), dtype)
            prove(self.siamese, self.loaded.call, left, right)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a model is run.

    Attributes:
        structure: the same in words.
        encode: uint8 images to embeddings `(n, d)`, as tensors; None to keep the pixels.
        compare: two of what is kept of an image to scores `(n,)`, as tensors.
        embedding: numbers and type of what is kept of an image.
        encodings_per_image: see `ModelFacts`.
        encodings_per_pair: see `ModelFacts`.
        notes: what was found and decided.
    """

    structure: str
    encode: Callable[[Any], Any] | None
    compare: Callable[[Any, Any], Any]
    embedding: tuple[int, str]
    encodings_per_image: int
    encodings_per_pair: int
    notes: tuple[str, ...]


class FixedShapeCall:
    """Calls a function on slices of `rows` rows, the last one padded, and joins the results.

    Args:
        function: takes arrays of `rows` rows each, returns one array of `rows` rows.
        rows: at most so many at once.
    """

    def __init__(self, function: Callable[..., np.ndarray], rows: int):
        self._function, self.rows = function, rows

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        while True:
            rows = self.rows  # Another thread may halve them meanwhile.
            try:
                # Of an empty array one padded slice is computed, for the shape of its rows.
                starts = range(0, max(1, len(arrays[0])), rows)
                return np.concatenate([self._slice(arrays, start, rows) for start in starts])
            except tf.errors.ResourceExhaustedError:
                if rows == 1:
                    raise
                self.rows = min(self.rows, rows // 2)
                _LOG.warning("The device is out of memory; from here on it is given %d rows at once.", self.rows)

    def _slice(self, arrays: tuple[np.ndarray, ...], start: int, rows: int) -> np.ndarray:
        parts = [array[start : start + rows] for array in arrays]
        count = len(parts[0])
        return self._function(*(_padded(part, rows) for part in parts))[:count]


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
            f"--model {loaded.name}: it can be loaded but not run ({_first_line(error)}); check that it works where it was "
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
        loaded = _in_order(loaded)
    shape = _image_shape(name, loaded.inputs, config.image_size)
    found_scale = _pixels_shown(loaded)
    preprocessing = decide_preprocessing(config, name, shape, found_scale, _hidden(loaded))
    model = _assemble(loaded, preprocessing, config)
    notes = [*model.facts.notes, *filter(None, [contradiction(config, found_scale)])]
    notes += _try_out(model, config)
    notes += filter(None, [model.judge_runtime(trial_images(model.facts.image_shape, _TRIALS, seed=2))])
    model.facts = dataclasses.replace(model.facts, notes=tuple(notes))
    _LOG.info("Images: %s.", preprocessing)
    for note in notes:
        _LOG.info("%s", note)
    return model


def _assemble(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig) -> PairModel:
    if len(loaded.inputs) == 1:
        plan = _embedding_plan(loaded, preprocessing, config)
        return PairModel(loaded, preprocessing, None, plan, config)
    if config.compare:
        raise PreflightError(
            f"--compare is for a model with one input, but --model {loaded.name} has two and a head of its own."
        )
    reason = loaded.opaque
    if loaded.graph is not None:
        try:
            siamese = split_siamese(loaded.graph)
            plan = _split_plan(loaded, preprocessing, config, siamese)
            model = PairModel(loaded, preprocessing, siamese, plan, config)
            model.prove(trial_images(model.facts.image_shape, _PROOFS))
            return model
        except IgnoredInputError as error:
            raise PreflightError(
                f"--model {loaded.name}: {error}, so each pair would be judged by one image; rebuild the network from its "
                "code, load its weights, and save it again."
            ) from None
        except SplitError as error:
            reason = str(error)
    _LOG.info("The network runs whole, twice for each pair and once more for each image: %s.", reason)
    plan = _whole_plan(loaded, preprocessing, config, reason)
    return PairModel(loaded, preprocessing, None, plan, config)


def _split_plan(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig, siamese: Siamese) -> _Plan:
    to_score = _to_score(loaded, config)
    dtype = loaded.inputs[0].dtype
    sample = siamese.encode(preprocessing.to_input(np.zeros((1, *_shape(preprocessing)), np.uint8), dtype))
    shapes = [tuple(tensor.shape[1:]) for tensor in sample]
    bounds = np.cumsum([0, *(math.prod(shape) for shape in shapes)]).tolist()
    types = [tensor.dtype for tensor in siamese.head.inputs]

    def encode(images: Any) -> Any:
        tensors = siamese.encode(preprocessing.to_input(images, dtype))
        return tf.concat([_flat(tensor) for tensor in tensors], axis=1)

    def tensors_of(embeddings: Any) -> list[Any]:
        parts = zip(bounds, bounds[1:], shapes, strict=False)
        return [tf.reshape(embeddings[:, start:end], [-1, *shape]) for start, end, shape in parts]

    def compare(left: Any, right: Any) -> Any:
        tensors = [*tensors_of(left)[siamese.left], *tensors_of(right)[siamese.right]]
        cast = [keras.ops.cast(tensor, kind) for tensor, kind in zip(tensors, types, strict=True)]
        return to_score(siamese.head(cast, training=False))

    structure = (
        "one encoder for both images, each image encoded once"
        if siamese.shared
        else "an encoder for the left image and another for the right, each image encoded once by each"
    )
    notes = loaded.notes
    return _Plan(structure, encode, compare, (bounds[-1], "float32"), 1 if siamese.shared else 2, 0, notes)


def _embedding_plan(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig) -> _Plan:
    kind = config.compare
    if kind is None:
        formulas = "; ".join(f"{name}: {formula}" for name, formula in SCORE_FORMULAS.items())
        raise PreflightError(
            f"--model {loaded.name}: it has one input, '{loaded.inputs[0].name}', so it is an encoder without a head; "
            f"say how two embeddings are compared, with --compare ({formulas})."
        )
    dtype = loaded.inputs[0].dtype

    def encode(images: Any) -> Any:
        return _flat(loaded.call(preprocessing.to_input(images, dtype)))

    def compare(left: Any, right: Any) -> Any:
        return tf.reshape(compare_embeddings(kind, left, right), [-1])

    size = int(_trial_call(loaded, lambda: encode(_blank(loaded, preprocessing))).shape[1])
    structure = f"an encoder, each image encoded once; score {SCORE_FORMULAS[kind]}, as --compare {kind} says"
    return _Plan(structure, encode, compare, (size, "float32"), 1, 0, loaded.notes)


def _whole_plan(loaded: LoadedModel, preprocessing: Preprocessing, config: ModelConfig, reason: str) -> _Plan:
    to_score = _to_score(loaded, config)
    dtype = loaded.inputs[0].dtype
    shape = _shape(preprocessing)

    def compare(left: Any, right: Any) -> Any:
        pair = (preprocessing.to_input(tf.reshape(side, [-1, *shape]), dtype) for side in (left, right))
        return to_score(loaded.call(*pair))

    structure = f"whole: {reason}"
    return _Plan(structure, None, compare, (math.prod(shape), "uint8"), 2, 2, loaded.notes)


def _to_score(loaded: LoadedModel, config: ModelConfig) -> Callable[[Any], Any]:
    def to_score(output: Any) -> Any:
        shape = tuple(output.shape[1:])
        if math.prod(shape) == 2:
            if config.match_column is None:
                raise PreflightError(
                    f"--model {loaded.name}: its output has two columns; say which one is the probability of a match, "
                    "--match-column 0 or --match-column 1."
                )
            output = tf.reshape(output, [-1, 2])[:, config.match_column]
        elif math.prod(shape) != 1:
            raise PreflightError(
                f"--model {loaded.name}: its output has the shape (n, {', '.join(map(str, shape))}); give one score."
            )
        return tf.cast(tf.reshape(as_score(config.output_is or "score", output), [-1]), tf.float32)

    return to_score


def _try_out(model: PairModel, config: ModelConfig) -> list[str]:
    """Scores made-up images and refuses what cannot be a score; returns what else was noticed."""
    name = model.loaded.name
    images = trial_images(model.facts.image_shape, _TRIALS, seed=1)
    with ThreadPoolExecutor(2) as threads:  # each with its share of the cores, as in a run
        first, second = (threads.submit(model.encode, some) for some in (images, images[::-1]))
    embeddings, turned = (_trial_call(model.loaded, encoding.result) for encoding in (first, second))
    identity = _trial_call(model.loaded, lambda: model.compare(embeddings, embeddings))
    others = np.stack([model.compare(embeddings, np.roll(embeddings, shift, axis=0)) for shift in range(1, len(images))])
    every = np.concatenate([identity[None], others])
    if not np.all(np.isfinite(every)):
        raise PreflightError(
            f"--model {name}: it gives scores that are no numbers on images made up for trial; check its weights."
        )
    notes = []
    if np.ptp(every) == 0:
        found = f"every pair scores {every.flat[0]:.4g}, whatever the images are: the network is untrained or dead"
        if model.loaded.opaque:
            raise PreflightError(f"--model {name}: on trial {found}; check --pixels, and how it was trained and saved.")
        notes.append(f"On trial {found}.")
    else:
        _refuse_ignored(name, every)
    if every.min() < -1e-6 or every.max() > 1 + 1e-6:
        raise PreflightError(
            f"--model {name}: on trial its output lies between {every.min():.3g} and {every.max():.3g}, "
            "but a score lies in [0, 1]; say what it is, --output-is distance, logit or cosine."
        )
    if config.output_is is None and not config.compare and identity.max() <= 1e-3 < 10 * others.mean() and others.mean() > 0.01:
        raise PreflightError(
            f"--model {name}: on trial an image against itself scores {identity.max():.2g}, and different images "
            f"{others.mean():.2g}, so the output looks like a distance; add --output-is distance, "
            "or --output-is score if it is none."
        )
    again = model.compare(turned[::-1], embeddings)
    if float(np.max(np.abs(again - identity))) > 1e-3:
        notes.append("The same images score differently when asked again: dropout or batch statistics are left on.")
    return notes


def _refuse_ignored(name: str, every: np.ndarray) -> None:
    """Refuses a model of which `every` score `(shifts, n)` is the same whatever one of the images is."""
    count = every.shape[1]
    by_right = np.stack([every[shift, (np.arange(count) + shift) % count] for shift in range(count)])
    for scores, side in ((every, "right"), (by_right, "left")):
        if np.all(np.ptp(scores, axis=0) == 0):
            raise PreflightError(
                f"--model {name}: its score does not depend on the {side} image at all, as feeding it noise shows; "
                "rebuild the network from its code, load its weights, and save it again."
            )


def _trial_call(loaded: LoadedModel, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except PreflightError:
        raise
    except Exception as error:  # A model raises whatever its layers do.
        raise PreflightError(
            f"--model {loaded.name}: it cannot be called on images of its own input's shape ({_first_line(error)}); "
            "check that it works where it was trained, and export it again."
        ) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:200]


# Inputs

_LEFT_AND_RIGHT = [
    ("left", "right"), ("anchor", "other"), ("anchor", "validation"), ("input", "validation"), ("query", "reference"),
    ("probe", "reference"), ("first", "second"), ("a", "b"), ("1", "2"), ("0", "1"), ("x1", "x2"),
]  # fmt: skip


def _in_order(loaded: LoadedModel) -> LoadedModel:
    """Puts the left input first, where the names say which one that is."""
    names = [one.name for one in loaded.inputs]
    order = _order_by_name(names)
    if order == (0, 1):
        return loaded
    if order is None:
        note = f"Inputs '{names[0]}' and '{names[1]}' are taken as left and right by their position."
        order = (0, 1)
    else:
        note = f"Inputs '{names[order[0]]}' and '{names[order[1]]}' are taken as left and right by their names."
    call, graph = loaded.call, loaded.graph
    if order == (1, 0):
        original = loaded.call
        call = lambda left, right: original(right, left)  # noqa: E731
        graph = graph and keras.Model([graph.inputs[1], graph.inputs[0]], graph.outputs[0])
    inputs = tuple(loaded.inputs[position] for position in order)
    return dataclasses.replace(loaded, call=call, inputs=inputs, graph=graph, notes=(*loaded.notes, note))


def _order_by_name(names: list[str]) -> tuple[int, int] | None:
    words = [set(re.split(r"[^a-z0-9]+|(?<=[a-z])(?=\d)", name.lower())) for name in names]
    for left, right in _LEFT_AND_RIGHT:
        for order in ((0, 1), (1, 0)):
            first, second = words[order[0]], words[order[1]]
            if left in first - second and right in second - first:
                return order
    return None


def _image_shape(name: str, inputs: tuple[ModelInput, ...], wanted: tuple[int, int] | None) -> tuple[int, int, int]:
    shapes = {one.shape for one in inputs}
    for one in inputs:
        if len(one.shape) != 3 or one.shape[2] not in (1, 3):
            lengths = ", ".join(str(length) for length in one.shape)
            raise PreflightError(
                f"--model {name}: its input '{one.name}' has the shape (n, {lengths}), which is no batch of images with 1 or 3 "
                "channels last; give a model that takes images."
            )
    if len(shapes) != 1:
        raise PreflightError(
            f"--model {name}: its inputs take images of different shapes, {shapes}; give one whose inputs are alike."
        )
    height, width, channels = inputs[0].shape
    if wanted and (height or wanted[0], width or wanted[1]) != tuple(wanted):
        raise PreflightError(
            f"--image-size is {wanted[0]}x{wanted[1]}, but --model {name} takes {height}x{width}; leave it out."
        )
    if not wanted and (height is None or width is None):
        raise PreflightError(
            f"--model {name}: its input leaves the size of the images open; say it, --image-size 160 or 160x120."
        )
    size = wanted or (height, width)
    if not 0 < int(size[0] or 0) * int(size[1] or 0) <= _MOST_PIXELS:
        raise PreflightError(
            f"--model {name}: it says that it takes images of {size[0]}x{size[1]}, which is nothing or more than "
            f"{_MOST_PIXELS:,} pixels; give a model of smaller ones."
        )
    return int(size[0] or 0), int(size[1] or 0), int(channels or 0)


def _pixels_shown(loaded: LoadedModel) -> tuple[str, str] | None:
    if any(one.dtype == "uint8" for one in loaded.inputs):
        return "0..255", "the input's type uint8 shows"
    return pixels_in_graph(loaded.graph, loaded.graph.inputs[0]) if loaded.graph is not None else None


def _hidden(loaded: LoadedModel) -> str:
    return "" if loaded.graph is not None else f"{loaded.opaque}, so nothing shows"


def _shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    return preprocessing.height, preprocessing.width, preprocessing.channels


def _blank(loaded: LoadedModel, preprocessing: Preprocessing) -> np.ndarray:
    return np.zeros((loaded.inputs[0].batch or 1, *_shape(preprocessing)), np.uint8)


# Arrays and tensors


def _count_operations(function: Callable[..., Any], *arguments: tf.TensorSpec) -> int:
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    settings = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    return tf.compat.v1.profiler.profile(graph, options=settings).total_float_ops


def _flat(tensor: Any) -> Any:
    return tf.cast(tf.reshape(tensor, [tf.shape(tensor)[0], math.prod(tensor.shape[1:])]), tf.float32)


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])


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
