"""Loads a model file of any format."""

from __future__ import annotations

import hashlib
import json

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.architecture import read_architecture
from batchverify.model.file import ModelKind, open_model_file
from batchverify.model.keras_format import load_keras_file
from batchverify.model.loaded import LoadedModel
from batchverify.model.local_copy import digest_model
from batchverify.model.onnx_format import load_onnx_file
from batchverify.model.saved_model import load_saved_model, refuse_layer_options

_LOADERS_WITHOUT_LAYERS = {ModelKind.SAVED_MODEL: load_saved_model, ModelKind.ONNX: load_onnx_file}


def load_file(options: ModelConfig, local: str) -> LoadedModel:
    """Loads the model that `options` name, or the embedded one.

    Args:
        options: The user's statements about the model.
        local: The path of the model on this machine.

    Raises:
        PreflightError: If it cannot be loaded, or must not be; the message is one sentence with the remedy.
    """
    name = options.model or "embedded"
    architecture = read_architecture(options) if options.architecture else None
    file = open_model_file(name, local, lambda: architecture or read_architecture(options))
    if architecture and not file.holds_weights_only:
        raise PreflightError(f"--architecture is for weights alone, but --model {name} has its own; leave it out.")
    try:
        digest = digest_model(local)
        if file.holds_weights_only:
            digest = hashlib.sha256((digest + json.dumps(file.config, sort_keys=True)).encode()).hexdigest()
    except OSError as error:
        raise PreflightError(f"--model {name}: it cannot be read ({error.strerror}); copy it again, whole.") from None
    if file.kind in _LOADERS_WITHOUT_LAYERS:
        refuse_layer_options(file, options)
        return _LOADERS_WITHOUT_LAYERS[file.kind](file, options, digest)
    return load_keras_file(file, options, digest)
