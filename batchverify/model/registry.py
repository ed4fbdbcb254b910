"""Models in a registry: `models:/name@alias` or `/7` or `/latest` of MLflow, `hf://org/repo@revision/path` of Hugging Face

A name is resolved once, in the launcher. Workers get the resolved name, so that an alias or branch that moves changes nothing.
No code of a model's flavour or of its repository runs: one file, or the folder of one SavedModel, is fetched.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import posixpath
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard, TypeVar
from urllib.parse import quote, unquote

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError, short_reason

_MLFLOW = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+|latest))(?:/(?P<path>.+))?")
_HUGGING_FACE = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.+))?")
_SCHEMES = ("models:/", "hf://")
_MODEL_FILES = (".keras", ".h5", ".hdf5", ".onnx")
_SAVED_MODEL = re.compile(r"(saved_model|keras_metadata|fingerprint)\.pb|(variables|assets|assets\.extra)/.+")
_TIMEOUT_S = 10.0
# What MLflow reads from the environment; the user's own values count.
_MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_NO_REGISTRY = "no registry that this environment can read is named; set MLFLOW_TRACKING_URI to the address of its server."

Config = TypeVar("Config", bound=ModelConfig)


@dataclasses.dataclass(frozen=True)
class _Place:
    """One version of a registered model or of a repository.

    Attributes:
        name: The name as the user, or the launcher, gave it; messages begin with it.
        root: The name of the version itself, without a path in it.
        path: The path of the model in it; empty for the whole of it.
    """

    name: str
    root: str
    path: str

    def list_files(self) -> list[str]:
        """Returns the paths of all files."""
        raise NotImplementedError

    def fetch(self, path: str, folder: str) -> str:
        """Returns the path of a file on this machine, fetched into `folder` where no cache has it."""
        raise NotImplementedError


def is_registry_name(model: str | None) -> TypeGuard[str]:
    """Returns whether a model is named by a registry, and not by a path or the URI of a store."""
    return model is not None and model.startswith(_SCHEMES)


def resolve_models(config: Config) -> tuple[Config, dict[str, dict[str, str]]]:
    """Returns the configuration with each registry's name resolved, and the versions by field, `model` or `candidate`.

    Raises:
        PreflightError: If a registry has no such model, or cannot be asked.
    """
    versions: dict[str, dict[str, str]] = {}
    changes: dict[str, Any] = {}
    for field in ("model", "candidate"):
        name = getattr(config, field, None)
        if is_registry_name(name):
            changes[field], versions[field] = resolve_model(name, f"--{field}")
    return dataclasses.replace(config, **changes) if changes else config, versions


def resolve_model(name: str, option: str = "--model") -> tuple[str, dict[str, str]]:
    """Returns the name of the model's file in one version that never changes, and that version as the summary has it.

    Args:
        name: The name, such as `models:/faces@champion`.
        option: The option that gave it, for messages.

    Raises:
        PreflightError: If there is no such model, or the registry cannot be asked.
    """
    with _naming(option, name):
        if name.startswith("hf://"):
            return _resolve_hugging_face(name)
        return _resolve_mlflow(name)


def fetch_model(name: str, folder: str) -> str:
    """Returns the path on this machine of a model that `resolve_model` has named.

    Args:
        name: The resolved name.
        folder: An empty folder, for what no cache has.

    Raises:
        PreflightError: If it cannot be fetched.
    """
    with _naming("--model", name):
        place = _open_place(name)
        listed = [place.path] if place.path.endswith(_MODEL_FILES[:3]) else place.list_files()
        if place.path in listed and f"{place.path}.data" not in listed:
            return place.fetch(place.path, folder)
        target = os.path.join(folder, "model")
        for path in _files_of(place.path, listed):
            local = os.path.join(target, *path.split("/"))
            os.makedirs(os.path.dirname(local), exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                shutil.copyfile(place.fetch(path, scratch), local)
        return os.path.join(target, *filter(None, place.path.split("/")))


def read_beside(name: str, suffix: str) -> bytes | None:
    """Returns the content of the file whose path is that of a resolved model and `suffix`; None where there is none.

    Raises:
        PreflightError: If it cannot be fetched.
    """
    with _naming("--model", name):
        place = _open_place(name)
        path = place.path + suffix
        # The root of a version has no name of its own that a file could begin with.
        if not place.path or path not in place.list_files():
            return None
        with tempfile.TemporaryDirectory() as folder, open(place.fetch(path, folder), "rb") as file:
            return file.read()


@contextmanager
def _naming(option: str, name: str) -> Iterator[None]:
    """Turns what the registries' libraries raise into one sentence that begins with the option."""
    try:
        yield
    except PreflightError as error:
        raise PreflightError([f"{option} {name}: {problem}" for problem in error.problems]) from None
    except Exception as error:  # The libraries raise errors of their own, of HTTP clients, and of stores.
        raise PreflightError(
            f"{option} {name}: it cannot be fetched ({short_reason(error)}); check the name, the registry's address and your "
            "access."
        ) from None


def _open_place(name: str) -> _Place:
    if name.startswith("hf://"):
        found = _match(_HUGGING_FACE, name)
        repo, revision = found["repo"], unquote(found["revision"] or "main")
        return _Repository(name, f"hf://{repo}@{quote(revision, safe='')}", found["path"] or "", repo, revision)
    found = _match(_MLFLOW, name)
    if found["version"] in (None, "latest"):
        raise PreflightError("it is not resolved; give a version, such as models:/name/7.")
    root = f"models:/{found['name']}/{found['version']}"
    location = _mlflow_client().get_model_version_download_uri(found["name"], found["version"])
    return _RegisteredVersion(name, root, found["path"] or "", location)


def _match(pattern: re.Pattern[str], name: str) -> re.Match[str]:
    found = pattern.fullmatch(name.rstrip("/"))
    if found is None:
        raise PreflightError(
            "it is no name of a model; give models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME/latest or hf://ORG/REPO@REVISION/PATH."
        )
    if ".." in (found["path"] or "").split("/"):
        raise PreflightError("its path leads out of the version; leave out '..'.")
    return found


def _choose(files: Iterable[str], path: str) -> str:
    """Returns the path of the one model, a file or the folder of a SavedModel, that is `path` or lies in it."""
    files = [file for file in files if not path or file == path or file.startswith(f"{path}/")]
    if not files:
        raise PreflightError(f"it holds no '{path}'; check the path." if path else "it is empty; register the model again.")
    folders = [posixpath.dirname(file) for file in files if posixpath.basename(file) == "saved_model.pb"]
    inside = tuple(f"{folder}/" if folder else "" for folder in folders)
    models = folders + [file for file in files if file.endswith(_MODEL_FILES) and not (inside and file.startswith(inside))]
    if path in files:
        models = [path]
    if not models:
        raise PreflightError("it holds no .keras, .h5 or .onnx file and no SavedModel; name a version that holds one.")
    if len(models) > 1:
        listed = ", ".join(sorted(models)[:5])
        raise PreflightError(f"it holds {len(models)} models ({listed}); add the path of one of them to the name.")
    return models[0]


def _files_of(path: str, listed: Sequence[str]) -> list[str]:
    """Returns the files that belong to a model: the one with its weights beside it, or those of a SavedModel's folder."""
    if path in listed:
        return [file for file in (path, f"{path}.data") if file in listed]
    prefix = f"{path}/" if path else ""
    files = [file for file in listed if file.startswith(prefix) and _SAVED_MODEL.fullmatch(file.removeprefix(prefix))]
    if not files or any(".." in file.split("/") or file.startswith("/") for file in files):
        raise PreflightError("it holds no SavedModel that can be fetched; check the path.")
    return files


# MLflow


@dataclasses.dataclass(frozen=True)
class _RegisteredVersion(_Place):
    location: str

    def _artifacts(self) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(self.location)

    def list_files(self) -> list[str]:
        artifacts, folders = self._artifacts(), [""]
        files: list[str] = []
        while folders:
            for item in artifacts.list_artifacts(folders.pop() or None):
                (folders if item.is_dir else files).append(item.path)
        return files

    def fetch(self, path: str, folder: str) -> str:
        return str(self._artifacts().download_artifacts(path, folder))


def _mlflow_client() -> Any:
    for variable, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(variable, value)
    try:
        import mlflow
    except ImportError:
        raise PreflightError("a registry of MLflow needs mlflow-skinny: pip install 'batchverify[mlflow]'.") from None
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    try:
        return mlflow.MlflowClient()
    except UnsupportedModelRegistryStoreURIException:
        raise PreflightError(_NO_REGISTRY) from None


def _resolve_mlflow(name: str) -> tuple[str, dict[str, str]]:
    found = _match(_MLFLOW, name)
    client = _mlflow_client()
    from mlflow.exceptions import MlflowException

    try:
        if found["alias"]:
            version = client.get_model_version_by_alias(found["name"], found["alias"])
        elif found["version"] == "latest":
            version = _latest_version(client, found["name"])
        else:
            version = client.get_model_version(found["name"], found["version"])
        location = client.get_model_version_download_uri(found["name"], str(version.version))
    except MlflowException as error:
        raise PreflightError(_describe_mlflow_error(error, found)) from None
    root = f"models:/{found['name']}/{version.version}"
    path = _choose(_RegisteredVersion(name, root, "", location).list_files(), found["path"] or "")
    facts = {"registry": "mlflow", "name": found["name"], "version": str(version.version)}
    return f"{root}/{path}".rstrip("/"), facts | ({"alias": found["alias"]} if found["alias"] else {})


def _latest_version(client: Any, name: str) -> Any:
    with warnings.catch_warnings():
        # It warns that stages are deprecated, and is what MLflow itself asks for the latest version of all.
        warnings.simplefilter("ignore", FutureWarning)
        versions = client.get_latest_versions(name)
    if not versions:
        raise PreflightError(f"the model '{name}' has no version; register one.")
    return max(versions, key=lambda version: int(version.version))


def _describe_mlflow_error(error: Any, found: re.Match[str]) -> str:
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        what = "model" if found["version"] in (None, "latest") else f"version {found['version']} of a model"
        return f"the registry has no {what} '{found['name']}'; check the name, and MLFLOW_TRACKING_URI."
    if error.error_code == "INVALID_PARAMETER_VALUE" and found["alias"]:
        return f"the model '{found['name']}' has no alias '{found['alias']}'; set it in the registry, or name a version."
    return f"the registry cannot be asked ({short_reason(error)}); check MLFLOW_TRACKING_URI and your access."


# Hugging Face


@dataclasses.dataclass(frozen=True)
class _Repository(_Place):
    repo: str
    revision: str

    def list_files(self) -> list[str]:
        return list(_hugging_face().list_repo_files(self.repo, revision=self.revision))

    def fetch(self, path: str, folder: str) -> str:
        """Returns the path of a file in the library's own cache, which has the file of a commit once."""
        return str(_hugging_face().hf_hub_download(self.repo, path, revision=self.revision))


def _hugging_face() -> Any:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise PreflightError("Hugging Face needs huggingface_hub: pip install 'batchverify[huggingface]'.") from None
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def _resolve_hugging_face(name: str) -> tuple[str, dict[str, str]]:
    found = _match(_HUGGING_FACE, name)
    repo, revision = found["repo"], unquote(found["revision"] or "main")
    api = _hugging_face()
    from huggingface_hub import errors

    try:
        info = api.model_info(repo, revision=revision, timeout=_TIMEOUT_S)
    except errors.GatedRepoError:
        raise PreflightError("access to it must be granted; ask for it on its page, and set HF_TOKEN.") from None
    except errors.RevisionNotFoundError:
        raise PreflightError(f"the repository has no revision '{revision}'; check the branch, tag or commit.") from None
    except errors.RepositoryNotFoundError:
        raise PreflightError("there is no such repository, or it is private; check the name, and set HF_TOKEN.") from None
    except Exception as error:  # The HTTP client has errors of its own.
        raise PreflightError(
            f"Hugging Face cannot be asked ({short_reason(error)}); check HF_ENDPOINT, and your network."
        ) from None
    path = _choose([file.rfilename for file in info.siblings or ()], found["path"] or "")
    facts = {"registry": "huggingface", "name": repo, "version": info.sha, "revision": revision}
    return f"hf://{repo}@{info.sha}/{path}".rstrip("/"), facts
