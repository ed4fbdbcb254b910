"""A run that memory does not hold says so before it starts."""

import dataclasses
import logging

import pandas as pd
import pytest

import batchverify
from batchverify.pipeline import image_arrays, plan
from batchverify.pipeline.memory import available_bytes, available_in_group, process_bytes, worker_bytes

pytestmark = pytest.mark.slow

GIB = 2**30


def test_images_take_memory_and_rows_do_not():
    """`python -m benchmarks.shuffle --pairs 10000000 --images 500000`; 404 bytes an embedding."""
    assert process_bytes(500_000, 404) / GIB == pytest.approx(0.6, rel=0.1)


def test_a_worker_needs_its_block_alone():
    assert worker_bytes(2**24, 100_000, 404) < GIB < process_bytes(5_000_000, 404)


def test_this_machine_says_how_much_it_has():
    assert (available_bytes() or 0) > GIB / 4


@pytest.mark.parametrize(
    ("limit", "used", "unused_cache"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
    ids=["version 2", "version 1"],
)
def test_files_that_a_container_has_read_take_no_memory_from_it(limit, used, unused_cache, tmp_path):
    """The kernel counts their cache as used, until it needs the memory."""
    (tmp_path / "memory").mkdir()
    statistics = (tmp_path / limit).with_name("memory.stat")
    statistics.write_text(f"inactive_file_of_another_kind 7\nactive_file {GIB}\n{unused_cache} {5 * GIB}\n")
    (tmp_path / limit).write_text(f"{8 * GIB}\n")
    (tmp_path / used).write_text(f"{8 * GIB - 4096}\n")
    assert available_in_group(tmp_path) == 5 * GIB + 4096
    statistics.write_text(f"{unused_cache} 0\n")
    assert available_in_group(tmp_path) == 4096
    (tmp_path / used).write_text(f"{9 * GIB}\n")
    assert available_in_group(tmp_path) == 0


def test_a_group_without_a_limit_is_no_bound(tmp_path):
    assert available_in_group(tmp_path) is None
    for name, text in (("memory.max", "max\n"), ("memory.current", "4096\n"), ("memory.stat", "inactive_file 0\n")):
        (tmp_path / name).write_text(text)
    assert available_in_group(tmp_path) is None


@pytest.fixture
def config(demo, small_model, tmp_path) -> batchverify.VerificationConfig:
    manifests = (str(demo / "demo.csv"),)
    return batchverify.VerificationConfig(manifests=manifests, output=str(tmp_path / "out"), model=small_model)


def test_embeddings_that_memory_does_not_hold_are_kept_in_a_file(config, read_scores, tmp_path, caplog, monkeypatch):
    batchverify.run(dataclasses.replace(config, output=str(tmp_path / "held")))
    monkeypatch.setattr(image_arrays, "available_bytes", lambda: 100)
    with caplog.at_level(logging.WARNING, logger="batchverify"):
        batchverify.run(config)
    assert "The embeddings of 87 images take 0.0 GiB" in caplog.text and "they are kept in a file in" in caplog.text
    pd.testing.assert_frame_equal(read_scores(tmp_path / "out"), read_scores(tmp_path / "held"))


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
