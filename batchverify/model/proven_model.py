"""The cache of models that were loaded, split, tried and proven before, as functions of TensorFlow that compute the same.

A file of the cache is used only for the same model file, by its SHA-256, the same options, the same versions of this package,
its libraries and Python, and the same kind of processor and GPU. It holds text in JSON, and functions whose operations are
those that an untrusted SavedModel may have. The model's parts are still compared with the whole model on images of each
manifest: the whole model is one of the functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import logging
import os
import platform
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

import batchverify
from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.io.private_folder import PrivateFolder, private_folder
from batchverify.model.cache_switch import is_cache_used
from batchverify.model.facts import ModelFacts
from batchverify.model.frozen_graph import StoredFunction, load_function
from batchverify.model.identity_bound import IdentityBound
from batchverify.model.load import log_decisions, prepare_devices
from batchverify.model.local_copy import digest_model, local_model
from batchverify.model.pair_model import FixedShapeCall, PairModel, StoredParts, compare_runtimes
from batchverify.model.precision import whole_float_32
from batchverify.model.preprocessing import Preprocessing, decide_preprocessing
from batchverify.model.runtimes import choose_runtime, load_in_openvino
from batchverify.model.split import check_outputs
from batchverify.schema import without_rounding
from batchverify.version import VERSION

_LOG = logging.getLogger(__name__)
_FOLDER, _MAX_BYTES = "models", 2**30
_FACTS = "facts.json"
_SETTINGS_PREFIXES = ("TF_", "XLA_", "KERAS_", "NVIDIA_TF32", "ONEDNN_", "DNNL_")
# It decides only what is said.
_NO_SETTING = "TF_CPP_MIN_LOG_LEVEL"


class ProvenModel:
    """A Siamese network from the cache, ready to be called with NumPy arrays as `PairModel` is.

    Args:
        facts: The facts about the model.
        preprocessing: The steps between a decoded image and the network.
        bound: What the weights of the head prove; None where the model was not split.
        config: The runtime.
        parts: The stored functions.
        load: Loads the model from its file, for calls of other shapes than the functions take.

    Attributes:
        facts: The facts about the model that a run records.
        preprocessing: The steps between a decoded image and the network.
    """

    def __init__(
        self,
        facts: ModelFacts,
        preprocessing: Preprocessing,
        bound: IdentityBound | None,
        config: ModelConfig,
        parts: StoredParts,
        load: Callable[[], PairModel],
    ):
        self.facts, self.preprocessing, self._bound, self._config, self._load = facts, preprocessing, bound, config, load
        self._loaded: PairModel | None = None
        self._lock = threading.Lock()
        assert parts.encode and parts.compare
        self._encode = self._encode_in_tensorflow = self._with_shape(
            load_function(parts.encode), parts.encode.rows, lambda model: model.encode
        )
        if config.runtime == "openvino":
            function = load_in_openvino(parts.encode, config.precision)
            self._encode = self._with_shape(function, parts.encode.rows, lambda model: model.encode)
        self._compare = self._with_shape(load_function(parts.compare), parts.compare.rows, lambda model: model.compare)
        self._whole, self._head = (part and load_function(part) for part in (parts.whole, parts.head))

    @property
    def images_at_once(self) -> int:
        """See `PairModel.images_at_once`."""
        return self._encode.rows

    def encode(self, images: np.ndarray) -> np.ndarray:
        """See `PairModel.encode`."""
        return self._encode(images)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """See `PairModel.compare`."""
        return without_rounding(self._compare(left, right))

    def identity_bound(self, config: ModelConfig) -> IdentityBound | None:
        """See `PairModel.identity_bound`; `config` is the one that the model was proven with."""
        return self._bound

    def describe_runtime(self, images: np.ndarray) -> str | None:
        """See `PairModel.describe_runtime`; only what is computed in float32 is in the cache."""
        if self._config.runtime == "tensorflow":
            return None
        parts, in_tensorflow = (self._encode, self._compare), (self._encode_in_tensorflow, self._compare)
        return compare_runtimes(self._config.runtime, self._config.precision, images, parts, in_tensorflow)

    def check_split(self, images: np.ndarray) -> None:
        """See `PairModel.check_split`."""
        whole, head = self._whole, self._head
        if whole is None or head is None or not len(images):
            return
        others = np.roll(images, 1, axis=0)
        with whole_float_32(), ThreadPoolExecutor(1) as thread:
            # TensorFlow prepares each function for its first call, which takes half a second.
            expected = thread.submit(whole, images, others)
            embeddings = self._encode_in_tensorflow(images)
            parts = head(embeddings, np.roll(embeddings, 1, axis=0))
            check_outputs(expected.result(), parts, lambda: whole(images[::-1], others[::-1])[::-1])

    def _with_shape(
        self,
        function: Callable[..., np.ndarray],
        rows: int | None,
        function_of: Callable[[PairModel], Callable[..., np.ndarray]],
    ) -> FixedShapeCall:
        """Returns a stored function, which calls that of the loaded model once a device cannot take as many rows."""
        assert rows is not None

        def call(*arrays: np.ndarray) -> np.ndarray:
            return function(*arrays) if len(arrays[0]) == rows else function_of(self._load_once())(*arrays)

        return FixedShapeCall(call, rows)

    def _load_once(self) -> PairModel:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
                if self._loaded.facts.digest != self.facts.digest:
                    raise PreflightError(f"--model {self.facts.path}: the file has changed during the run; run again.")
            return self._loaded


def load_proven(config: ModelConfig, load: Callable[[ModelConfig], PairModel], subject: str = "") -> PairModel | ProvenModel:
    """Returns the model from the cache, or what `load` returns, which is then kept there.

    Nothing about the cache fails: where it cannot be used, the model is loaded.

    Args:
        config: The user's statements about the model.
        load: `load.load_model`.
        subject: The result of `load.decisions_subject`.

    Raises:
        PreflightError: If `load` raises it.
    """
    config = choose_runtime(config)
    if not is_cache_used() or not _is_cacheable(config):
        return load(config)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(_FOLDER, _MAX_BYTES))
        except OSError as error:
            _LOG.debug("No cache of models is used (%s).", short_reason(error))
            return load(config)
        prepare_devices()
        return _load_through(folder, config, load, subject)


def _is_cacheable(config: ModelConfig) -> bool:
    """Returns whether the file and the options alone decide how the model computes: no code of the user's takes part."""
    has_code = config.trust_model_code or config.preprocess or any(":" in setting for setting in config.custom_objects)
    is_plain = config.precision == "float32" and config.architecture is None
    if config.runtime == "openvino" and importlib.util.find_spec("openvino") is None:
        return False  # Loading says what is missing.
    return is_plain and not has_code and not os.path.isdir(config.model or "")


def _load_through(
    folder: PrivateFolder, config: ModelConfig, load: Callable[[ModelConfig], PairModel], subject: str
) -> PairModel | ProvenModel:
    digest = _digest(config)
    if digest is None:
        return load(config)
    name = _key(config, digest)
    if proven := _take(folder, name, config, digest, lambda: load(config)):
        log_decisions(proven.facts, subject)
        return proven
    model = load(config)
    if model.facts.digest == digest:  # A file of weights alone has another digest, with the architecture in it.
        _keep(folder, name, model, config)
    return model


def _digest(config: ModelConfig) -> str | None:
    try:
        with local_model(config.model) as local:
            return digest_model(local)
    except OSError:  # Loading says what is wrong.
        return None


def _key(config: ModelConfig, digest: str) -> str:
    """Returns the name of the file of a model: a digest of everything that what was proven depends on."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(ModelConfig)}
    environment = {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS_PREFIXES)}
    environment.pop(_NO_SETTING, None)
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    described = {
        "model": digest,
        "settings": settings,
        "code": _digest_of_package(),
        "versions": [VERSION, platform.python_version(), *(library.__version__ for library in _libraries(config))],
        "keras": [keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format(), keras.config.backend()],
        "environment": environment,
        "machine": [platform.machine(), _processor(), gpus],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def _libraries(config: ModelConfig) -> list[Any]:
    return [tf, keras, np, h5py, *([importlib.import_module("openvino")] if config.runtime == "openvino" else [])]


def _digest_of_package() -> str:
    """Returns a digest of what decides how models are loaded: a checkout changes without another version."""
    root, combined = Path(batchverify.__file__).parent, hashlib.sha256()
    for path in sorted(path for part in ("model", "images", "config.py") for path in _sources(root / part)):
        combined.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return combined.hexdigest()


def _sources(path: Path) -> list[Path]:
    return list(path.glob("*.py")) if path.is_dir() else [path]


def _processor() -> list[str]:
    """Returns the kind of processor, and what it can compute, as Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [platform.processor()]
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})


def _take(
    folder: PrivateFolder, name: str, config: ModelConfig, digest: str, load: Callable[[], PairModel]
) -> ProvenModel | None:
    """Returns the model from a file of the cache; None if there is no such file, or it is damaged and now removed."""
    try:
        data = folder.read(name)
        return None if data is None else _unpack(data, config, digest, load)
    except Exception as error:  # zipfile, JSON, protobuf and TensorFlow raise anything for damaged files.
        _LOG.warning("The model is loaded again, as its file in the cache cannot be used (%s).", short_reason(error))
        folder.remove(name)
        return None


def _keep(folder: PrivateFolder, name: str, model: PairModel, config: ModelConfig) -> None:
    try:
        parts = model.stored_parts()
        if parts is not None:
            folder.write(name, _pack(model, config, parts))
    except Exception as error:  # A run that has its model must not fail because the model cannot be kept.
        _LOG.debug("The model is not kept in the cache (%s).", short_reason(error))


def _pack(model: PairModel, config: ModelConfig, parts: StoredParts) -> bytes:
    bound, preprocessing = model.identity_bound(config), model.preprocessing
    functions = {name: function for name, function in parts._asdict().items() if function}
    content = {
        "facts": dataclasses.asdict(model.facts),
        "pixels": [preprocessing.pixels, preprocessing.source],
        "bound": bound and dataclasses.asdict(bound),
        "rows": {name: function.rows for name, function in functions.items()},
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(_FACTS, json.dumps(content))
        for name, function in functions.items():
            archive.writestr(name, function.definition)
    return packed.getvalue()


def _unpack(data: bytes, config: ModelConfig, digest: str, load: Callable[[], PairModel]) -> ProvenModel:
    """Returns the model that `_pack` has written.

    Raises:
        Exception: Whatever the libraries raise for damaged data.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed")
        content = json.loads(archive.read(_FACTS))
        functions = {name: StoredFunction(archive.read(name), rows) for name, rows in content["rows"].items()}
    facts = ModelFacts(**_with_tuples(content["facts"]))
    if facts.digest != digest:
        raise ValueError("it is that of another model")
    bound = content["bound"] and IdentityBound(**_with_tuples(content["bound"]))
    preprocessing = decide_preprocessing(config, facts.path, facts.image_shape, tuple(content["pixels"]))
    parts = StoredParts(*(functions.get(name) for name in StoredParts._fields))
    return ProvenModel(facts, preprocessing, bound, config, parts, load)


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
