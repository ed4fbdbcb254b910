"""Files made to break a reader give pixels or a typed failure, soon and in little memory."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from batchverify.images.decode import decode
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.images.opencv_loader import OpenCvLoader
from batchverify.images.pillow_loader import PillowLoader
from batchverify.images.reader import ImageReader
from batchverify.images.skimage_loader import SkimageLoader
from batchverify.images.tensorflow_loader import TensorFlowLoader
from batchverify.schema import STATUSES
from benchmarks import hostile_images
from tests.support.outcomes import failed, succeeded

pytestmark = pytest.mark.slow

MOST_SECONDS = 5
# Four million pixels in four channels are 16 MB; reading them may hold a handful of copies at once, and one file.
MOST_MEGABYTES = 160
EXAMPLES = int(os.environ.get("BATCHVERIFY_FUZZ_EXAMPLES", "1000"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip


def described(result) -> str:
    """Returns the status of a failure; of pixels `ok`, or what is wrong with them."""
    if isinstance(result, ImageFailure):
        return result.status.value if result.error and "\n" not in result.error else f"{result.status} without a sentence"
    whole = isinstance(result, np.ndarray) and result.dtype == np.uint8 and result.shape == (32, 32, 3)
    return "ok" if whole else f"{type(result)} of no use"


def peak_megabytes() -> float:
    """Returns the most memory this process ever held; `ru_maxrss` would count its parent's, too."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def read_corpus(folder: str) -> dict:
    """Writes and reads the corpus: by URI what was found, what is acceptable, and the seconds; and the memory it took."""
    corpus = hostile_images.write_corpus(folder)
    reader = ImageReader(Layout(32, 32), hostile_images.MOST_PIXELS, hostile_images.MOST_BYTES)
    reader.read(next(iter(corpus)))
    before, found = peak_megabytes(), {}
    for uri, statuses in corpus.items():
        start = time.thread_time()
        try:
            status = described(reader.read(uri)[0])
        except BaseException as error:
            status = repr(error)
        found[uri] = (status, sorted(statuses), time.thread_time() - start)
    return {"found": found, "megabytes": peak_megabytes() - before}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """What reading the corpus came to, in a process of its own, whose memory is its own, and which may crash."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, __file__, str(folder / "corpus"), str(folder / "report.json")]
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run(command, check=True, timeout=200, stderr=subprocess.DEVNULL, env=root)
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.processes
def test_every_file_and_name_becomes_what_it_may(report):
    assert len(report["found"]) > 1400
    assert {os.path.basename(uri): found for uri, found in report["found"].items() if found[0] not in found[1]} == {}


@pytest.mark.processes
def test_none_takes_long(report):
    assert {os.path.basename(uri): found for uri, found in report["found"].items() if found[2] > MOST_SECONDS} == {}


@pytest.mark.processes
def test_none_takes_much_memory(report):
    assert report["megabytes"] < MOST_MEGABYTES


def test_the_corpus_is_the_same_every_time():
    first, second = (list(hostile_images.image_files(seed=4)) for _ in range(2))
    assert first == second
    assert len({name for name, _, _ in first}) == len(first)


def test_a_turned_picture_is_padded_within_the_limit():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise, and so twice as large when padded
    pillar = Image.new("L", (1, 1900))
    (data, turned) = (hostile_images.saved(pillar, "PNG", **settings) for settings in ({}, {"exif": exif}))
    layout = Layout(64, 32, fit="pad")
    assert succeeded(decode(data, layout, max_pixels=1_000_000)).shape == (64, 32, 3)
    assert failed(decode(turned, layout, max_pixels=1_000_000)).status == "too_large"


# Random damage

SEEDS = hostile_images.seeds()
LAYOUTS = [
    Layout(32, 32),
    Layout(24, 9, channels=1, fit="pad"),
    Layout(9, 24, grey=True, fit="crop", loader=PillowLoader(Image.Resampling.NEAREST)),
    Layout(32, 32, loader=TensorFlowLoader("bilinear")),
    Layout(24, 9, channels=1, fit="pad", loader=TensorFlowLoader("area", orientation="apply", alpha="black")),
    Layout(24, 9, fit="crop", loader=OpenCvLoader()),
    Layout(9, 24, channels=1, fit="pad", loader=SkimageLoader()),
]


@st.composite
def damaged(draw) -> bytes:
    """A good file with bits flipped, bytes taken out and put in, or the end of another behind it."""
    data = bytearray(draw(st.sampled_from(sorted(SEEDS.values()))))
    for change in draw(st.lists(st.sampled_from(["flip", "set", "delete", "insert", "cut", "splice"]), min_size=1, max_size=6)):
        # Half of all changes fall into the first bytes, where sizes and offsets stand.
        place = draw(st.integers(0, min(200, len(data)) if draw(st.booleans()) else len(data)))
        if change == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "set":
            value = draw(
                st.sampled_from([b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
            )
            data[place : place + len(value)] = value
        elif change == "delete":
            del data[place : place + draw(st.integers(1, 300))]
        elif change == "insert":
            data[place:place] = draw(st.binary(max_size=40))
        elif change == "cut":
            del data[place:]
        elif change == "splice":
            other = draw(st.sampled_from(sorted(SEEDS.values())))
            data[place:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


def check(data: bytes, layout: Layout) -> None:
    result = decode(data, layout, max_pixels=1_000_000)
    if isinstance(result, ImageFailure):
        assert result.status in {"unreadable", "too_large", "unsupported"} and result.error and "\n" not in result.error
    else:
        assert result.dtype == layout.pixel_dtype and result.shape == (layout.height, layout.width, layout.channels)


@FUZZ
@given(damaged(), st.sampled_from(LAYOUTS))
def test_a_damaged_file_gives_pixels_or_a_typed_failure(data, layout):
    check(data, layout)


@FUZZ
@given(st.sampled_from(hostile_images.magics()), st.binary(max_size=400), st.sampled_from(LAYOUTS))
def test_noise_behind_a_magic_number_gives_pixels_or_a_typed_failure(magic, noise, layout):
    check(magic + noise, layout)


@pytest.mark.parametrize("rooted", [False, True])
def test_any_name_gives_a_typed_failure(rooted, tmp_path):
    reader = ImageReader(Layout(8, 8), 1000, 1000, str(tmp_path) if rooted else None)
    rng = random.Random(11)
    parts = ["..", "/", "\0", "\n", "x", "\udcff", "\ud800", " ", "%2f", "~", ":", "\u202e", "//", "é", "*", "?", "#", "'"]
    names = ["".join(rng.choices(parts, k=rng.randrange(9))) for _ in range(500)]
    found = [reader.read(f"{tmp_path}/no-such/{name}")[0] for name in names]
    assert all(isinstance(one, ImageFailure) and one.status in STATUSES for one in found)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(read_corpus(sys.argv[1])), encoding="utf-8")
