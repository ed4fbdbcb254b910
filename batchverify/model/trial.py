"""Tries a model on images made up for that."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.pair_model import PairModel
from batchverify.model.plan import call_in_trial
from batchverify.model.probe_images import probe_images

TRIALS, PROOFS = 12, 6


def try_model(model: PairModel, config: ModelConfig) -> list[str]:
    """Scores made-up images and refuses what cannot be a score; returns what else was noticed."""
    name = model.loaded.name
    images = probe_images(model.facts.image_shape, TRIALS, seed=1)
    with ThreadPoolExecutor(2) as threads:  # each with its share of the cores, as in a run
        first, second = (threads.submit(model.encode, some) for some in (images, images[::-1]))
    embeddings, turned = (call_in_trial(model.loaded, encoding.result) for encoding in (first, second))
    identity = call_in_trial(model.loaded, lambda: model.compare(embeddings, embeddings))
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
