"""Stores of embeddings on object stores: what a run left that did not finish is found, a torn object is not, and both go."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from batchverify.errors import PreflightError
from batchverify.io.storage_options import set_storage_options
from batchverify.output.embedding_rows import stored_schema
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.output.embedding_store import EmbeddingStore
from batchverify.output.run_directory import RunDirectory
from tests.support.object_stores import gs_store, s3_store

pytestmark = pytest.mark.servers
KEY = {"embedding_size": 4, "model_digest": "m"}
TODAY = datetime.date(2026, 11, 29)


@pytest.fixture(scope="module", params=[gs_store, s3_store])
def store(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp("account")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        set_storage_options(PipelineOptions(store.arguments))
        yield store
    set_storage_options(PipelineOptions([]))


@pytest.fixture
def path(store):
    yield store.uri("embeddings")
    store.clear("embeddings")


def rows_of(*uris: str) -> pa.Table:
    count = len(uris)
    rng = np.random.default_rng(count)
    columns = {
        "uri": uris, "version": ["v"] * count, "digest": [b"0" * 16] * count, "identity": [1.0] * count,
        "traits": [0] * count, "embedding": list(rng.random((count, 4), np.float32)), "last_used": [TODAY] * count,
    }  # fmt: skip
    return pa.table(columns, stored_schema(4))


def session_at(path, **settings) -> EmbeddingStoreSession:
    store = EmbeddingStore(path)
    published = store.read_published()
    return EmbeddingStoreSession(
        path, "stat", KEY, published, None, TODAY, unfinished=store.unfinished_files(KEY, published), **settings
    )


def test_parts_of_a_killed_run_are_found_and_a_torn_object_is_left_out(store, path):
    killed = session_at(path)
    (whole,) = killed.write(rows_of("s3://b/1.png", "s3://b/2.png"))
    (torn,) = killed.write(rows_of("s3://b/3.png"))
    data = store.get(f"embeddings/{torn.path}")
    store.put(f"embeddings/{torn.path}", data[:4] + bytes([data[4] ^ 1]) + data[5:])
    following = session_at(path)
    read = {file.name: following.read(number, file)["uri"].to_pylist() for number, file in following.files()}
    assert read == {whole.name: ["s3://b/1.png", "s3://b/2.png"], torn.name: []}
    with EmbeddingStore(path).claimed(following.folder):
        assert f"embeddings/{whole.path}" in store.names("embeddings")
        following.publish(following.write(rows_of("s3://b/1.png", "s3://b/2.png", "s3://b/4.png")), "run")
    published = EmbeddingStore(path).read_published()
    assert published is not None and published.rows == 3
    assert set(store.names("embeddings")) == {"embeddings/embeddings.json", f"embeddings/{published.files[0].path}"}


def test_a_run_adds_to_the_store_and_a_second_one_is_refused_meanwhile(store, path):
    first = session_at(path)
    first.publish(first.write(rows_of(*(f"s3://b/{number}.png" for number in range(9)))), "first")
    second = session_at(path)
    with EmbeddingStore(path).claimed(second.folder):
        second.publish(second.write(rows_of("s3://b/8.png", "s3://b/9.png"), replaced=1), "second")
        second.publish([], "second")  # A bundle that is tried again after it has published changes nothing.
        if store.scheme == "s3":  # The emulator of the other kind does not say whether it honours conditions.
            with pytest.raises(PreflightError, match="another run writes there now"):
                EmbeddingStore(path).refuse_taken()
    published = EmbeddingStore(path).read_published()
    assert published is not None and published.rows == 10 and published.base == first.folder
    assert [file.rows for file in published.files] == [9, 2]


UNFINISHED = f"embeddings-{1:032x}/part-{2:032x}.parquet"
OTHERS = [
    "embeddings/dt=1/scores-00000-of-00001.parquet",
    "embeddings/mine.bin",
    "embeddings/scores-1/part.bin",
    "other/_SUCCESS",
]


@pytest.mark.parametrize(
    ("directory", "claim", "own"),
    [
        (EmbeddingStore, f"embeddings-{3:032x}", [UNFINISHED, "embeddings.json"]),
        (
            RunDirectory,
            "run",
            [
                "_replacement-a/scores-00000-of-00001.parquet",
                "beam-temp-scores-a/b.scores.parquet",
                "_summary.json",
                "_SUCCESS",
            ],
        ),
    ],
)
def test_uploads_that_a_run_has_not_finished_are_deleted_and_no_others(directory, claim, own, store, path):
    for name in (*OTHERS, *(f"embeddings/{name}" for name in own)):
        store.begin_upload(name)
    with directory(path).claimed(claim):
        assert sorted(store.uploads()) == (OTHERS if store.scheme == "s3" else [])
