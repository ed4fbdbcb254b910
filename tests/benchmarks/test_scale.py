"""The arithmetic of runs too large to try: held against the coder, against its own page, and against random draws."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batchverify.config import ScoringConfig
from batchverify.io.arrow_coder import ArrowTableCoder
from batchverify.pipeline.buckets import request_images
from batchverify.pipeline.encoded_images import encoded_images
from batchverify.pipeline.memory import EMBEDDING_BYTES_AT_ONCE
from benchmarks.estimate import Job, distinct, estimate
from benchmarks.scale import fit_growth, fit_parts, main

pytestmark = pytest.mark.benchmarks
PAGE = Path(__file__).resolve().parents[2] / "benchmarks" / "SCALE.md"
COMMAND = "--estimate --pairs 1e9 --images 2e8 --embedding-bytes 404 5120 150528"


def test_the_page_shows_what_the_command_prints(capsys):
    page = PAGE.read_text(encoding="utf-8")
    assert f"python -m benchmarks.scale {COMMAND}" in page
    main(COMMAND.split())
    printed = capsys.readouterr().out.strip()
    assert printed in page


@pytest.mark.parametrize("embedding_bytes", [404, 5120])
def test_a_block_of_a_billion_pairs_is_as_large_as_the_estimate_says(embedding_bytes):
    """One block of the run, drawn at its true size: what it asks for and what it is answered, through the coder."""
    job = Job(embedding_bytes=embedding_bytes, uri_bytes=len("gs://bucket/images/000000000.jpg"))
    expected = estimate(job)
    rng = np.random.default_rng(4)
    sides = rng.integers(job.images, size=(2, expected.block_rows))
    left, right = ([f"gs://bucket/images/{number:09d}.jpg" for number in row] for row in sides)
    table = pa.table({"left": left, "right": right})
    coder, requested, answered, elements, names = ArrowTableCoder(), 0, 0, 0, 0
    for _, (_, uris) in request_images(("key", table), ScoringConfig(), expected.buckets):
        requested += len(coder.encode(uris))
        elements, names = elements + 1, names + uris.num_rows
        if elements % 16 == 1:  # one in sixteen is enough to know them
            answered += 16 * len(coder.encode(_answer(uris["uri"].combine_chunks(), embedding_bytes)))
    assert names == pytest.approx(expected.names, rel=0.002)
    assert elements == pytest.approx(expected.requests / expected.blocks, rel=0.002)
    assert requested == pytest.approx(expected.request_tb * 1e12 / expected.blocks, rel=0.02)
    assert answered == pytest.approx(expected.answer_tb * 1e12 / expected.blocks, rel=0.02)
    assert names * embedding_bytes <= EMBEDDING_BYTES_AT_ONCE


def _answer(uris: pa.Array, embedding_bytes: int) -> pa.Table:
    count = len(uris)
    embeddings = np.zeros((count, embedding_bytes // 4), np.float32)
    return encoded_images(uris, np.zeros(count, np.int8), [None] * count, [bytes(16)] * count, np.ones(count), embeddings)


@pytest.mark.parametrize(("draws", "of"), [(1, 1), (50, 1), (1, 1000), (500, 1000), (5000, 1000)])
def test_distinct_draws(draws, of):
    rng = np.random.default_rng(1)
    found = np.mean([len(set(rng.integers(of, size=draws).tolist())) for _ in range(50)])
    assert distinct(draws, of) == pytest.approx(found, rel=0.02)


def test_the_estimate_of_a_small_run_counts_whole_things():
    found = estimate(Job(pairs=1000, images=100, embedding_bytes=404))
    assert (found.blocks, found.buckets, found.parts) == (1, 1, 1)
    assert found.requests == found.answers == 1
    assert found.names == pytest.approx(100)  # each of them, to nine digits
    assert found.answers_per_image == pytest.approx(1)
    wide = estimate(dataclasses.replace(Job(), embedding_bytes=150_528))
    assert wide.parts > 1 and wide.answers > wide.requests


def test_the_fit_finds_the_power_and_says_how_sure_it_is():
    rows = np.array([1e6, 3e6, 1e7, 3e7])
    exact = fit_growth(rows, 5e-6 * rows**1.1)
    assert exact.exponent == pytest.approx(1.1) and exact.factor == pytest.approx(5e-6) and exact.exponent_error < 1e-9
    noisy = fit_growth(rows, 5e-6 * rows * np.array([1.1, 0.9, 1.1, 0.9]))
    assert noisy.exponent_error > 0.02 and abs(noisy.exponent - 1) < 3 * noisy.exponent_error
    assert fit_growth(rows[:2], [1, 3]).exponent_error == np.inf


def test_rows_and_the_images_that_blocks_name_are_told_apart():
    rows = np.array([1e6, 3e6, 1e7, 3e7])
    named = rows * [0.05, 0.15, 0.5, 1.1]
    assert fit_parts(rows, named, 2e-6 * rows + 6e-6 * named) == pytest.approx((2e-6, 6e-6))


def test_sizes_are_measured_in_processes_of_their_own(capsys):
    main(["--millions", "0.002", "0.004", "--sent", "0.002"])
    said = capsys.readouterr().out
    assert "| 2,000 | 100 |" in said and "| 4,000 | 200 |" in said and "rows^b" in said
    carried = said.splitlines()[-1]
    assert "| 0.050 |" in carried  # a hundred images are sent to one block of two thousand rows


def test_a_rate_of_ones_own_goes_into_the_hours(capsys):
    main(["--estimate", "--images", "3.6e6", "--rate", "L4=1000", "--price", "L4=2"])
    said = capsys.readouterr().out
    assert "| L4 | 1,000 | 1.0 | 0.1 | 0.8 | 50 | 2 |" in said and "| L4, images/s | 1,000 | given |" in said
    with pytest.raises(SystemExit, match="there is no device 'L5'"):
        main(["--estimate", "--rate", "L5=1000"])
