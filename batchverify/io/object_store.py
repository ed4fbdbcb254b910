"""Object stores: connections kept from image to image, options brought to workers, obstacles told before a run.

Beam's file systems make a new client for every file that they open, with a connection, a handshake and a look at the
object's metadata of its own. That is nothing for a manifest, and most of the time for millions of images: `read` asks for an
object once, over a connection that is kept. All else goes through Beam's file systems.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, S3Options

from batchverify.errors import PreflightError, StoreError, short_reason
from batchverify.io.storage_options import beam_option_names, current_options, set_storage_options
from batchverify.uris import scheme_of

_LOG = logging.getLogger(__name__)
_OBJECT = re.compile(r"[a-z0-9]+://([^/]+)/?(.*)", re.S)
_CONNECT_S, _ANSWER_S, _PROBE_S = 10.0, 30.0, 10.0
# One client serves all reading threads; connections beyond these are not kept.
_KEPT_CONNECTIONS = 64
_CREDENTIALS = {
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`, and the network",
    "s3": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile, --s3_endpoint_url, and the network",
}
# Google's client asks for the bucket beside each first request, for traces that nobody here looks at.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")


def set_storage_arguments(arguments: Sequence[str], places: Iterable[tuple[str, str | None]]) -> None:
    """Does the same for a command line that runs no pipeline, and looks whether its places can be reached.

    Args:
        arguments: that are none of the command's own.
        places: as in `refuse_unreachable`.

    Raises:
        PreflightError: if an argument is not Beam's, or a store cannot be reached.
    """
    known = beam_option_names() if arguments else []
    if unknown := [name for name in arguments if not name.startswith("-") or name.split("=")[0] not in known]:
        raise PreflightError([f"there is no option {name}; see --help." for name in unknown])
    set_storage_options(PipelineOptions(list(arguments)))
    refuse_unreachable(places)


# What is amiss, before a run.


def refuse_unreachable(places: Iterable[tuple[str, str | None]], output: str | None = None) -> None:
    """Asks each store once, with an end to it, where Beam's file systems would go on asking for minutes or hours.

    Args:
        places: options, and the URI or path that each names.
        output: which of them is written to.

    Raises:
        PreflightError: where one cannot be reached at all; whether an object is there, and may be read, is for its reader to find.
    """
    problems, asked = [], set()
    for option, uri in places:
        store = _store_of(uri or "")
        if uri is None or store is None or (bucket := (store, _bucket(uri), uri == output)) in asked:
            continue
        asked.add(bucket)
        if problem := _obstacle(store, uri, uri == output):
            problems.append(f"{option} {uri}: {problem}.")
    if problems:
        raise PreflightError(problems)


def _obstacle(store: type[_GoogleStore | _AmazonStore], uri: str, is_output: bool) -> str | None:
    if missing := store.missing_extra():
        return missing
    try:
        bucket, name = _split(uri)
        (store.client().look_for if not is_output else store.client().list_one)(bucket, name)
    except StoreError as failure:
        if is_output and failure.code == 404:
            return f"there is no bucket {bucket}; make it first, or name another"
        if is_output and failure.code == 403:
            return f"it may not be listed ({failure.words}); the run needs to list, read, write and delete objects there"
        if failure.code not in (403, 404):
            return f"the store cannot be reached ({failure.words}); {_CREDENTIALS[store.scheme]}"
    return None


def _bucket(uri: str) -> str:
    return uri.split("/")[2]


def _split(uri: str) -> tuple[str, str]:
    found = _OBJECT.fullmatch(uri)
    if found is None:
        raise StoreError(404, "it names no bucket")
    return found[1], found[2]


# Reading.


def has_client(uri: str) -> bool:
    """Returns whether `read` knows the store of `uri`; others are Beam's to open."""
    return _store_of(uri) is not None


def read_object(uri: str, max_bytes: int, patience_s: float) -> bytes:
    """Returns an object in one request; of one that is too large `max_bytes` + 1 bytes.

    Args:
        uri: `gs://…` or `s3://…`.
        max_bytes: that are wanted at most.
        patience_s: for how long a store that is out of order is asked again.

    Raises:
        StoreError: with the store's answer.
        ModuleNotFoundError: if the client of this store is not installed, with the remedy.
    """
    store = _store_of(uri)
    assert store is not None
    if missing := store.missing_extra():
        raise ModuleNotFoundError(missing)
    bucket, name = _split(uri)
    return store.client().read(bucket, name, max_bytes, patience_s)


def read_stream(file: BinaryIO | Any, max_bytes: int) -> bytes:
    """Returns what `file` holds, or `max_bytes` + 1 bytes of it; a store's client may give less than it is asked for."""
    data = b""
    while len(data) <= max_bytes and (more := file.read(max_bytes + 1 - len(data))):
        data += more
    return data


class _ObjectStore:
    """What both have in common. Each has a `client()`, kept until the options change."""

    scheme: str
    module: str
    extra: str

    @classmethod
    def missing_extra(cls) -> str | None:
        try:
            importlib.import_module(cls.module)
        except ImportError:
            return f"what reads {cls.scheme}:// is not installed; pip install 'batchverify[{cls.extra}]'"
        return None


class _GoogleStore(_ObjectStore):
    """Google Cloud Storage, by Google's client: one a thread, as it shares one `requests.Session` among its requests."""

    scheme, module, extra = "gs", "google.cloud.storage", "gcp"
    _of_thread = threading.local()

    @classmethod
    def client(cls) -> _GoogleStore:
        if getattr(cls._of_thread, "options", None) is not current_options():
            cls._of_thread.options, cls._of_thread.client = current_options(), cls()
        return cls._of_thread.client

    def __init__(self) -> None:
        from apache_beam.io.gcp.gcsio import create_storage_client

        anonymous = current_options().view_as(GoogleCloudOptions).no_auth
        self._client = create_storage_client(current_options(), use_credentials=not anonymous)

    def read(self, bucket: str, name: str, max_bytes: int, patience_s: float) -> bytes:
        stream = _Bounded(max_bytes)
        blob = self._client.bucket(bucket).blob(name)
        with contextlib.suppress(_EnoughReadError):
            self._ask(blob.download_to_file, patience_s, file_obj=stream, raw_download=True, client=self._client)
        return stream.data()

    def look_for(self, bucket: str, name: str) -> None:
        self._ask(self._client.bucket(bucket).blob(name or "-").exists, _PROBE_S)

    def list_one(self, bucket: str, name: str) -> None:
        self._ask(lambda **settings: list(self._client.list_blobs(bucket, prefix=name, max_results=1, **settings)), _PROBE_S)

    @staticmethod
    def _ask(call: Callable[..., Any], patience_s: float, **settings: Any) -> Any:
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.cloud.storage.exceptions import InvalidResponse
        from google.cloud.storage.retry import DEFAULT_RETRY

        try:
            return call(
                timeout=(_CONNECT_S, min(_ANSWER_S, patience_s)), retry=DEFAULT_RETRY.with_timeout(patience_s), **settings
            )
        except _EnoughReadError:
            raise
        except Exception as error:  # of the client, or whatever it lets through of requests and urllib3
            cause = error.cause if isinstance(error, RetryError) and error.cause is not None else error
            code = cause.code if isinstance(cause, GoogleAPICallError) else None
            if isinstance(cause, InvalidResponse):
                code = cause.response.status_code
            raise StoreError(*_describe(code and int(code), cause)) from None


class _AmazonStore(_ObjectStore):
    """Amazon S3 and what speaks like it, by boto3: one client for all threads, as boto3 allows."""

    scheme, module, extra = "s3", "boto3", "aws"
    _lock = threading.Lock()
    _only: _AmazonStore | None = None
    _made_with: PipelineOptions | None = None

    @classmethod
    def client(cls) -> _AmazonStore:
        with cls._lock:
            if cls._only is None or cls._made_with is not current_options():
                cls._only, cls._made_with = cls(), current_options()
            return cls._only

    def __init__(self) -> None:
        import boto3
        from botocore.config import Config

        given = current_options().view_as(S3Options)
        self._client = boto3.session.Session().client(
            "s3",
            region_name=given.s3_region_name,
            api_version=given.s3_api_version,
            use_ssl=not given.s3_disable_ssl,
            verify=given.s3_verify,
            endpoint_url=given.s3_endpoint_url,
            aws_access_key_id=given.s3_access_key_id,
            aws_secret_access_key=given.s3_secret_access_key,
            aws_session_token=given.s3_session_token,
            config=Config(
                connect_timeout=_CONNECT_S, read_timeout=_ANSWER_S, max_pool_connections=_KEPT_CONNECTIONS,
                retries={"mode": "standard", "total_max_attempts": 5},
            ),
        )  # fmt: skip

    def read(self, bucket: str, name: str, max_bytes: int, patience_s: float) -> bytes:
        def whole() -> bytes:
            # Not the body as a context of its own: that gives the stream beneath, which tells of no body cut short.
            with contextlib.closing(self._client.get_object(Bucket=bucket, Key=name)["Body"]) as body:
                return read_stream(body, max_bytes)

        return self._ask(whole)

    def look_for(self, bucket: str, name: str) -> None:
        self._ask(self._client.head_object, Bucket=bucket, Key=name or "-")

    def list_one(self, bucket: str, name: str) -> None:
        self._ask(self._client.list_objects_v2, Bucket=bucket, Prefix=name, MaxKeys=1)

    def abort_uploads(self, bucket: str, prefix: str) -> None:
        """Gives up uploads below `prefix` that were begun and never finished; nobody sees them, and they are paid for."""
        for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for begun in page.get("Uploads", []):
                self._client.abort_multipart_upload(Bucket=bucket, Key=begun["Key"], UploadId=begun["UploadId"])

    @staticmethod
    def _ask(call: Callable[..., Any], **settings: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
        from urllib3.exceptions import HTTPError

        try:
            return call(**settings)
        except ClientError as error:
            code = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            raise StoreError(code, f"{code} {error.response.get('Error', {}).get('Code', '')}") from None
        except NoCredentialsError:
            raise StoreError(401, "there are no credentials") from None
        except (BotoCoreError, HTTPError, OSError, ValueError) as error:
            raise StoreError(*_describe(None, error)) from None


def sweep_uploads(folder: str) -> None:
    """Gives up what Amazon S3 has received of files in `folder` that nobody finished."""
    if _store_of(folder) is _AmazonStore:
        bucket, prefix = _split(folder)
        try:
            _AmazonStore.client().abort_uploads(bucket, f"{prefix}/" if prefix else "")
        except Exception as error:  # Of a store that knows no such thing, or of one who may not; they are nobody's to see.
            _LOG.info("unfinished uploads to %s cannot be looked for (%s).", folder, short_reason(error))


class _EnoughReadError(Exception):
    """There is more in an object than is wanted."""


class _Bounded:
    """A file to write to that takes `max_bytes` + 1 bytes, and no more."""

    def __init__(self, max_bytes: int):
        self._chunks: list[bytes] = []
        self._room = max_bytes + 1

    def write(self, chunk: bytes) -> int:
        self._chunks.append(chunk[: self._room])
        self._room -= len(self._chunks[-1])
        if self._room <= 0:
            raise _EnoughReadError
        return len(chunk)

    def data(self) -> bytes:
        return b"".join(self._chunks)


_BY_SCHEME: dict[str, type[_GoogleStore | _AmazonStore]] = {store.scheme: store for store in (_GoogleStore, _AmazonStore)}


def _store_of(uri: str) -> type[_GoogleStore | _AmazonStore] | None:
    return _BY_SCHEME.get(scheme_of(uri) or "")


def _describe(code: int | None, error: BaseException) -> tuple[int | None, str]:
    """Returns a status, and an error in words without the many lines and addresses that clients put in it."""
    if code in http.client.responses:
        return code, f"{code} {http.client.responses[code]}"
    return code, f"{type(error).__name__}: {short_reason(error)}"
