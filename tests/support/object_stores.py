"""Object stores on loopback, and a proxy before them that counts, delays and spoils what passes.

The stores are PyPI's `gcp-storage-emulator` and moto's server. Both speak to the proxy alone; the program is told of it with
`STORAGE_EMULATOR_HOST` or `--s3_endpoint_url`, and knows nothing else of the test.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import http.client
import json
import logging
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import botocore.loaders
import botocore.session
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from gcp_storage_emulator.server import create_server
from google.cloud.storage import Client
from moto.server import ThreadedMotoServer

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


HANG_S = 120  # how long a store that hangs keeps a connection open
_LIST = re.compile(r"/storage/v1/b/bucket/o\?|/bucket/?\?list-type")


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request that came to the proxy.

    Attributes:
        method: of HTTP.
        path: with its query, unquoted.
        connection: the client's address and port.
    """

    method: str
    path: str
    connection: tuple[str, int]


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a store, unless a fault is due.

    Args:
        port: of the store.
        serial: whether the store takes one request at a time.
        host: The address to listen at.
    """

    daemon_threads = True

    def __init__(self, port: int, serial: bool, host: str):
        super().__init__((host, 0), _Handler)
        self.store_port = port
        self.gate: contextlib.AbstractContextManager = threading.Lock() if serial else contextlib.nullcontext()
        self.lock, self.stopped, self.hanging = threading.Lock(), threading.Event(), threading.Event()
        self.clear()

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"

    def clear(self) -> None:
        """Forgets what was asked and what is to go wrong."""
        with self.lock:
            self.hanging.clear()
            self.asked: list[Asked] = []
            self.faults: list[tuple[re.Pattern, collections.deque]] = []
            self.busy: collections.Counter[str] = collections.Counter()
            self.busiest, self.delay_s = 0, 0.0

    def spoil(self, pattern: str, *faults: int | str, times: int = 1) -> None:
        """Lets requests go wrong whose method and path match `pattern`, `times` times each fault in turn.

        A fault is a status to answer, `hang` (no answer at all), `reset` (the connection is cut) or `cut` (half of the body).
        """
        self.faults.append((re.compile(pattern), collections.deque(fault for fault in faults for _ in range(times))))

    def listed(self) -> list[str]:
        """Returns the prefixes of all requests for a list of objects."""
        queries = [urllib.parse.parse_qs(asked.path.partition("?")[2]) for asked in self.asked if _LIST.match(asked.path)]
        return [query.get("prefix", [""])[0] for query in queries]

    def images_asked(self) -> int:
        """Returns how often an image has been asked for."""
        return sum(asked.path.endswith(".png") for asked in list(self.asked))

    def due(self, request: str) -> int | str | None:
        """Returns what goes wrong with a request, if anything does."""
        with self.lock:
            for pattern, faults in self.faults:
                if faults and pattern.search(request):
                    return faults.popleft()
        return None

    def handle_error(self, request, client_address) -> None: ...  # a client that was killed has nothing more to hear


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle_one_request()

    def _answer(self) -> None:
        body = self._body()
        if self.path == "/token":  # of Google's accounts, so that the program signs in as it always does
            self._send(200, [("Content-Type", "application/json")], b'{"access_token": "test", "expires_in": 3600}')
            return
        path = urllib.parse.unquote(self.path)
        with self._counted(path):
            fault = self.server.due(f"{self.command} {path}")
            if fault:
                self._spoil(fault, body)
            else:
                self._send(*self._forward(body))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _answer  # noqa: N815

    @contextlib.contextmanager
    def _counted(self, path: str) -> Iterator[None]:
        """Writes down a request, and counts how many images are asked for at the same time."""
        server, image = self.server, path.split("?")[0].endswith(".png")
        with server.lock:
            server.asked.append(Asked(self.command, path, self.client_address))
            server.busy["images"] += image
            server.busiest = max(server.busiest, server.busy["images"])
        try:
            time.sleep(server.delay_s if image else 0)
            yield
        finally:
            with server.lock:
                server.busy["images"] -= image

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "transfer-encoding")}
        kept["Content-Length"] = str(len(body))
        with self.server.gate:
            store = http.client.HTTPConnection("127.0.0.1", self.server.store_port, timeout=30)
            store.request(self.command, self.path, body, kept)
            response = store.getresponse()
            data = response.read()
            store.close()
        return response.status, response.getheaders(), data

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value.replace(f":{self.server.store_port}/", f":{self.server.server_port}/"))
        self.send_header("Content-Length", lengths[0] if lengths and self.command == "HEAD" else str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut] if self.command != "HEAD" else b"")

    def _spoil(self, fault: int | str, body: bytes) -> None:
        if fault == "cut":
            status, headers, data = self._forward(body)
            self._send(status, headers, data, len(data) // 2)
        elif fault == "hang":
            self.server.hanging.set()
            self.server.stopped.wait(HANG_S)
        elif isinstance(fault, int):
            self._send(fault, [("Content-Type", "text/plain")], f"{fault} of the test".encode())
            return
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_) -> None: ...


def service_account(proxy: Proxy) -> str:
    """Returns the file of a service account whose tokens come from the proxy."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    about = {"type": "service_account", "project_id": "test-project", "client_email": "test@test.invalid", "private_key": pem}
    return json.dumps(about | {"token_uri": f"{proxy.url}/token"})


class Store:
    """One bucket in a store, seen from the test, behind the proxy seen from the program.

    Attributes:
        scheme: `gs` or `s3`.
        proxy: between program and store.
        arguments: that tell the program of the store.
        environment: likewise.
    """

    def __init__(self, scheme: str, proxy: Proxy, arguments: list[str], environment: dict[str, str]):
        self.scheme, self.proxy, self.arguments, self.environment = scheme, proxy, arguments, environment

    def uri(self, name: str) -> str:
        return f"{self.scheme}://bucket/{name}"

    def upload(self, folder: Path, prefix: str) -> None:
        """Puts all files of `folder` below `prefix`."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())

    def download(self, prefix: str, folder: Path) -> Path:
        """Brings all objects below `prefix` into `folder`."""
        for name in self.names(prefix):
            target = folder / name.removeprefix(prefix).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.get(name))
        return folder

    def clear(self, prefix: str) -> None:
        """Deletes all objects below `prefix`, and the uploads that nobody finished."""
        for name in self.names(prefix):
            self.delete(name)
        self.give_up()

    # What the stores do in their own ways.
    delete: Callable[[str], object]
    give_up: Callable[[], object]
    put: Callable[[str, bytes], object]
    get: Callable[[str], bytes]
    names: Callable[[str], list[str]]
    uploads: Callable[[], list[str]]
    begin_upload: Callable[[str], object]


@contextlib.contextmanager
def _proxied(port: int, serial: bool, host: str = "127.0.0.1") -> Iterator[Proxy]:
    proxy = Proxy(port, serial, host)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.stopped.set()
        proxy.shutdown()
        proxy.server_close()


@contextlib.contextmanager
def gs_store(folder: Path) -> Iterator[Store]:
    """Gives an empty bucket of Google's kind, with the credentials for it in `folder`."""
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.server_port
    with _proxied(port, serial=True) as proxy:
        account = folder / "account.json"
        account.write_text(service_account(proxy))
        store = Store("gs", proxy, [], {"STORAGE_EMULATOR_HOST": proxy.url, "GOOGLE_APPLICATION_CREDENTIALS": str(account)})
        client = Client.create_anonymous_client()
        client._connection.API_BASE_URL = f"http://127.0.0.1:{port}"
        bucket = client.bucket("bucket")
        store.put = lambda name, data: bucket.blob(name).upload_from_string(data)
        store.get = lambda name: bucket.blob(name).download_as_bytes()
        store.names = lambda prefix: sorted(blob.name for blob in client.list_blobs(bucket, prefix=prefix))
        store.delete = bucket.delete_blob
        store.uploads = store.give_up = lambda: []
        store.begin_upload = lambda name: None
        yield store
    server.stop()


def keep_descriptions() -> None:
    """Has boto3 read its descriptions of Amazon's services once in this process.

    Beam makes a session for every file that it opens, and each of them would read megabytes of JSON anew.
    """
    botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)


@contextlib.contextmanager
def _descriptions_kept() -> Iterator[None]:
    keep_descriptions()
    try:
        yield
    finally:
        botocore.session.create_loader = botocore.loaders.create_loader


@contextlib.contextmanager
def s3_store(_: Path, host: str = "127.0.0.1") -> Iterator[Store]:
    """Gives an empty bucket of Amazon's kind, which is reached at the address `host`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1"}
    port = server.get_host_and_port()[1]
    # Its buckets are the process's, and outlive the server.
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST"))
    with _descriptions_kept(), _proxied(port, serial=False, host=host) as proxy:
        store = Store("s3", proxy, [f"--s3_endpoint_url={proxy.url}"], keys)
        who = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "eu-central-1"}
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **who)
        client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        store.put = lambda name, data: client.put_object(Bucket="bucket", Key=name, Body=data)
        store.get = lambda name: client.get_object(Bucket="bucket", Key=name)["Body"].read()
        store.names = lambda prefix: sorted(
            found["Key"] for found in client.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
        )
        uploads = lambda: client.list_multipart_uploads(Bucket="bucket").get("Uploads", [])  # noqa: E731
        store.delete = lambda name: client.delete_object(Bucket="bucket", Key=name)
        store.uploads = lambda: [found["Key"] for found in uploads()]
        store.begin_upload = lambda name: client.create_multipart_upload(Bucket="bucket", Key=name)
        store.give_up = lambda: [
            client.abort_multipart_upload(Bucket="bucket", Key=found["Key"], UploadId=found["UploadId"]) for found in uploads()
        ]
        yield store
    server.stop()
