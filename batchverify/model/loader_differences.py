"""How much scores move if images are loaded as other libraries load them: was the model trained on these pixels?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from batchverify.config import LOADERS, ModelConfig
from batchverify.errors import PreflightError
from batchverify.images.failure import ImageFailure
from batchverify.images.loaders import decide_loading
from batchverify.images.reader import ImageReader
from batchverify.model.pair_model import PairModel
from batchverify.model.preprocessing import Preprocessing

_MAX_PIXELS, _MAX_BYTES = 64_000_000, 64 * 2**20
_MAX_IMAGES, _SHIFTS = 128, (1, 2, 3)


def loader_differences(model: PairModel, config: ModelConfig, uris: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """Yields for each other loader that is installed the mean and the largest difference of scores.

    Args:
        model: The model.
        config: The configuration, completed by the model's sidecar.
        uris: Images; pairs of neighbours among some of them are scored.
    """
    here = model.preprocessing
    if here.loading.preprocess:
        return
    sample = uris[:: max(1, len(uris) // _MAX_IMAGES)][:_MAX_IMAGES]
    usual = _read(here, sample)
    for loader in LOADERS:
        other = _with_loader(here, config, loader)
        if other is None or other.loading == here.loading:
            continue
        read = _read(other, sample)
        both = [uri for uri in sample if uri in usual and uri in read]
        if len(both) < 2:
            continue
        pixels = _as_here(np.stack([read[uri] for uri in both]), other, here)
        difference = np.abs(_scores(model, np.stack([usual[uri] for uri in both])) - _scores(model, pixels))
        yield loader, float(difference.mean()), float(difference.max())


def _with_loader(here: Preprocessing, config: ModelConfig, loader: str) -> Preprocessing | None:
    """Returns the steps with another loader, under its own rules; None if it is not installed."""
    try:
        loading = decide_loading(dataclasses.replace(config, loader=loader, resize=None))
    except PreflightError:
        return None
    color = here.color if config.color or here.channels == 1 else loading.color
    return dataclasses.replace(here, loading=loading, color=color)


def _read(preprocessing: Preprocessing, uris: Sequence[str]) -> dict[str, np.ndarray]:
    reader = ImageReader(preprocessing.layout(), _MAX_PIXELS, _MAX_BYTES)
    images = ((uri, reader.read(uri)[0]) for uri in uris)
    return {uri: image for uri, image in images if not isinstance(image, ImageFailure)}


def _as_here(pixels: np.ndarray, other: Preprocessing, here: Preprocessing) -> np.ndarray:
    """Returns pixels of another loader on the scale and in the order of channels that the model's own loader has."""
    if other.color != here.color:
        pixels = pixels[..., ::-1]
    return pixels.astype(np.float32) * np.float32(here.loading.white / other.loading.white)


def _scores(model: PairModel, pixels: np.ndarray) -> np.ndarray:
    embeddings = model.encode(pixels)
    return np.stack([model.compare(embeddings, np.roll(embeddings, shift, axis=0)) for shift in _SHIFTS])
