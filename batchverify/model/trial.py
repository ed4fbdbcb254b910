"""A trial of a model on generated images, which finds outputs that cannot be scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import keras
import numpy as np

from batchverify.config import ModelConfig
from batchverify.errors import OpenQuestion, OpenQuestionError, PreflightError
from batchverify.model.pair_model import PairModel
from batchverify.model.plan import call_in_trial
from batchverify.model.probe_images import probe_images
from batchverify.model.safe_layers import Comparison
from batchverify.schema import SCORE_ROUNDING

TRIAL_IMAGES, SPLIT_CHECK_IMAGES = 12, 6
_MAX_DIFFERENCE_OF_REPEATS = 1e-3
_SMALLEST_DISTANCE = 1e-3
_SAME_VALUES = ("Identity", "Flatten", "Reshape", "Squeeze", "Cast")
_ROOTS = ("Sqrt", "Norm")
_DISTANCES = ("euclidean", "squared_euclidean", "manhattan", "cosine_distance")


@dataclasses.dataclass(frozen=True)
class _TrialScores:
    """The scores of generated images.

    Attributes:
        by_shift: float32 `(n, n)`; row k compares each image with the image k places before it, so row 0 compares each image
            with itself.
        difference: The largest difference of a score when it is computed again; see `difference_when_asked_again`.
    """

    by_shift: np.ndarray
    difference: float

    @property
    def identity(self) -> np.ndarray:
        """The scores float32 `(n,)` of each image with itself."""
        return np.asarray(self.by_shift[0])

    @property
    def others(self) -> np.ndarray:
        """The scores float32 `(n - 1, n)` of each image with each other image."""
        return np.asarray(self.by_shift[1:])


def try_model(model: PairModel, config: ModelConfig) -> list[str]:
    """Scores generated images, and returns notes about what is unusual.

    Raises:
        PreflightError: If the model cannot be called, or its output cannot be a score.
    """
    name, scores = model.loaded.name, _score_probe_images(model)
    _refuse_not_finite(name, scores)
    notes = []
    if np.ptp(scores.by_shift) == 0:
        notes.append(_note_constant_score(model, scores))
    else:
        _refuse_ignored_input(name, scores)
    _refuse_out_of_range(model, scores, config)
    _refuse_distance(model, scores, config)
    return [*notes, *_note_randomness(scores)]


def _score_probe_images(model: PairModel) -> _TrialScores:
    images = model.preprocessing.as_loaded(probe_images(model.facts.image_shape, TRIAL_IMAGES, seed=1))
    with ThreadPoolExecutor(2) as threads:  # Each thread uses its share of the cores, as in a run.
        encodings = [threads.submit(encode, images) for encode in (model.encode, partial(encode_every_second, model))]
    embeddings, again = (call_in_trial(model.loaded, encoding.result) for encoding in encodings)
    identity = call_in_trial(model.loaded, lambda: model.compare(embeddings, embeddings))
    others = [model.compare(embeddings, np.roll(embeddings, shift, axis=0)) for shift in range(1, len(images))]
    by_shift = np.stack([identity, *others])
    return _TrialScores(by_shift, difference_when_asked_again(model, embeddings, again, by_shift[[0, 2]]))


def encode_every_second(model: PairModel, images: np.ndarray) -> np.ndarray:
    """Returns the embeddings of every second image, encoded in batches that these images alone fill.

    A batch of `model.encode(images)` holds others too, or rows of zeros, so that an encoder that looks at its whole batch
    gives other embeddings there.
    """
    chosen = images[::2]
    return model.encode(_repeated(chosen, model.rows_at_once()[0]))[: len(chosen)]


def difference_when_asked_again(model: PairModel, embeddings: np.ndarray, again: np.ndarray, scores: np.ndarray) -> float:
    """Returns the largest difference of a score when images are encoded and compared again, in batches of other images.

    Args:
        model: The model.
        embeddings: The embeddings `(n, d)` of an even number of images.
        again: The result of `encode_every_second` for these images.
        scores: The scores float32 `(2, n)` of each image with itself and with the image two places before it.
    """
    # In a network that runs whole, two equal images are treated alike whatever the batch, and only different ones tell.
    pairs = ((again, embeddings[::2]), (again, np.roll(again, 1, axis=0)))
    rows = model.rows_at_once()[1]
    repeated = [model.compare(*(_repeated(side, rows) for side in pair))[: len(again)] for pair in pairs]
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(np.stack(repeated) - scores[:, ::2])))


def _repeated(rows: np.ndarray, least: int) -> np.ndarray:
    """Returns `rows`, repeated until they are at least as many as `least`."""
    return np.resize(rows, (max(least, len(rows)), *rows.shape[1:]))


def _refuse_not_finite(name: str, scores: _TrialScores) -> None:
    if not np.all(np.isfinite(scores.by_shift)):
        raise PreflightError(
            f"--model {name}: it gives scores that are no numbers on images made up for trial; check its weights."
        )


def _note_constant_score(model: PairModel, scores: _TrialScores) -> str:
    """Returns a note on a model that gives every pair the same score.

    Raises:
        PreflightError: If the layers cannot be seen, so that a wrong `--pixels` may be the cause.
    """
    finding = f"every pair scores {scores.by_shift.flat[0]:.4g}, whatever the images are: the network is untrained or dead"
    if model.loaded.opaque:
        raise PreflightError(
            f"--model {model.loaded.name}: on trial {finding}; check --pixels, and how it was trained and saved."
        )
    return f"On trial {finding}."


def _refuse_ignored_input(name: str, scores: _TrialScores) -> None:
    """Refuses a model whose scores stay the same whatever one of the two images is."""
    count = len(scores.identity)
    by_right = np.stack([scores.by_shift[shift, (np.arange(count) + shift) % count] for shift in range(count)])
    for side, of_side in (("right", scores.by_shift), ("left", by_right)):
        if np.all(np.ptp(of_side, axis=0) == 0):
            raise PreflightError(
                f"--model {name}: its score does not depend on the {side} image at all, as a trial with noise shows; "
                "rebuild the network from its code, load its weights, and save it again."
            )


def _refuse_out_of_range(model: PairModel, scores: _TrialScores, config: ModelConfig) -> None:
    lowest, highest = scores.by_shift.min(), scores.by_shift.max()
    if lowest >= -SCORE_ROUNDING and highest <= 1 + SCORE_ROUNDING:
        return
    problem = (
        f"--model {model.loaded.name}: on trial its output lies between {lowest:.3g} and {highest:.3g}, "
        "but a score lies in [0, 1]; say what it is, --output-is distance, logit or cosine."
    )
    if config.output_is is not None:
        raise PreflightError(problem)
    is_cosine = lowest >= -1 - SCORE_ROUNDING and highest <= 1 + SCORE_ROUNDING
    likeliest = "distance" if lowest >= -SCORE_ROUNDING else "cosine" if is_cosine else "logit"
    is_distance = lowest >= -SCORE_ROUNDING and scores.identity.max() <= _SMALLEST_DISTANCE
    _ask_about_output(problem, likeliest, "distance" if is_distance else _output_that_graph_shows(model))


def _refuse_distance(model: PairModel, scores: _TrialScores, config: ModelConfig) -> None:
    if config.output_is is not None or config.compare:
        return
    identity, others = scores.identity.max(), scores.others.mean()
    if identity <= _SMALLEST_DISTANCE < 10 * others and others > 0.01:
        problem = (
            f"--model {model.loaded.name}: on trial an image against itself scores {identity:.2g}, and different images "
            f"{others:.2g}, so the output looks like a distance; add --output-is distance, or dissimilarity if it lies in "
            "[0, 1], or --output-is score if it is none."
        )
        _ask_about_output(problem, "distance", _output_that_graph_shows(model))


def _output_that_graph_shows(model: PairModel) -> str | None:
    """Returns what the last layer of a model shows its output to be; None where it may be several things."""
    graph = model.loaded.graph
    if graph is None:
        return None
    last = _last_operation(graph)
    if isinstance(last, Comparison):
        return "cosine" if last.kind == "cosine" else "distance" if last.kind in _DISTANCES else None
    if type(last).__name__ in _ROOTS:
        return "distance"
    if isinstance(last, keras.layers.Dense) and last.activation is keras.activations.linear:
        return "logit"
    return "cosine" if isinstance(last, keras.layers.Dot) and last.normalize else None


def _last_operation(graph: keras.Model) -> Any:
    """Returns the operation that computes a model's output, before those that leave its values as they are."""
    tensor = graph.outputs[0]
    while True:
        operation, node, _ = tensor._keras_history
        if hasattr(operation, "layers") and getattr(operation, "outputs", None):
            tensor = operation.outputs[0]
        elif type(operation).__name__ in _SAME_VALUES:
            tensor = operation._inbound_nodes[node].input_tensors[0]
        else:
            return operation


def _ask_about_output(problem: str, likeliest: str, shown: str | None) -> NoReturn:
    """Asks what the output is.

    Args:
        problem: The question.
        likeliest: The answer to go on with on trial.
        shown: The answer, if the model shows it.
    """
    option = ("--output-is", shown or "MEANING")
    raise OpenQuestionError(OpenQuestion(problem, option, {"output_is": shown or likeliest}, is_about_output=True))


def _note_randomness(scores: _TrialScores) -> Iterator[str]:
    if not scores.difference <= _MAX_DIFFERENCE_OF_REPEATS:
        yield "The same images get different scores when they are scored again: dropout or batch statistics are left on."
