"""Examines a trained model: can its scores be believed?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batchverify.config import ModelConfig, VerificationConfig
from batchverify.errors import PreflightError
from batchverify.schema import is_match
from batchverify.words import agree, counted_of

if TYPE_CHECKING:
    from batchverify.images.reader import ImageReader
    from batchverify.model.calibration import Calibration
    from batchverify.model.identity_bound import IdentityBound
    from batchverify.model.pair_model import PairModel

_MAX_IMAGES = 512
_PROBE_IMAGES = 96
_TOLERANCE = 1e-4
_MAX_DIFFERENCE = 1e-3
_COLLAPSED, _NEARLY_ALL = 1e-3, 0.98
# A folder may hold few subjects, and has no labels: strangers are judged among 50 images or more. A tenth may match.
_STRANGERS_OF_AN_IMAGE, _LEAST_IMAGES, _MANY_STRANGERS = 16, 50, 0.1
_STEADINESS_IMAGES, _MAX_CHANGED_PIXELS, _MANY_REJECTED = 40, 25_000_000, 0.1
_SHIFTS = (1, 2, 3, 5, 8, 13, 21)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The findings about a model.

    Attributes:
        findings: The measurements and facts by section, then by name.
        faults: The faults of the model, each with its remedy; empty if the model is sane.
    """

    findings: dict[str, dict[str, Any]]
    faults: list[str]


def examine(config: ModelConfig, images: str | None = None, manifest: str | None = None) -> Diagnosis:
    """Examines a model.

    Args:
        config: The model; what it leaves open is taken from the sidecar.
        images: A folder of images to measure on.
        manifest: A manifest whose images to measure on. Without both, the images are generated.

    Raises:
        PreflightError: If the model cannot be loaded, or fewer than two images can be read.
    """
    from batchverify.model.identity_bound import UNKNOWN_BOUND, find_identity_bound
    from batchverify.model.load import load_model
    from batchverify.model.registry import resolve_models
    from batchverify.model.sidecar import apply_sidecar, read_sidecar

    config, _ = resolve_models(config)
    sidecar = read_sidecar(config.model)
    config = apply_sidecar(config, sidecar)
    model = load_model(config)
    uris = _list_images(images, manifest)
    pixels, source = _choose_images(model, uris, images or manifest)
    model.check_split(pixels)
    embeddings = model.encode(pixels)
    bound = find_identity_bound(model.split, config) if model.split else UNKNOWN_BOUND
    findings = {
        "structure": _describe_structure(model),
        "preprocessing": {"as": model.facts.preprocessing},
        "identity": {"images": source, **_measure_identity(model, embeddings)},
        "certificate": _describe_bound(bound),
        "behaviour": _measure_behaviour(model, pixels, embeddings),
        "strangers": _measure_strangers(model, embeddings, config.match_threshold()) if uris else {},
        "steadiness": _measure_steadiness(model, uris, config.match_threshold()),
        "embedding": _measure_saturation(embeddings) if model.facts.encodings_per_pair == 0 else {},
        "loaders": _compare_loaders(model, config, uris),
        "calibration": _describe_calibration(sidecar.calibration, model, config),
        "notes": {str(number): note for number, note in enumerate(model.facts.notes, 1)},
    }
    faults = list(_find_faults(findings, bound, config))
    return Diagnosis({section: values for section, values in findings.items() if values}, faults)


def _list_images(images: str | None, manifest: str | None) -> list[str]:
    if images:
        return _list_folder(images)
    return _list_manifest(manifest) if manifest else []


def _choose_images(model: PairModel, uris: list[str], place: str | None) -> tuple[np.ndarray, str]:
    """Returns loaded images `(n, height, width, channels)`, and a description of where they come from."""
    from batchverify.model.probe_images import probe_images

    if place:
        pixels = _read_images(model, uris)
        return pixels, f"{len(pixels)} images of {place}"
    pixels = model.preprocessing.as_loaded(probe_images(model.facts.image_shape, _PROBE_IMAGES, seed=2))
    return pixels, f"{len(pixels)} made-up images (noise, smooth shapes, drawings); --images DIR gives figures for yours"


def _list_folder(folder: str) -> list[str]:
    from batchverify.images.formats import IMAGE_ENDINGS

    if not os.path.isdir(folder):
        raise PreflightError(f"--images {folder}: there is no such folder; check the path.")
    paths = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    step = max(1, len(paths) // _MAX_IMAGES)
    return paths[::step][:_MAX_IMAGES]


def _list_manifest(manifest: str) -> list[str]:
    from batchverify.manifest.plan import plan_manifest

    return list(plan_manifest(VerificationConfig(manifests=(manifest,), output="-"), sample=_MAX_IMAGES).sample)


def _read_images(model: PairModel, uris: list[str]) -> np.ndarray:
    from batchverify.images.failure import ImageFailure

    images = [image for image, _ in map(_reader(model).read, uris) if not isinstance(image, ImageFailure)]
    if len(images) < 2:
        raise PreflightError(f"only {len(images)} of {len(uris)} images can be read; give two or more.")
    return np.stack(images)


def _reader(model: PairModel) -> ImageReader:
    from batchverify.images.reader import ImageReader

    return ImageReader(model.preprocessing.layout(), 64_000_000, 64 * 2**20)


# Findings


def _describe_structure(model: PairModel) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": model.facts.path,
        "digest": f"sha256:{model.facts.digest}",
        "runs": model.facts.structure,
    }
    if model.facts.encodings_per_pair == 0:
        facts["embedding_width"] = model.facts.embedding_size
    if model.loaded.graph is not None:
        facts["parameters"] = model.loaded.graph.count_params()
    if model.split is not None:
        encode, compare = model.operations()
        facts["parameters_of_the_head"] = model.split.head.count_params()
        facts["operations"] = f"{encode:,} to encode an image, {compare:,} to compare a pair"
        facts["share_of_the_encoder"] = f"{2 * encode / max(1, 2 * encode + compare):.3%} of a pair's arithmetic"
    return facts


def _measure_identity(model: PairModel, embeddings: np.ndarray) -> dict[str, Any]:
    identity = model.compare(embeddings, embeddings)
    return {"identity_score_min": float(identity.min()), "identity_score_max": float(identity.max())}


def _measure_behaviour(model: PairModel, pixels: np.ndarray, embeddings: np.ndarray) -> dict[str, Any]:
    """Compares each image with some others, in both orders, and again after every second one was encoded again."""
    from batchverify.model.trial import difference_when_asked_again, encode_every_second

    identity = model.compare(embeddings, embeddings)
    shifts = sorted({shift % len(pixels) or 1 for shift in _SHIFTS})
    shifted = [np.roll(embeddings, shift, axis=0) for shift in shifts]
    scores = np.stack([model.compare(embeddings, others) for others in shifted])
    swapped = np.stack([model.compare(others, embeddings) for others in shifted])
    lower_identity = np.stack([np.minimum(identity, np.roll(identity, shift)) for shift in shifts])
    even = embeddings[: len(embeddings) // 2 * 2]
    again = encode_every_second(model, pixels[: len(even)])
    asked = np.stack([model.compare(even, np.roll(even, shift, axis=0)) for shift in (0, 2)])
    return {
        "pairs_tried": int(scores.size),
        "lowest_score_of_a_pair": float(scores.min()),
        "highest_score_of_a_pair": float(scores.max()),
        "pairs_that_outscore": int(np.count_nonzero(scores > lower_identity + _TOLERANCE)),
        "farthest_from_identity": float(np.max(np.abs(scores - identity))),
        "asymmetry": float(np.max(np.abs(scores - swapped))),
        "difference_when_asked_again": difference_when_asked_again(model, even, again, asked),
    }


def _measure_strangers(model: PairModel, embeddings: np.ndarray, threshold: float) -> dict[str, Any]:
    """Compares images in a random order with those behind them; images that lie together may show the same subject."""
    shuffled = np.random.default_rng(0).permutation(embeddings)
    most = _STRANGERS_OF_AN_IMAGE if model.facts.encodings_per_pair == 0 else 1
    shifts = range(1, min(most, (len(shuffled) - 1) // 2) + 1)
    scores = np.concatenate([model.compare(shuffled, np.roll(shuffled, shift, axis=0)) for shift in shifts or [1]])
    matches = int(np.count_nonzero(is_match(scores, threshold)))
    return {"images": len(embeddings), "pairs": len(scores), "matches": matches, "match_rate": matches / len(scores)}


def _measure_steadiness(model: PairModel, uris: list[str], threshold: float) -> dict[str, Any]:
    """Compares images with themselves after small changes. Made-up images have no files that could be changed."""
    from batchverify.images.variants import VARIANTS

    reader = _reader(model)
    scores: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for uri in uris[:: max(1, len(uris) // _STEADINESS_IMAGES)][:_STEADINESS_IMAGES]:
        image, _ = reader.read(uri)
        changed = reader.read_changed(uri, _MAX_CHANGED_PIXELS)
        if changed is not None and isinstance(image, np.ndarray):
            embeddings = model.encode(np.stack([image, *changed[1].values()]))
            compared = model.compare(np.repeat(embeddings[:1], len(VARIANTS), axis=0), embeddings[1:])
            for name, score in zip(VARIANTS, compared, strict=True):
                scores[name].append(float(score))
    count = len(scores["jpeg"])
    rejected = {
        name: int(np.count_nonzero(~is_match(np.array(found, np.float32), threshold))) for name, found in scores.items()
    }
    return {"images": count, **{f"rejected_after_{name}": number for name, number in rejected.items()}} if count else {}


def _measure_saturation(embeddings: np.ndarray) -> dict[str, Any]:
    deviation = embeddings.std(axis=0)
    return {
        "dimensions": int(embeddings.shape[1]),
        "constant_dimensions": int(np.count_nonzero(deviation < 1e-6)),
        "lowest_value": float(embeddings.min()),
        "highest_value": float(embeddings.max()),
    }


def _compare_loaders(model: PairModel, config: ModelConfig, uris: list[str]) -> dict[str, Any]:
    from batchverify.model.loader_differences import loader_differences

    differences = loader_differences(model, config, uris)
    return {
        f"as_{loader}": f"scores move by {mean:.4f} on average, {largest:.4f} at most" for loader, mean, largest in differences
    }


def _describe_bound(bound: IdentityBound) -> dict[str, Any]:
    if bound.comparison is None and not bound.weights:
        return {"holds": "unknown: the head is not a distance, one dense layer and a sigmoid, so it is only measured"}
    positive = sum(weight > 0 for weight in bound.weights)
    facts: dict[str, Any] = {
        "comparison": bound.comparison or "none that is known",
        "bias": bound.bias,
        "weights": f"{len(bound.weights)}, of which {positive} positive",
    }
    if bound.identity_score is not None:
        argument = "bias + weight" if bound.comparison == "cosine" else "bias"
        facts["f(x, x)"] = f"sigmoid({argument}) = {bound.identity_score:.6f}"
    if bound.holds is None:
        facts["holds"] = "unknown: the weights do not tell, so it is only measured"
    elif bound.holds:
        facts["holds"] = "yes: no pair can outscore an identity score"
    else:
        limit = f"; none can exceed {bound.bound:.6f}" if bound.bound is not None else ""
        if bound.comparison == "cosine":
            facts["holds"] = f"no: a negative weight lets pairs outscore an identity score{limit}"
            return facts
        facts["holds"] = f"no: {positive} positive weights let pairs outscore an identity score{limit}"
        largest = sorted(enumerate(bound.weights), key=lambda item: -item[1])[:5]
        facts["largest_weights"] = ", ".join(f"{weight:.3f} (dimension {number})" for number, weight in largest if weight > 0)
    return facts


def _describe_calibration(calibration: Calibration | None, model: PairModel, config: ModelConfig) -> dict[str, Any]:
    from batchverify.model.calibration import config_settings

    if calibration is None:
        return {}
    problem = calibration.why_unfit(f"sha256:{model.facts.digest}", config_settings(config))
    (_, lowest), (_, highest) = calibration.knots[0], calibration.knots[-1]
    return {
        "of_the_sidecar": str(calibration),
        "fits_this_model": f"no: {problem}; calibrate again" if problem else "yes",
        "llr": f"from {lowest:.2f} to {highest:.2f}",
    }


# Faults


def _find_faults(findings: dict[str, dict[str, Any]], bound: IdentityBound, config: ModelConfig) -> Iterator[str]:
    """Yields one message for each fault, with its remedy."""
    behaviour = findings["behaviour"]
    if behaviour["lowest_score_of_a_pair"] == behaviour["highest_score_of_a_pair"]:
        yield (
            f"Every pair scores {behaviour['highest_score_of_a_pair']:.4f}, whatever the images show: the network is "
            "untrained or dead. Check the scale of the pixels (--pixels), then the training."
        )
    elif behaviour["farthest_from_identity"] <= _COLLAPSED:
        yield (
            f"Every pair of different images scores within {_COLLAPSED:g} of an identity score, so the network cannot tell "
            "images apart. Check the scale of the pixels (--pixels), then the training."
        )
    yield from _find_strangers(findings["strangers"], config.match_threshold())
    yield from _find_unsteadiness(findings["steadiness"])
    yield from _find_identity_faults(findings["identity"], behaviour, bound, config)
    yield from _find_inconsistencies(behaviour)
    constant, dimensions = (findings["embedding"].get(name, 0) for name in ("constant_dimensions", "dimensions"))
    if constant and constant > dimensions // 2:
        yield (
            f"{constant} of {dimensions} embedding dimensions have the same value for every image, so most of the embedding is "
            "unused. Check the scale of the pixels (--pixels), then the training."
        )


def _find_strangers(strangers: dict[str, Any], threshold: float) -> Iterator[str]:
    if strangers and strangers["images"] >= _LEAST_IMAGES and strangers["match_rate"] > _MANY_STRANGERS:
        yield (
            f"{counted_of(strangers['matches'], strangers['pairs'], 'pair')} of images drawn at random "
            f"{agree(strangers['matches'], 'matches', 'match', strangers['pairs'])} at the threshold "
            f"{threshold:g}. Check that the model was trained on images of this kind, the scale of the pixels (--pixels), and "
            "the threshold; if most of these images show the same subject, give images of many."
        )


def _find_unsteadiness(steadiness: dict[str, Any]) -> Iterator[str]:
    from batchverify.images.variants import CHANGES, JUDGED_CHANGES

    for name in JUDGED_CHANGES:
        rejected = steadiness.get(f"rejected_after_{name}", 0)
        if rejected > _MANY_REJECTED * steadiness.get("images", 0):
            yield (
                f"{counted_of(rejected, steadiness['images'], 'image')} "
                f"{agree(rejected, 'is rejected as itself', 'are rejected as themselves', steadiness['images'])} when "
                f"{CHANGES[name]}. "
                "Train with such changes, or lower the threshold."
            )


def _outscoring(behaviour: dict[str, Any]) -> str:
    pairs, tried = behaviour["pairs_that_outscore"], behaviour["pairs_tried"]
    return f"{counted_of(pairs, tried, 'pair')} of different images {agree(pairs, 'outscores', 'outscore', tried)}"


def _find_identity_faults(
    identity: dict[str, Any], behaviour: dict[str, Any], bound: IdentityBound, config: ModelConfig
) -> Iterator[str]:
    if behaviour["pairs_that_outscore"] >= _NEARLY_ALL * behaviour["pairs_tried"] and config.output_is in (None, "score"):
        yield (
            f"{_outscoring(behaviour)} an image against itself, so a low output seems to mean a match, "
            "as after training with a contrastive loss. Add --output-is dissimilarity."
        )
        return
    threshold = config.match_threshold()
    if identity["identity_score_min"] < threshold:
        yield (
            f"An image compared with itself scores as little as {identity['identity_score_min']:.4f}, below the threshold "
            f"{threshold:g}, so it is rejected. {_identity_remedy(identity, 'identity pairs and a bias that starts positive')}"
        )
    sign = "negative" if bound.comparison == "cosine" else "positive"
    wanted = f"weights that cannot be {sign}"
    if behaviour["pairs_that_outscore"]:
        yield f"{_outscoring(behaviour)} an image against itself. {_identity_remedy(identity, wanted)}"
    elif bound.holds is False:
        yield (
            f"The head has {sign} weights, so pairs can outscore an identity score, although none did here. "
            f"Retrain the head with {wanted}, or examine it on your own images with --images."
        )


def _identity_remedy(identity: dict[str, Any], wanted: str) -> str:
    """Returns what to do about a fault; an identity score that depends on the image shows that the head has no distance."""
    if identity["identity_score_max"] - identity["identity_score_min"] <= _MAX_DIFFERENCE:
        return f"Retrain the head with {wanted}."
    return (
        "The score of an image against itself depends on the image. Retrain with identity pairs, or use a head that compares "
        "embeddings by a distance, with weights that cannot be positive."
    )


def _find_inconsistencies(behaviour: dict[str, Any]) -> Iterator[str]:
    if behaviour["asymmetry"] > _MAX_DIFFERENCE:
        yield (
            f"Left and right exchanged change a score by up to {behaviour['asymmetry']:.4f}. "
            "Compare with something symmetric, such as |a - b|, or average both orders."
        )
    if not behaviour["difference_when_asked_again"] <= _MAX_DIFFERENCE:
        yield (
            "The same images get different scores when they are scored again: dropout or batch statistics are left on. "
            "Save the model without training=True in its calls."
        )
