"""Positions that the first reading of a manifest keeps for the second one: those that are known, and no others."""

import resource
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest

from batchverify.errors import RunError
from batchverify.pipeline import uri_index
from batchverify.pipeline.encoded_images import OK_CODE, encoded_images
from batchverify.pipeline.image_table import ImageTable, RowsOfTable
from batchverify.pipeline.row_positions import RowPositions

BLOCKS = 20


@pytest.fixture
def blocks() -> dict[str, tuple[pa.ChunkedArray, pa.ChunkedArray]]:
    """The two sides of some blocks of fifty rows; some name no image."""
    rng = np.random.default_rng(8)
    names = np.array([*(f"/photos/{number}.jpg" for number in range(60)), None], object)
    draw = lambda: pa.chunked_array([pa.array(names[rng.integers(61, size=size)], pa.string()) for size in (30, 20)])  # noqa: E731
    return {f"block {number}": (draw(), draw()) for number in range(BLOCKS)}


def kept(positions: RowPositions, key: str) -> list[list[int]]:
    found = positions.get(key)
    assert found is not None
    return found.tolist()


def names_of(table: ImageTable, positions: np.ndarray) -> list[str | None]:
    return [None if position < 0 else table.index.uris[int(position)].as_py() for position in positions]


@pytest.mark.parametrize("hashes", ["that differ", "one for many"])
def test_each_row_finds_its_images(hashes, blocks, monkeypatch):
    monkeypatch.setattr(uri_index, "_LEAST_RECENT", 25)
    if hashes == "one for many":
        monkeypatch.setattr(
            uri_index,
            "hash_in_process",
            lambda uris: np.array([crc32(uri.encode()) % 40 for uri in uris.to_pylist()], np.uint64),
        )
    table = ImageTable()
    for key, sides in blocks.items():
        table.add(key, *sides)
    known = np.concatenate([kept(table.positions, key) for key in blocks], axis=1) >= 0
    assert 0.2 < np.mean(known) < 0.95
    for key, sides in blocks.items():
        found = RowsOfTable(table, key).find(*sides)
        assert [names_of(table, positions) for positions in found] == [side.to_pylist() for side in sides]


def test_a_block_with_fewer_rows_than_at_first_is_noticed(blocks):
    table = ImageTable()
    left, right = blocks["block 0"]
    table.add("block 0", left, right)
    with pytest.raises(RunError, match="the manifest has changed since the run began"):
        RowsOfTable(table, "block 0").find(left[1:], right[1:])


def test_an_image_that_the_first_reading_did_not_name_is_noticed(blocks):
    table = ImageTable()
    table.add("block 0", *blocks["block 0"])
    new = pa.chunked_array([["/photos/new.jpg"]])
    with pytest.raises(RunError, match="the manifest has changed since the run began"):
        RowsOfTable(table, "another block").find(new, new)


def test_threads_that_put_images_at_the_same_time_lose_none():
    threads, per_thread = 8, 500
    uris = pa.array([f"/photos/{number}.jpg" for number in range(threads * per_thread)])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            table, barrier = ImageTable(), threading.Barrier(threads)
            table.index.add(uris)
            _ = table.index.uris

            def put(thread: int, table: ImageTable = table, barrier: threading.Barrier = barrier) -> None:
                part = uris.slice(thread * per_thread, per_thread)
                nothing, codes = [None] * per_thread, np.full(per_thread, OK_CODE)
                images = encoded_images(part, codes, nothing, nothing, np.ones(per_thread), np.ones((per_thread, 4)))
                barrier.wait()
                table.put(images)

            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(put, range(threads)))
            assert (table.arrays.status[:-1] == OK_CODE).all()
    finally:
        sys.setswitchinterval(interval)


def test_a_full_disk_costs_time_and_no_row(blocks, caplog):
    positions, few, many = RowPositions(), np.arange(10), np.arange(1000)
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        positions.put("first", few, few[::-1])
        positions.put("too many", many, many)
        positions.put("last", few, few)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert kept(positions, "first") == [few.tolist(), few[::-1].tolist()]
    assert positions.get("too many") is None and positions.get("last") is None
    assert "so that the second reading takes longer; free space" in caplog.text


def test_without_a_temporary_folder_no_position_is_kept(blocks, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    table = ImageTable()
    table.add("block 0", *blocks["block 0"])
    assert table.positions.get("block 0") is None and "set TMPDIR" in caplog.text
    found = RowsOfTable(table, "block 0").find(*blocks["block 0"])
    assert [names_of(table, positions) for positions in found] == [side.to_pylist() for side in blocks["block 0"]]


def test_positions_beyond_four_bytes_are_not_kept():
    positions = RowPositions()
    positions.put("block", np.array([2**31 - 1, 2**31]), np.array([-1, 2**40]))
    assert kept(positions, "block") == [[2**31 - 1, -1], [-1, -1]]
