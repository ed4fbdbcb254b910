"""A program that uses this package as a library keeps Pillow's settings, and they change no result."""

import contextlib
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

import batchverify
from batchverify.images.decode import decode
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.images.pillow_settings import no_limit_or_warnings, whole_files_only
from benchmarks import hostile_images

pytestmark = pytest.mark.slow

IMPORT_ALL = """
import pkgutil, importlib, warnings
from PIL import Image, ImageFile
import apache_beam, keras, tensorflow, h5py, jinja2
Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = 10, True
def pillow_entries():
    return [entry for entry in warnings.filters if "PIL" in str(entry)]
before = pillow_entries()
import batchverify
for module in pkgutil.walk_packages(batchverify.__path__, "batchverify."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (10, True)
assert pillow_entries() == before
"""


@contextlib.contextmanager
def hostile_settings():
    """Settings of Pillow that refuse nearly every image, let truncated files pass, and turn warnings into errors."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        warnings.filterwarnings("error", module=r"PIL\.")
        before = pillow_filters()
        yield
        assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (10, True)
        assert pillow_filters() == before


def pillow_filters() -> list[tuple]:
    return [entry for entry in warnings.filters if "PIL" in str(entry)]


def decoded_corpus() -> dict[str, tuple]:
    """Returns status and error, or status and pixels, of each file of the corpus, decoded in several threads."""
    files = list(hostile_images.image_files())
    with ThreadPoolExecutor(4) as threads:
        images = threads.map(lambda file: decode(file[1], Layout(32, 32), hostile_images.MOST_PIXELS), files)
        return {name: described(name, image) for (name, _, _), image in zip(files, images, strict=True)}


def described(name: str, image) -> tuple:
    if isinstance(image, ImageFailure):
        return image.status, image.error
    # libtiff leaves memory as it was where a damaged fax file has no pixels, so these differ from time to time.
    return "ok", None if "group4" in name else image.tobytes()


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return decoded_corpus()


def test_importing_every_module_changes_no_setting():
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True, timeout=120)


def test_hostile_settings_change_no_image(expected):
    with hostile_settings():
        assert decoded_corpus() == expected


@pytest.mark.parametrize("context", ["whole_files_only", "no_limit_or_warnings"])
def test_the_corpus_shows_what_hostile_settings_change(context, expected, monkeypatch):
    monkeypatch.setattr(f"batchverify.images.decode.{context}", contextlib.nullcontext())
    with hostile_settings():
        changed = [name for name, image in decoded_corpus().items() if image != expected[name]]
    assert len(changed) > 50


def test_hostile_settings_change_no_score(small_model, pictures):
    truncated = pictures / "truncated.png"
    truncated.write_bytes((pictures / "p9.png").read_bytes()[:-400])
    uris = [*(str(pictures / f"p{number}.png") for number in range(9)), str(truncated)]
    table = pa.table({"left": uris, "right": uris[::-1]})
    with hostile_settings():
        rows = verified(small_model, table, pictures / "hostile.parquet")
    assert rows == verified(small_model, table, pictures / "usual.parquet")
    assert [row["left_status"] for row in rows] == ["ok"] * 9 + ["unreadable"]
    assert sum(row["score"] is not None for row in rows) == 8


def verified(model: str, table: pa.Table, path: Path) -> list[dict]:
    """Returns the rows that `VerifyPairs` makes in this process."""
    pipeline = beam.Pipeline(runner="FnApiRunner")
    pairs = pipeline | beam.Create([("only", table)])
    result = pairs | batchverify.VerifyPairs(batchverify.ScoringConfig(model=model), expected_images=10)
    _ = result.scores | beam.Map(lambda scores, path=str(path): pq.write_table(scores, path))
    pipeline.run().wait_until_finish()
    return pq.read_table(path).to_pylist()


def test_a_setting_returns_when_the_last_thread_leaves(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with whole_files_only:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(10)
    with whole_files_only:
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    leave.set()
    thread.join()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_setting_that_the_program_changes_meanwhile_stays(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with no_limit_or_warnings:
        assert Image.MAX_IMAGE_PIXELS is None
        Image.MAX_IMAGE_PIXELS = 20
    assert Image.MAX_IMAGE_PIXELS == 20
