"""Google Cloud Storage, through Google's client."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import GoogleCloudOptions

from batchverify.errors import StoreError
from batchverify.io.storage_options import StorageOptions
from batchverify.io.store_requests import ANSWER_S, CONNECT_S, store_error

_PROBE_S = 10.0
# Google's client otherwise requests the bucket's metadata with each first request, for traces that this program does not use.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
_of_thread = threading.local()


def gcs_client(options: StorageOptions) -> GcsClient:
    """Returns this thread's client. Threads do not share one, because it uses a single `requests.Session`."""
    client: GcsClient | None = getattr(_of_thread, "client", None)
    if client is None or client.options is not options:
        client = _of_thread.client = GcsClient(options)
    return client


class GcsClient:
    """A client of Google Cloud Storage for one thread.

    Attributes:
        options: The options that it was made with.
    """

    def __init__(self, options: StorageOptions):
        from apache_beam.io.gcp.gcsio import create_storage_client

        self.options, beam_options = options, options.to_beam()
        anonymous = beam_options.view_as(GoogleCloudOptions).no_auth
        self._client: Any = create_storage_client(beam_options, use_credentials=not anonymous)

    def read(self, bucket: str, name: str, max_bytes: int, patience_s: float) -> bytes:
        """Returns an object, or its first `max_bytes` + 1 bytes."""
        file = _BoundedFile(max_bytes)
        blob = self._client.bucket(bucket).blob(name)
        with contextlib.suppress(_FileFullError):
            _request(blob.download_to_file, patience_s, file_obj=file, raw_download=True, client=self._client)
        return file.data()

    def check_object(self, bucket: str, name: str) -> None:
        """Requests the metadata of an object; whether it exists does not matter."""
        _request(self._client.bucket(bucket).blob(name or "-").exists, _PROBE_S)

    def conditional_object(self, bucket: str, name: str) -> GcsObject:
        """Returns an object for writes on condition."""
        return GcsObject(self._client, bucket, name)

    def check_listing(self, bucket: str, prefix: str) -> None:
        """Lists one object."""
        _request(lambda **settings: list(self._client.list_blobs(bucket, prefix=prefix, max_results=1, **settings)), _PROBE_S)


class GcsObject:
    """An object of Google Cloud Storage with writes on condition; see `object_store.ConditionalObject`."""

    def __init__(self, client: Any, bucket: str, name: str):
        self._client, self._blob = client, client.bucket(bucket).blob(name)

    def create(self, data: bytes) -> bool:
        """Writes the object if it does not exist, and returns whether it did not."""
        return self._write(data, 0, (412,))

    def replace(self, data: bytes, version: str) -> bool:
        """Writes the object if it still has a version, and returns whether it had."""
        return self._write(data, int(version), (404, 412))

    def read(self) -> tuple[bytes, str] | None:
        """Returns the content and its version; None if the object does not exist."""
        try:
            data = _request(self._blob.download_as_bytes, _PROBE_S, client=self._client, raw_download=True)
            _request(self._blob.reload, _PROBE_S, client=self._client)
            return bytes(data), str(self._blob.generation)
        except StoreError as error:
            if error.code == 404:
                return None
            raise

    def delete(self) -> None:
        """Deletes the object."""
        _request(self._blob.delete, _PROBE_S, client=self._client)

    def _write(self, data: bytes, generation: int, unmet: tuple[int, ...]) -> bool:
        try:
            _request(self._blob.upload_from_string, _PROBE_S, data=data, client=self._client, if_generation_match=generation)
            return True
        except StoreError as error:
            if error.code in unmet:
                return False
            raise


def _request(call: Callable[..., Any], patience_s: float, **settings: Any) -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    timeout, retry = (CONNECT_S, min(ANSWER_S, patience_s)), DEFAULT_RETRY.with_timeout(patience_s)
    try:
        return call(timeout=timeout, retry=retry, **settings)
    except _FileFullError:
        raise
    except Exception as error:  # The client's own errors, and those of requests and urllib3 that it lets through.
        raise _to_store_error(error) from None


def _to_store_error(error: Exception) -> StoreError:
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.cloud.storage.exceptions import InvalidResponse

    cause = error.cause if isinstance(error, RetryError) and error.cause is not None else error
    code = cause.code if isinstance(cause, GoogleAPICallError) else None
    if isinstance(cause, InvalidResponse):
        code = cause.response.status_code
    return store_error(int(code) if code else None, cause)


class _FileFullError(Exception):
    """An object has more bytes than are wanted."""


class _BoundedFile:
    """A file to write to that takes `max_bytes` + 1 bytes and then raises `_FileFullError`."""

    def __init__(self, max_bytes: int):
        self._chunks: list[bytes] = []
        self._bytes_left = max_bytes + 1

    def write(self, chunk: bytes) -> int:
        self._chunks.append(chunk[: self._bytes_left])
        self._bytes_left -= len(self._chunks[-1])
        if self._bytes_left <= 0:
            raise _FileFullError
        return len(chunk)

    def data(self) -> bytes:
        return b"".join(self._chunks)
