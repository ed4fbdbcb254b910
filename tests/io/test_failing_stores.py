"""Stores that fail for a while, for good, or without an end: real HTTP on loopback, behind Beam's file system interface."""

import io
import threading
import time
import urllib.request
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileSystem

import batchverify
from batchverify.images import fetch
from batchverify.images.fetch import fetch_bytes
from batchverify.schema import ImageStatus
from tests.support.outcomes import failed

SCHEME = "flaky"


class FlakyFileSystem(FileSystem):
    """Opens `flaky://host:port/path` by HTTP; what an organisation would write to read its own image server."""

    @classmethod
    def scheme(cls):
        return SCHEME

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        try:
            with urllib.request.urlopen(path.replace(f"{SCHEME}://", "http://"), timeout=30) as response:
                return io.BytesIO(response.read())  # raises where the connection ends before the content does
        except (OSError, HTTPException) as error:
            raise BeamIOError("open failed", {path: error}) from error

    def join(self, basepath, *paths): ...
    def split(self, path): ...
    def mkdirs(self, path): ...
    def has_dirs(self): ...
    def _list(self, dir_or_prefix): ...
    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO): ...
    def copy(self, source_file_names, destination_file_names): ...
    def rename(self, source_file_names, destination_file_names): ...
    def exists(self, path): ...
    def size(self, path): ...
    def last_updated(self, path): ...
    def checksum(self, path): ...
    def metadata(self, path): ...
    def delete(self, paths): ...


class Store(ThreadingHTTPServer):
    """Knows what to answer, and what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.released = threading.Lock(), threading.Event()
        self.asked: list[str] = []
        self.schedules: dict[str, list] = {}


class Handler(BaseHTTPRequestHandler):
    """Answers `/name` as the server's schedule for it says, one entry a request, the last one for ever after."""

    server: Store

    def do_GET(self):
        name = self.path[1:]
        with self.server.lock:
            self.server.asked.append(name)
            schedule = self.server.schedules[name]
            answer = schedule.pop(0) if len(schedule) > 1 else schedule[0]
        if answer == "hang":
            self.server.released.wait(30)
        elif answer == "reset":
            self.connection.close()
        elif isinstance(answer, int):
            self.send_error(answer)
        else:
            cut, data = answer if isinstance(answer, tuple) else (None, answer)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:cut])

    def log_message(self, *_): ...


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.01)
    server = Store()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def uri(store, name) -> str:
    return f"{SCHEME}://127.0.0.1:{store.server_port}/{name}"


@pytest.mark.parametrize(
    ("schedule", "expected", "asked"),
    [
        ([b"pixels"], b"pixels", 1),
        ([503, b"pixels"], b"pixels", 2),
        ([503, 429, b"pixels"], b"pixels", 3),
        (["reset", b"pixels"], b"pixels", 2),
        ([(3, b"pixels"), b"pixels"], b"pixels", 2),
        ([503], ImageStatus.UNAVAILABLE, 3),
        ([404], ImageStatus.MISSING, 1),
        ([403], ImageStatus.DENIED, 1),
        ([401], ImageStatus.DENIED, 1),
    ],
)
def test_what_passes_is_tried_again_and_what_lasts_is_not(schedule, expected, asked, store):
    store.schedules["a.png"] = list(schedule)
    found = fetch_bytes(uri(store, "a.png"), 100)
    assert (found if isinstance(found, bytes) else found.status) == expected
    assert len(store.asked) == asked


@pytest.mark.parametrize("name", ["403.png", "a/404/b.png", "NoSuch.png"])
def test_what_a_uri_is_called_says_nothing_of_its_failure(name, store):
    store.schedules[name] = [503]
    assert failed(fetch_bytes(uri(store, name), 100)).status == ImageStatus.UNAVAILABLE


def test_the_pauses_between_tries_grow(store, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    store.schedules["a.png"] = [503]
    fetch_bytes(uri(store, "a.png"), 100)
    assert len(pauses) == 2 and pauses[1] > 2 * pauses[0] > 0


@pytest.mark.slow
def test_a_store_that_hangs_costs_its_rows_and_no_others(store, small_model, pictures, tmp_path, read_scores):
    for number in range(10):
        store.schedules[f"p{number}.png"] = [(pictures / f"p{number}.png").read_bytes()]
    store.schedules |= {"p3.png": ["hang"], "p4.png": [503], "p5.png": [503, store.schedules["p5.png"][0]]}
    rows = [f"{uri(store, f'p{n}.png')},{uri(store, f'p{(n + 1) % 10}.png')}" for n in range(10)]
    (tmp_path / "pairs.csv").write_text("left,right\n" + "\n".join(rows))
    config = batchverify.VerificationConfig(
        manifests=(str(tmp_path / "pairs.csv"),), output=str(tmp_path / "out"), model=small_model, image_timeout=3
    )
    batchverify.run(config)
    scores = read_scores(tmp_path / "out")
    bad = [3, 4]
    assert [n for n, status in enumerate(scores["left_status"]) if status == "unavailable"] == bad
    assert scores["score"].isna().tolist() == [n in bad or (n + 1) in bad for n in range(10)]
    assert "took longer than 3 s" in scores["error"][3] and "503" in scores["error"][4]
