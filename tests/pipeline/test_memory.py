"""A run that memory does not hold says so before it starts."""

import dataclasses
import logging

import pytest

import batchverify
from batchverify.pipeline import plan
from batchverify.pipeline.memory import available_bytes, process_bytes, worker_bytes

pytestmark = pytest.mark.slow

GIB = 2**30


def test_ten_million_pairs_need_what_they_were_measured_to_take():
    """`python -m benchmarks.shuffle --grow 10`: 3.7 GiB, of which libraries take 0.4; 61 bytes a row, 404 an embedding."""
    assert process_bytes(61 * 10_000_000, 500_000, 404) / GIB == pytest.approx(3.3, rel=0.15)


def test_a_worker_needs_its_block_alone():
    assert worker_bytes(2**24, 100_000, 404) < GIB < process_bytes(61 * 10_000_000, 500_000, 404)


def test_this_machine_says_how_much_it_has():
    assert (available_bytes() or 0) > GIB / 4


@pytest.fixture
def config(demo, small_model, tmp_path) -> batchverify.VerificationConfig:
    manifests = (str(demo / "demo.csv"),)
    return batchverify.VerificationConfig(manifests=manifests, output=str(tmp_path / "out"), model=small_model)


def test_a_run_that_does_not_fit_says_so_with_the_alternative(config, caplog, monkeypatch):
    monkeypatch.setattr(plan, "available_bytes", lambda: 10_000)
    with caplog.at_level(logging.WARNING, logger="batchverify"):
        batchverify.run(config)
    assert "are left: 125 rows and 87 images are held in this process" in caplog.text and "DataflowRunner" in caplog.text


def test_one_that_fits_says_nothing(config, caplog):
    with caplog.at_level(logging.WARNING, logger="batchverify"):
        batchverify.run(config)
    assert "GiB" not in caplog.text


def test_a_run_of_workers_elsewhere_says_what_one_needs(config, caplog, monkeypatch):
    # As for a runner whose workers share no process; this one's do, and are quicker to start.
    monkeypatch.setattr(plan, "image_table", lambda *_: None)
    with caplog.at_level(logging.INFO, logger="batchverify"):
        batchverify.run(dataclasses.replace(config, block_rows=50))
    assert "A worker needs up to 0.0 GiB" in caplog.text and "each block of 50 rows" in caplog.text
