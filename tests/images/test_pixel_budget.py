"""The pixels that threads decode at the same time are bounded, and waiting for a turn is no failure."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.images.pixel_budget import PixelBudget
from batchverify.images.prefetch import Prefetcher
from batchverify.images.reader import ImageReader
from batchverify.schema import ImageStatus


class Most:
    """Records how many pixels were reserved at the same time at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def add(self, pixels: int) -> None:
        with self._lock:
            self.now += pixels
            self.most = max(self.most, self.now)


def decode_for_a_while(budget: PixelBudget, pixels: int, most: Most, seconds: float = 0.01) -> int:
    with budget.reserve(pixels):
        most.add(pixels)
        time.sleep(seconds)
        most.add(-pixels)
    return pixels


def read_all(budget: PixelBudget, sizes: list[int], threads: int, timeout_s: float, seconds: float) -> tuple[list[int], Most]:
    most = Most()
    prefetcher = Prefetcher(
        lambda uri: decode_for_a_while(budget, int(uri), most, seconds), lambda uri: -1, threads=threads, timeout_s=timeout_s
    )
    batches = prefetcher.batches([str(size) for size in sizes], len(sizes), 0)
    return [size for batch in batches for size in batch], most


def test_no_more_pixels_than_the_limit_are_decoded_at_once():
    sizes = [30, 40, 50, 10, 60] * 6
    found, most = read_all(PixelBudget(100), sizes, threads=8, timeout_s=60, seconds=0.01)
    assert found == sizes and 60 < most.most <= 100


def test_an_image_above_the_limit_is_decoded_alone_and_is_not_starved():
    sizes = [10] * 50 + [500] + [10] * 50
    found, most = read_all(PixelBudget(100), sizes, threads=8, timeout_s=60, seconds=0.002)
    assert found == sizes and most.most == 500


def test_the_time_in_which_an_image_waits_for_its_turn_is_not_its_own():
    # Eight images that take 0.2 s each, one after another, would take 1.6 s; each of them may take 0.6 s.
    found, _ = read_all(PixelBudget(1), [1] * 8, threads=8, timeout_s=0.6, seconds=0.2)
    assert found == [1] * 8


def test_a_decoder_that_fails_gives_its_pixels_back(tmp_path):
    budget = PixelBudget(1000)
    reader = ImageReader(Layout(8, 8), 10**6, 10**6, budget=budget)
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)).save(data, "PNG")
    (tmp_path / "whole.png").write_bytes(data.getvalue())
    (tmp_path / "cut.png").write_bytes(data.getvalue()[:1500])
    for _ in range(3):
        image, _ = reader.read(str(tmp_path / "cut.png"))
        assert isinstance(image, ImageFailure) and image.status == ImageStatus.UNREADABLE
        assert isinstance(reader.read(str(tmp_path / "whole.png"))[0], np.ndarray)
    with budget.reserve(1000):
        pass


def test_a_decoder_that_never_ends_keeps_nobody_waiting_once_it_is_given_up():
    budget, most, release = PixelBudget(100), Most(), threading.Event()

    def read(uri: str) -> str:
        if uri == "stuck":
            with budget.reserve(100):
                release.wait(20)
            return "ended"
        return f"read {decode_for_a_while(budget, 60, most)}"

    prefetcher = Prefetcher(read, lambda uri: "gave up", threads=3, timeout_s=0.3)
    started = time.monotonic()
    assert list(prefetcher.batches(["stuck", *"abcdefgh"], 9, 0)) == [["gave up", *["read 60"] * 8]]
    assert time.monotonic() - started < 10
    release.set()  # It gives nothing back a second time: two images of 60 pixels are still too many.
    assert list(prefetcher.batches(list("abcdefgh"), 8, 0)) == [["read 60"] * 8]
    assert most.most == 60


def test_an_image_that_waits_for_one_of_a_later_batch_is_read_once_that_is_given_up():
    budget, is_held, release = PixelBudget(100), threading.Event(), threading.Event()

    def read(uri: str) -> str:
        if uri == "first":
            is_held.wait(10)
        with budget.reserve(100):
            is_held.set()
            release.wait(20 if uri == "stuck" else 0)
        return f"read {uri}"

    prefetcher = Prefetcher(read, lambda uri: "gave up", threads=2, timeout_s=0.3)
    started = time.monotonic()
    assert list(prefetcher.batches(["first", "stuck"], 1, 1)) == [["read first"], ["gave up"]]
    assert time.monotonic() - started < 10
    release.set()


@pytest.mark.parametrize("value", [0, -1])
def test_a_budget_of_nothing_is_refused(value):
    import batchverify

    with pytest.raises(batchverify.PreflightError, match=f"--max-decoding-pixels is {value}; give at least 1"):
        batchverify.ScoringConfig(max_decoding_pixels=value)
