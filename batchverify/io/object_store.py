"""Reads objects over connections that are kept, and checks before a run whether its stores can be reached.

Beam's file systems make a new client for every file that they open, with a connection, a handshake and a request for the
object's metadata. For a manifest that does not matter; for millions of images it takes most of the time. `read_object` requests
an object once, over a connection that is kept. Everything else goes through Beam's file systems.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from apache_beam.options.pipeline_options import PipelineOptions

from batchverify.errors import PreflightError, StoreError, short_reason
from batchverify.io.gcs import gcs_client
from batchverify.io.s3 import s3_client
from batchverify.io.storage_options import StorageOptions, beam_options, current_storage_options, set_storage_options
from batchverify.uris import URI_PATTERN, scheme_of

_LOG = logging.getLogger(__name__)
_OBJECT_URI = re.compile(f"{URI_PATTERN.pattern}(?P<bucket>[^/]+)/?(?P<name>.*)", re.S)


class ObjectStoreClient(Protocol):
    """A client of one object store. Each method raises `StoreError` if the store gives no answer or refuses."""

    def read(self, bucket: str, name: str, max_bytes: int, patience_s: float) -> bytes:
        """Returns an object, or its first `max_bytes` + 1 bytes; an overloaded store is retried for `patience_s` seconds."""

    def check_object(self, bucket: str, name: str) -> None:
        """Requests the metadata of an object."""

    def check_listing(self, bucket: str, prefix: str) -> None:
        """Lists one object."""

    def conditional_object(self, bucket: str, name: str) -> ConditionalObject:
        """Returns an object for writes on condition."""


class ConditionalObject(Protocol):
    """One object of a store, with writes on condition. Each method raises `StoreError` if the store refuses otherwise."""

    def create(self, data: bytes) -> bool:
        """Writes the object if it does not exist, and returns whether it did not."""

    def replace(self, data: bytes, version: str) -> bool:
        """Writes the object if it still has a version, and returns whether it had."""

    def read(self) -> tuple[bytes, str] | None:
        """Returns the content and its version; None if the object does not exist."""

    def delete(self) -> None:
        """Deletes the object."""


@dataclasses.dataclass(frozen=True)
class _Store:
    """A kind of object store.

    Attributes:
        client: The function that returns the kept client for some options.
        module: The module that the client needs.
        extra: The extra of this package that installs it.
        remedy: The advice to a user whose store cannot be reached.
    """

    client: Callable[[StorageOptions], ObjectStoreClient]
    module: str
    extra: str
    remedy: str


_STORES = {
    "gs": _Store(
        gcs_client, "google.cloud.storage", "gcp",
        "check GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`, and the network",
    ),
    "s3": _Store(
        s3_client, "boto3", "aws",
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile, --s3_endpoint_url, and the network",
    ),
}  # fmt: skip


def has_client(uri: str) -> bool:
    """Returns whether `read_object` knows the store of `uri`; Beam opens files of all others."""
    return scheme_of(uri) in _STORES


def read_object(uri: str, max_bytes: int, patience_s: float, options: StorageOptions) -> bytes:
    """Returns an object in one request, or its first `max_bytes` + 1 bytes.

    Args:
        uri: A URI for which `has_client` is true.
        max_bytes: The largest number of bytes that is wanted.
        patience_s: The number of seconds for which an overloaded store is retried.
        options: The options of the client.

    Raises:
        StoreError: If the store gives no object.
        ModuleNotFoundError: If the client of this store is not installed; with the remedy.
    """
    scheme = scheme_of(uri) or ""
    if problem := _missing_module(scheme):
        raise ModuleNotFoundError(problem)
    bucket, name = _split(uri)
    return _STORES[scheme].client(options).read(bucket, name, max_bytes, patience_s)


def conditional_object(uri: str) -> ConditionalObject:
    """Returns an object of a store for writes on condition.

    Args:
        uri: A URI for which `has_client` is true.
    """
    bucket, name = _split(uri)
    return _STORES[scheme_of(uri) or ""].client(current_storage_options()).conditional_object(bucket, name)


def abort_uploads(folder: str, names: re.Pattern[str], before: float = math.inf) -> None:
    """Deletes what Amazon S3 has received of files in a folder that were never finished; does nothing for other stores.

    Args:
        folder: The URI or path.
        names: The names of the files relative to the folder; uploads of other names may be another program's.
        before: The time before which the uploads began, in seconds since 1970.
    """
    if scheme_of(folder) == "s3":
        try:
            bucket, prefix = _split(f"{folder.rstrip('/')}/")
            s3_client(current_storage_options()).abort_uploads(bucket, prefix, names, before)
        except Exception as error:  # Some compatible stores and some users cannot list uploads; nobody sees what stays.
            _LOG.info("unfinished uploads to %s cannot be looked for (%s).", folder, short_reason(error))


def set_storage_arguments(arguments: Sequence[str], places: Iterable[tuple[str, str | None]]) -> None:
    """Sets the options of a command that runs no pipeline, and checks whether its stores can be reached.

    Args:
        arguments: The arguments that are not the command's own.
        places: As in `refuse_unreachable`.

    Raises:
        PreflightError: If an argument is not Beam's, or a store cannot be reached.
    """
    known = beam_options() if arguments else {}
    if unknown := [name for name in arguments if not name.startswith("-") or name.split("=")[0] not in known]:
        raise PreflightError([f"there is no option {name}; see --help." for name in unknown])
    set_storage_options(PipelineOptions(list(arguments)))
    refuse_unreachable(places)


def refuse_unreachable(places: Iterable[tuple[str, str | None]], output: str | None = None) -> None:
    """Sends one request with a time limit to each store; Beam's file systems would retry for minutes or hours.

    Args:
        places: Options, and the URI or path that each of them names.
        output: The URI or path that is written to.

    Raises:
        PreflightError: If a store cannot be reached. Whether an object exists and may be read is checked when it is read.
    """
    problems, checked = [], set()
    for option, uri in places:
        if uri is None or not has_client(uri):
            continue
        check = (scheme_of(uri), uri.split("/")[2], uri == output)
        if check in checked:
            continue
        checked.add(check)
        if problem := _find_problem(uri, uri == output):
            problems.append(f"{option} {uri}: {problem}.")
    if problems:
        raise PreflightError(problems)


def _find_problem(uri: str, is_output: bool) -> str | None:
    scheme = scheme_of(uri) or ""
    if problem := _missing_module(scheme):
        return problem
    try:
        bucket, name = _split(uri)
        client = _STORES[scheme].client(current_storage_options())
        (client.check_listing if is_output else client.check_object)(bucket, name)
    except StoreError as error:
        if is_output and error.code == 404:
            return f"there is no bucket {bucket}; make it first, or name another"
        if is_output and error.code == 403:
            return f"it may not be listed ({error.description}); the run needs to list, read, write and delete objects there"
        if error.code not in (403, 404):
            return f"the store cannot be reached ({error.description}); {_STORES[scheme].remedy}"
    return None


def _missing_module(scheme: str) -> str | None:
    store = _STORES[scheme]
    try:
        importlib.import_module(store.module)
    except ImportError:
        return f"what reads {scheme}:// is not installed; pip install 'batchverify[{store.extra}]'"
    return None


def _split(uri: str) -> tuple[str, str]:
    """Returns the bucket and the name of the object."""
    match = _OBJECT_URI.fullmatch(uri)
    if match is None:
        raise StoreError(404, "it names no bucket")
    return match["bucket"], match["name"]
