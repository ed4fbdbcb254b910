"""The architecture of a network whose file holds weights alone, as `model.save_weights` writes them."""

from __future__ import annotations

import os

from apache_beam.io.filesystems import FileSystems

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.io.filesystem import read_bytes
from batchverify.model.registry import is_registry_name

_MAX_BYTES = 2**26


def read_architecture(options: ModelConfig) -> bytes | None:
    """Returns the JSON of an architecture: that of `options.architecture`, or that beside the model; None without either.

    The weights `model.h5` and `model.weights.h5` go with `model.json`. The text is trusted no more than the model.

    Raises:
        PreflightError: If there is such a file and it cannot be read, or `options.architecture` is not there.
    """
    if options.architecture is None and is_registry_name(options.model):
        return None
    path = options.architecture or _path_beside(options.model or "")
    try:
        if options.architecture is None and not FileSystems.exists(path):
            return None
        text = read_bytes(path, _MAX_BYTES + 1)
    except Exception as error:  # Beam wraps whatever the store's client raises.
        raise PreflightError(f"--architecture {path}: it cannot be read ({short_reason(error)}); check the path.") from None
    if len(text) > _MAX_BYTES:
        raise PreflightError(
            f"--architecture {path}: it is larger than {_MAX_BYTES // 2**20} MiB, more than any architecture needs; give what "
            "model.to_json() returned."
        )
    return text


def _path_beside(model: str) -> str:
    return os.path.splitext(model)[0].removesuffix(".weights") + ".json"
