"""A copy of a model that nobody else can change, so that what is checked is what is loaded."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from batchverify.errors import PreflightError, short_reason
from batchverify.model.file import ONNX_WEIGHTS_SUFFIX, ModelKind, identify_model
from batchverify.model.local_copy import list_files, local_model
from batchverify.temporary_folder import temporary_copy, temporary_folder


@contextlib.contextmanager
def private_model(path: str | None) -> Iterator[str]:
    """Yields the path of a model that nobody but this user can change: a file on this machine is copied, once.

    Args:
        path: The model's path or URI; None means the embedded model.

    Raises:
        PreflightError: If there is no such model, it is none, or it cannot be copied.
    """
    with local_model(path) as local:
        if local != path:  # It came with this package, or was fetched from elsewhere.
            yield local
        else:
            kind = identify_model(local, local)
            with temporary_folder() as folder:
                yield _copy_model(local, kind, folder)


def _copy_model(path: str, kind: ModelKind, folder: str) -> str:
    target = os.path.join(folder, "model")
    try:
        files = _list_model(path, kind)
        with temporary_copy(f"--model {path}"):
            for suffix in files:
                os.makedirs(os.path.dirname(target + suffix), exist_ok=True)
                shutil.copyfile(path + suffix, target + suffix)
    except OSError as error:
        raise PreflightError(f"--model {path}: it cannot be read ({short_reason(error)}); copy it again, whole.") from None
    return target


def _list_model(path: str, kind: ModelKind) -> list[str]:
    """Returns what stands behind the path of a model in the paths of its files."""
    if kind is ModelKind.SAVED_MODEL:
        return [os.sep + name for name in list_files(path)]
    has_more = kind is ModelKind.ONNX and os.path.isfile(path + ONNX_WEIGHTS_SUFFIX)
    return ["", ONNX_WEIGHTS_SUFFIX] if has_more else [""]
