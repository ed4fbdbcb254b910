"""Steadiness in a job: images that are encoded again after a small change, and compared with what they were."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from batchverify.config import ScoringConfig
from batchverify.evaluation.steadiness import describe_steadiness
from batchverify.images.variants import CHANGES
from batchverify.pipeline.drawn_images import DrawnImages
from batchverify.pipeline.encoded_images import embedding_matrix
from batchverify.pipeline.network import Network
from batchverify.schema import ImageTraits

# Each image is encoded four times more, so that this share of the images costs 0.8% of the encoding. At 1%, strangers and
# steadiness took 2.4% of a run of 50,000 photos, and at 0.2% 1.6%.
_SHARE, _LEAST_IMAGES = 0.002, 20


@runtime_checkable
class ChangingNetwork(Protocol):
    """A network that reads images itself, and so can change them."""

    def encode_changed(self, uris: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Changes images in each way that `CHANGES` names.

        Args:
            uris: The images.

        Returns:
            Positions of the images that could be changed, int64 `(n,)`, and for each change their embeddings `(n, d)`.
        """


def measure_steadiness(drawn: DrawnImages, network: Network, config: ScoringConfig) -> dict[str, Any] | None:
    """Returns the section `steadiness` of `_summary.json`; None for a network that does not read images.

    Args:
        drawn: The drawn images.
        network: The network.
        config: The configuration, completed by the model's sidecar.
    """
    if not isinstance(network, ChangingNetwork):
        return None
    scores = {name: np.zeros(0, np.float32) for name in CHANGES}
    if drawn.rows is not None:
        # Libraries treat turned, transparent and animated files in their own ways, and a changed file would not be like them.
        rows = drawn.rows.filter(drawn.rows["traits"].to_numpy() == ImageTraits.NONE)
        rows = rows.slice(0, min(config.steadiness_images, max(_LEAST_IMAGES, round(drawn.total * _SHARE))))
        positions, changed = network.encode_changed(rows["uri"].to_pylist())
        embeddings = embedding_matrix(rows)[positions]
        if len(positions):
            scores = {name: network.compare(embeddings, changed[name]) for name in CHANGES}
    return describe_steadiness(scores, config.match_threshold())
