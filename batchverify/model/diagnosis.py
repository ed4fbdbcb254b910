"""Examines a trained model: can its scores be believed?"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from batchverify.config import ModelConfig, VerificationConfig
from batchverify.errors import PreflightError

_MOST_IMAGES = 512
_TRIAL_IMAGES = 96
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found out about a model.

    Attributes:
        findings: one dictionary for each part of the page.
        faults: what is wrong, and what to do, one sentence each; none if the model is sane.
    """

    findings: dict[str, dict[str, Any]]
    faults: list[str]


def examine(config: ModelConfig, images: str | None = None, manifest: str | None = None) -> Diagnosis:
    """Examines a model, on the images of a folder or manifest, or else on images made up for that.

    Raises:
        PreflightError: if it can't be loaded, or no image can be read.
    """
    from batchverify.model.identity_bound import UNKNOWN_BOUND, bound_identity
    from batchverify.model.load import load_model
    from batchverify.model.probe_images import probe_images
    from batchverify.model.sidecar import apply_sidecar, read_sidecar

    config = apply_sidecar(config, read_sidecar(config.model))
    model = load_model(config)
    if images or manifest:
        pixels = _read(model, config, _uris(images, manifest))
        shown = f"{len(pixels)} images of {images or manifest}"
    else:
        pixels = probe_images(model.facts.image_shape, _TRIAL_IMAGES, seed=2)
        shown = f"{len(pixels)} made-up images (noise, smooth shapes, drawings); --images DIR gives figures for yours"
    model.check_split(pixels)
    embeddings = model.encode(pixels)
    certificate = bound_identity(model.siamese) if model.siamese else UNKNOWN_BOUND
    scores = _measure(model, pixels, embeddings)
    findings = {
        "structure": _structure(model),
        "preprocessing": {"as": model.facts.preprocessing},
        "identity": {"images": shown, **scores["identity"]},
        "certificate": _certificate_words(certificate),
        "behaviour": scores["behaviour"],
        "embedding": _saturation(embeddings) if model.facts.encodings_per_pair == 0 else {},
        "notes": {str(number): note for number, note in enumerate(model.facts.notes, 1)},
    }
    faults = _faults(findings, certificate, config.match_threshold())
    return Diagnosis({name: found for name, found in findings.items() if found}, faults)


def _uris(images: str | None, manifest: str | None) -> list[str]:
    if images:
        if not os.path.isdir(images):
            raise PreflightError(f"--images {images}: there is no such folder; check the path.")
        from batchverify.images.decode import IMAGE_ENDINGS

        found = sorted(str(path) for path in Path(images).rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
        step = max(1, len(found) // _MOST_IMAGES)
        return found[::step][:_MOST_IMAGES]
    from batchverify.manifest.plan import plan_manifest

    return list(plan_manifest(VerificationConfig(manifests=(str(manifest),), output="-"), sample=_MOST_IMAGES).sample)


def _read(model: Any, config: ModelConfig, uris: list[str]) -> Any:
    import numpy as np

    from batchverify.images.failure import ImageFailure
    from batchverify.images.reader import ImageReader

    reader = ImageReader(model.preprocessing.layout(), 64_000_000, 64 * 2**20)
    images = [image for image, _ in map(reader.read, uris) if not isinstance(image, ImageFailure)]
    if len(images) < 2:
        raise PreflightError(f"of {len(uris)} images found, {len(images)} could be read; give two or more.")
    return np.stack(images)


def _measure(model: Any, pixels: Any, embeddings: Any) -> dict[str, dict[str, Any]]:
    import numpy as np

    identity = model.compare(embeddings, embeddings)
    count = len(pixels)
    shifts = sorted({shift % count or 1 for shift in (1, 2, 3, 5, 8, 13, 21)})
    others = np.stack([model.compare(embeddings, np.roll(embeddings, shift, axis=0)) for shift in shifts])
    back = np.stack([model.compare(np.roll(embeddings, shift, axis=0), embeddings) for shift in shifts])
    lower = np.stack([np.minimum(identity, np.roll(identity, shift)) for shift in shifts])
    again = model.encode(pixels[::-1])[::-1]
    return {
        "identity": {"identity_score_min": float(identity.min()), "identity_score_max": float(identity.max())},
        "behaviour": {
            "pairs_tried": int(others.size),
            "lowest_score_of_a_pair": float(others.min()),
            "highest_score_of_a_pair": float(others.max()),
            "pairs_that_outscore": int(np.count_nonzero(others > lower + _TOLERANCE)),
            "asymmetry": float(np.max(np.abs(others - back))),
            "difference_when_asked_again": float(np.max(np.abs(model.compare(again, embeddings) - identity))),
        },
    }


def _structure(model: Any) -> dict[str, Any]:
    facts = {"model": model.facts.path, "digest": f"sha256:{model.facts.digest}", "runs": model.facts.structure}
    if model.facts.encodings_per_pair == 0:
        facts["embedding_width"] = model.facts.embedding_size
    graph = model.loaded.graph
    if graph is not None:
        facts["parameters"] = graph.count_params()
    if model.siamese is not None:
        head = model.siamese.head.count_params()
        facts["parameters_of_the_head"] = head
        encode, compare = model.operations()
        facts["operations"] = f"{encode:,} to encode an image, {compare:,} to compare a pair"
        facts["share_of_the_encoder"] = f"{2 * encode / max(1, 2 * encode + compare):.3%} of a pair's arithmetic"
    return facts


def _certificate_words(certificate: Any) -> dict[str, Any]:
    if certificate.comparison is None and not certificate.weights:
        return {"holds": "not to be told: the head is no distance and one dense layer, so it is only measured"}
    positive = sum(weight > 0 for weight in certificate.weights)
    words: dict[str, Any] = {
        "comparison": certificate.comparison or "none that is known",
        "bias": certificate.bias,
        "weights": f"{len(certificate.weights)}, of which {positive} positive",
    }
    if certificate.identity_score is not None:
        argument = "bias + weight" if certificate.comparison == "cosine" else "bias"
        words["f(x, x)"] = f"sigmoid({argument}) = {certificate.identity_score:.6f}"
    if certificate.holds is None:
        words["holds"] = "not to be told from the weights; only measured"
    elif certificate.holds:
        words["holds"] = "yes: no pair can outscore an identity score"
    else:
        reach = f"; none can exceed {certificate.bound:.6f}" if certificate.bound is not None else ""
        words["holds"] = f"no: {positive} positive weights let pairs outscore an identity score{reach}"
        largest = sorted(enumerate(certificate.weights), key=lambda item: -item[1])[:5]
        words["largest_weights"] = ", ".join(f"{weight:.3f} (dimension {number})" for number, weight in largest if weight > 0)
    return words


def _saturation(embeddings: Any) -> dict[str, Any]:
    import numpy as np

    spread = embeddings.std(axis=0)
    return {
        "dimensions": int(embeddings.shape[1]),
        "constant_dimensions": int(np.count_nonzero(spread < 1e-6)),
        "lowest_value": float(embeddings.min()),
        "highest_value": float(embeddings.max()),
    }


def _faults(findings: dict[str, dict[str, Any]], certificate: Any, threshold: float) -> list[str]:
    identity, behaviour = findings["identity"], findings["behaviour"]
    faults = []
    if behaviour["lowest_score_of_a_pair"] == behaviour["highest_score_of_a_pair"]:
        faults.append(
            f"Every pair scores {behaviour['highest_score_of_a_pair']:.4f}, whatever the images show: the network is "
            "untrained or dead. Check the scale of the pixels (--pixels), then the training."
        )
    if identity["identity_score_min"] < threshold:
        faults.append(
            f"An image compared with itself scores as little as {identity['identity_score_min']:.4f}, below the threshold "
            f"{threshold:g}: it is rejected as itself. Retrain the head with identity pairs and a bias that starts positive."
        )
    if behaviour["pairs_that_outscore"]:
        faults.append(
            f"{behaviour['pairs_that_outscore']} of {behaviour['pairs_tried']} pairs of different images outscore an image "
            "against itself. Retrain the head with weights that can't be positive."
        )
    elif certificate.holds is False:
        faults.append(
            "The head has positive weights, so that pairs can outscore an identity score, though none did here. "
            "Retrain the head with weights that can't be positive, or run it on your own images with --images."
        )
    if behaviour["asymmetry"] > 1e-3:
        faults.append(
            f"Left and right exchanged change a score by up to {behaviour['asymmetry']:.4f}. "
            "Compare with something symmetric, such as |a - b|, or average both orders."
        )
    if behaviour["difference_when_asked_again"] > 1e-3:
        faults.append(
            "The same images score differently when asked again: dropout or batch statistics are left on. "
            "Save the model without training=True in its calls."
        )
    constant = findings["embedding"].get("constant_dimensions", 0)
    if constant and constant > findings["embedding"]["dimensions"] // 2:
        faults.append(
            f"{constant} of {findings['embedding']['dimensions']} embedding dimensions never change: most of it is dead. "
            "Check the scale of the pixels (--pixels), then the training."
        )
    return faults
