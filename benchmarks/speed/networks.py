"""Siamese networks of two sizes, with random weights that still tell images apart.

    python -m benchmarks.speed.networks demo demo.keras image…

Fresh batch normalisation gives nearly one embedding for all images, and scores that agree whatever a contender does.
So its statistics, the embedding's scale and the head are set from images, and scores spread over most of [0, 1].
Random kernels, on the other hand, see what is finest in an image and little else: rounding the pixels to 8 bits changes
scores by up to 0.47. So the spatial ones are made to smooth, as a trained network's first of all do; then it is 0.01.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent
SEED = 11
CALIBRATION_IMAGES = 96
_IDENTITY_LOGIT = 4.6  # an image against itself scores 0.99
_WEIGHT_SPREAD = 0.8  # some dimensions decide; the scores of many alike ones would all be near their mean


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a MobileNetV2.

    Attributes:
        side: The height and width of its images in pixels.
        width: The multiplier of its channels (alpha).
    """

    side: int
    width: float


NETWORKS = {"demo": Size(96, 0.35), "full": Size(224, 1.0)}


def ensure_network(folder: Path, name: str, images: list[str]) -> Path:
    """Returns the `.keras` file of a network of `NETWORKS`, made now in a process of its own if it is not there yet.

    Args:
        folder: The folder of the cache, one for each kind of images.
        name: one of `NETWORKS`.
        images: paths of images, `CALIBRATION_IMAGES` of which or fewer decide the statistics.
    """
    chosen = images[:CALIBRATION_IMAGES]
    path = folder / f"{name}-{len(chosen)}.keras"
    if not path.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.speed.networks", name, str(path), *chosen], check=True, cwd=_ROOT)
    return path


def build_network(name: str, images: list[str], path: Path) -> None:
    """Writes a network as `.keras`; see `ensure_network`."""
    import keras
    import numpy as np

    from batchverify.training.network import assemble, build_encoder, build_head
    from benchmarks.speed.scripts.work import pixels

    keras.utils.set_random_seed(SEED)
    size = NETWORKS[name]
    encoder = build_encoder(size.side, size.width, dropout=0.0, batch_norm_momentum=0.0)
    batch = np.stack([pixels(image, (size.side, size.side)) for image in images])
    _smooth(encoder)
    encoder(batch, training=True)  # without momentum the moving statistics become this batch's
    _standardise_embedding(encoder, batch)
    head = build_head("repaired")
    _spread_scores(head, np.asarray(encoder(batch, training=False)))
    model = assemble(encoder, head)
    draft = path.with_name(f"draft-{path.name}")
    model.save(draft)
    draft.rename(path)


def _smooth(model) -> None:
    """Gives the weights of each spatial kernel one sign."""
    import keras
    import numpy as np

    for layer in model.layers:
        if hasattr(layer, "layers"):
            _smooth(layer)
        elif isinstance(layer, keras.layers.DepthwiseConv2D) or layer.name == "Conv1":
            layer.set_weights([np.abs(kernel) * np.sign(kernel[1:2, 1:2]) for kernel in layer.get_weights()])


def _standardise_embedding(encoder, batch) -> None:
    """Makes what each number of the embedding is the sigmoid of vary with mean 0 and deviation 1 over the images."""
    import keras
    import numpy as np

    last = encoder.get_layer("embedding")
    kernel, bias = last.get_weights()
    before = np.asarray(keras.Model(encoder.inputs, last.input)(batch, training=False)) @ kernel + bias
    deviation = before.std(axis=0) + 1e-6
    last.set_weights([kernel / deviation, (bias - before.mean(axis=0)) / deviation])


def _spread_scores(head, embeddings) -> None:
    """Gives the head weights without a positive one, under which half of the pairs score above 0.5."""
    import numpy as np

    weights = -np.exp(np.random.default_rng(SEED).normal(0, _WEIGHT_SPREAD, embeddings.shape[1])).astype(np.float32)
    distances = np.concatenate(
        [np.abs(embeddings - np.roll(embeddings, s, axis=0)) for s in range(1, len(embeddings) // 2 + 1)]
    )
    scale = _IDENTITY_LOGIT / -np.median(distances @ weights)
    head.set_weights([(weights * scale)[:, None].astype(np.float32), np.array([_IDENTITY_LOGIT], np.float32)])


if __name__ == "__main__":
    build_network(sys.argv[1], sys.argv[3:], Path(sys.argv[2]))
