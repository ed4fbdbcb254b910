"""Distinct URIs are numbered once, however often and in whatever blocks they come, and found again by their texts."""

import numpy as np
import pyarrow as pa
import pytest

from batchverify.manifest.text_hashes import hash_in_process
from batchverify.pipeline import uri_index
from batchverify.pipeline.uri_index import UriIndex


@pytest.fixture(params=["hashes that differ", "one hash for many"])
def index(request, monkeypatch) -> UriIndex:
    """An index that makes its table of hashes again after a few URIs, so that a test meets each of its states."""
    monkeypatch.setattr(uri_index, "_LEAST_RECENT", 5)
    if request.param == "one hash for many":
        by_length = lambda uris: np.array([len(uri) % 7 for uri in uris.to_pylist()], np.uint64)  # noqa: E731
        monkeypatch.setattr(uri_index, "hash_in_process", by_length)
    return UriIndex()


URIS = ["a" * length for length in range(1, 40)] + [f"/photos/{number}.jpg" for number in range(20)] + ["größe", ""]


def test_each_distinct_uri_has_one_position(index):
    for start in range(0, len(URIS), 3):
        index.add(pa.array([*URIS[start : start + 3], *URIS[:2]]))
    assert sorted(index.uris.to_pylist()) == sorted(URIS) and len(index) == len(URIS)


@pytest.mark.parametrize("repeats", [1, 5])
def test_uris_are_found_in_blocks_of_any_kind(index, repeats):
    for start in range(0, len(URIS), 3):
        index.add(pa.array(URIS[start : start + 3]))
    asked = [*URIS[::-1], None, "/photos/none.jpg"] * repeats
    found = [None if position < 0 else index.uris[int(position)].as_py() for position in index.find(pa.array(asked))]
    assert found == [*URIS[::-1], None, None] * repeats


def test_texts_differ_in_their_hashes_wherever_they_differ():
    texts = {"", *("a" * length for length in range(1, 40))}
    for length in range(1, 30):
        texts |= {"a" * place + letter + "a" * (length - 1 - place) for place in range(length) for letter in "bßé\0"}
    for kind in (pa.string(), pa.large_string()):
        values = pa.array(["zz", *sorted(texts)], kind).slice(1)
        assert len(set(hash_in_process(values).tolist())) == len(texts)
        assert hash_in_process(values).tolist() == [hash_in_process(values.slice(row, 1))[0] for row in range(len(values))]


def test_an_index_of_no_uri_finds_none():
    assert UriIndex().find(pa.array(["a", None])).tolist() == [-1, -1] and len(UriIndex()) == 0
