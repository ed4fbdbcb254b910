"""The facts about a model that a run records."""

from __future__ import annotations

import dataclasses
import importlib


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that a run records.

    Attributes:
        path: The path or URI of the model, or `embedded`.
        digest: The SHA-256 of the file, or of a folder's files, in hex.
        image_shape: The height, width and channels of the model's input.
        embedding_size: The number of values that are stored for one image.
        embedding_bytes: The number of bytes that are stored for one image.
        structure: A description of how the model is run.
        encodings_per_image: The number of times that an image goes through a tower of the network when it is encoded.
        encodings_per_pair: The number of times that a pair's images go through a tower again when the pair is scored.
        preprocessing: A description of what is done to an image before the network sees it.
        notes: The other findings and decisions made when the model was loaded, one sentence each.
        runtime: The package that computes the network.
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
    runtime: str = "tensorflow"

    def runtime_version(self) -> str:
        """Returns the version of the package that computes, as its module says it: several packages install onnxruntime's."""
        return str(importlib.import_module(self.runtime).__version__)
