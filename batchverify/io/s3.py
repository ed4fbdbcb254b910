"""Amazon S3 and compatible stores, through boto3."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import S3Options

from batchverify.errors import StoreError
from batchverify.io.filesystem import read_stream
from batchverify.io.storage_options import StorageOptions
from batchverify.io.store_requests import ANSWER_S, CONNECT_S, store_error

# One client serves all reading threads; more connections than these are closed after use.
_KEPT_CONNECTIONS = 64
_ATTEMPTS = 5
_lock = threading.Lock()
_client: S3Client | None = None


def s3_client(options: StorageOptions) -> S3Client:
    """Returns the client of this process. All threads share it, as boto3 allows."""
    global _client
    with _lock:
        if _client is None or _client.options is not options:
            _client = S3Client(options)
        return _client


class S3Client:
    """A client of Amazon S3 for all threads.

    Attributes:
        options: The options that it was made with.
    """

    def __init__(self, options: StorageOptions):
        self.options = options
        self._client = _make_boto3_client(options)

    def read(self, bucket: str, name: str, max_bytes: int, patience_s: float) -> bytes:
        """Returns an object, or its first `max_bytes` + 1 bytes."""

        def read() -> bytes:
            # The body as a context manager would give the raw stream, which does not report a body that is cut short.
            with contextlib.closing(self._client.get_object(Bucket=bucket, Key=name)["Body"]) as body:
                return read_stream(body, max_bytes)

        return bytes(_request(read))

    def check_object(self, bucket: str, name: str) -> None:
        """Requests the metadata of an object."""
        _request(self._client.head_object, Bucket=bucket, Key=name or "-")

    def check_listing(self, bucket: str, prefix: str) -> None:
        """Lists one object."""
        _request(self._client.list_objects_v2, Bucket=bucket, Prefix=prefix, MaxKeys=1)

    def conditional_object(self, bucket: str, name: str) -> S3Object:
        """Returns an object for writes on condition."""
        return S3Object(self._client, bucket, name)

    def abort_uploads(self, bucket: str, prefix: str, names: re.Pattern[str], before: float) -> None:
        """Deletes unfinished uploads, which are invisible and cost money.

        Args:
            bucket: The bucket.
            prefix: What their keys begin with.
            names: What follows the prefix in their keys.
            before: The time before which they began, in seconds since 1970.
        """
        for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", []):
                key = upload["Key"]
                if names.fullmatch(key.removeprefix(prefix)) and upload["Initiated"].timestamp() < before:
                    self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])


class S3Object:
    """An object of Amazon S3 with writes on condition; see `object_store.ConditionalObject`."""

    def __init__(self, client: Any, bucket: str, name: str):
        self._client, self._place = client, {"Bucket": bucket, "Key": name}

    def create(self, data: bytes) -> bool:
        """Writes the object if it does not exist, and returns whether it did not."""
        return _on_condition((409, 412), self._client.put_object, **self._place, Body=data, IfNoneMatch="*")

    def replace(self, data: bytes, version: str) -> bool:
        """Writes the object if it still has a version, and returns whether it had."""
        return _on_condition((404, 409, 412), self._client.put_object, **self._place, Body=data, IfMatch=version)

    def read(self) -> tuple[bytes, str] | None:
        """Returns the content and its version; None if the object does not exist."""
        try:
            answer = _request(self._client.get_object, **self._place)
            return _request(answer["Body"].read), str(answer["ETag"])
        except StoreError as error:
            if error.code == 404:
                return None
            raise

    def delete(self) -> None:
        """Deletes the object."""
        _request(self._client.delete_object, **self._place)


def _on_condition(unmet: tuple[int, ...], call: Callable[..., Any], **settings: Any) -> bool:
    """Returns whether a request was carried out; False where the store answers that its condition does not hold.

    Args:
        unmet: The HTTP statuses that say so.
        call: The request.
        settings: Its arguments.
    """
    try:
        _request(call, **settings)
        return True
    except StoreError as error:
        if error.code in unmet:
            return False
        raise


def _make_boto3_client(options: StorageOptions) -> Any:
    import boto3
    from botocore.config import Config

    settings = options.to_beam().view_as(S3Options)
    return boto3.session.Session().client(
        "s3",
        region_name=settings.s3_region_name,
        api_version=settings.s3_api_version,
        use_ssl=not settings.s3_disable_ssl,
        verify=settings.s3_verify,
        endpoint_url=settings.s3_endpoint_url,
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=settings.s3_secret_access_key,
        aws_session_token=settings.s3_session_token,
        config=Config(
            connect_timeout=CONNECT_S, read_timeout=ANSWER_S, max_pool_connections=_KEPT_CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        ),
    )  # fmt: skip


def _request(call: Callable[..., Any], **settings: Any) -> Any:
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
        raise store_error(None, error) from None
