"""What a run records about its model."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What a run writes down about its model.

    Attributes:
        path: where it came from.
        digest: SHA-256 of the file, or of a folder's files, in hex.
        image_shape: height, width and channels that it takes.
        embedding_size: numbers in what is kept of one image.
        embedding_bytes: bytes in the same.
        structure: how it is run, in words.
        encodings_per_image: how often an image goes through a tower of the network.
        encodings_per_pair: how often a pair's images go through a tower again when the pair is scored.
        preprocessing: what is done to an image before the network sees it, in words.
        notes: what else was found or decided when it was loaded, one sentence each.
    """

    path: str
    digest: str
    image_shape: tuple[int, int, int]
    embedding_size: int
    embedding_bytes: int
    structure: str
    encodings_per_image: int
    encodings_per_pair: int
    preprocessing: str
    notes: tuple[str, ...] = ()
