"""Nights that share a store of embeddings: the same scores as without it, for less work, or a refusal."""

import dataclasses
import datetime
import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem
from PIL import Image

import batchverify
from batchverify.cli.main import main
from batchverify.config import ModelConfig
from batchverify.images.layout import Layout
from batchverify.images.picture_loader import PictureLoader
from batchverify.images.reader import ImageReader
from batchverify.model import load
from batchverify.output.embedding_rows import stored_schema
from batchverify.output.embedding_session import EmbeddingStoreSession
from batchverify.output.embedding_store import EmbeddingStore
from batchverify.pipeline.keras_network import KerasNetwork
from tests.support.manifests import write_pairs
from tests.support.processes import SUBPROCESS_WORKERS, start_program, wait_for

pytestmark = pytest.mark.slow

POINTER = "embeddings.json"
A_MINUTE_AGO = time.time() - 60


@pytest.fixture(scope="module", autouse=True)
def networks_kept():
    """Loads each network once in this process, as what is tested here begins after that."""
    networks = {}

    load_model = load.load_model

    def load_once(config, is_candidate=False):
        settings = tuple(getattr(config, field.name) for field in dataclasses.fields(ModelConfig))
        key = settings, Path(config.model).read_bytes() if Path(config.model).is_file() else None
        if key not in networks:
            networks[key] = load_model(config, is_candidate)
        return networks[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load_model", load_once)
        yield


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for what several tests share."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def tmp_path(kept):
    """An empty folder at the same path for each test, as a store knows images by their paths."""
    folder = kept / "here"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@pytest.fixture
def pairs(tmp_path, pictures):
    """A manifest of 57 pairs of ten pictures that are a minute old."""
    for number in range(10):
        os.utime(pictures / f"p{number}.png", (A_MINUTE_AGO, A_MINUTE_AGO))
    return write_pairs(tmp_path, pictures)


@pytest.fixture
def night(pairs, small_model, tmp_path):
    """Runs the manifest into `out-NAME` and returns what the run says."""

    def run(name, *beam_args, **settings):
        settings = {"model": small_model, "embeddings": str(tmp_path / "store"), "manifests": (str(pairs),)} | settings
        return batchverify.run(batchverify.VerificationConfig(output=str(tmp_path / f"out-{name}"), **settings), beam_args)

    return run


@pytest.fixture
def first(night, kept, tmp_path):
    """The first night: the store and `out-first`, as it left them for the first test that asked for it."""
    if not (kept / "first").exists():
        assert counts(night("first")) == (10, 0)
        for name in ("store", "out-first"):
            shutil.copytree(tmp_path / name, kept / "first" / name)
    shutil.copytree(kept / "first", tmp_path, dirs_exist_ok=True)


def made_anew(path, age_s=30):
    """Replaces a picture by another one of the same size in pixels."""
    shape = np.asarray(Image.open(path)).shape
    Image.fromarray(np.random.default_rng(len(path.name) + int(age_s)).integers(0, 256, shape, np.uint8)).save(path)
    os.utime(path, (time.time() - age_s,) * 2)


def counts(result) -> tuple[int, int]:
    assert result.summary["embeddings"]["reused"] == result.counters["images_reused"]
    assert result.summary["embeddings"]["encoded"] == result.counters["images_encoded"]
    return result.counters["images_encoded"], result.counters["images_reused"]


def stored(tmp_path) -> pd.DataFrame:
    """What the store has, read by nothing but its own words: of several rows for one image the last one counts."""
    store = tmp_path / "store"
    said = json.loads((store / POINTER).read_text())
    listed = [f"{one['folder']}/{one['name']}" for one in said["files"]]
    assert sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()) == sorted([*listed, POINTER])
    assert not [path for path in store.iterdir() if path.is_dir() and not any(path.iterdir())]
    rows = pd.concat([pq.read_table(store / path).to_pandas() for path in listed], ignore_index=True)
    rows = rows.drop_duplicates("uri", keep="last", ignore_index=True)
    assert len(rows) == said["rows"]
    return rows


@pytest.mark.parametrize("more", [[], ["--direct_runner_bundle_repeat=1"]], ids=["once", "bundles-twice"])
def test_the_second_night_encodes_nothing_and_scores_the_same(more, night, request, tmp_path, read_scores):
    plain = night("plain", *more, embeddings=None)
    assert plain.counters["images_encoded"] == 10 and plain.summary["embeddings"] is None
    if more:
        assert counts(night("first", *more)) == (10, 0)
    else:
        request.getfixturevalue("first")
    second = night("second", *more)
    assert counts(second) == (0, 10) and second.counters["encodings"] == 0
    scores = [read_scores(tmp_path / f"out-{name}") for name in ("plain", "first", "second")]
    # To the bit: the same ten images make the same batch, and the head sees the same numbers.
    pd.testing.assert_frame_equal(scores[0], scores[1], check_exact=True)
    pd.testing.assert_frame_equal(scores[1], scores[2], check_exact=True)
    assert len(stored(tmp_path)) == 10


WORKERS = {"multi-processing": ["--direct_num_workers=1", "--direct_running_mode=multi_processing"],
           "portable": SUBPROCESS_WORKERS}  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize("workers", WORKERS)
def test_workers_in_other_processes_share_the_store(workers, first, night, kept, pictures, tmp_path, read_scores):
    made_anew(pictures / "p3.png")
    assert counts(night("second", *WORKERS[workers], block_rows=20)) == (1, 9)
    assert counts(night("third")) == (0, 10) and len(stored(tmp_path)) == 10
    if not (kept / "plain").exists():  # It is the same for all kinds of workers.
        night("plain", embeddings=None)
        shutil.copytree(tmp_path / "out-plain", kept / "plain")
    scores = [read_scores(folder)["score"] for folder in (tmp_path / "out-second", tmp_path / "out-third", kept / "plain")]
    assert scores[0].tolist() == scores[1].tolist()
    # The one image is encoded in a batch of its own.
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-6)


def test_only_what_changed_is_encoded(first, night, pictures, tmp_path, read_scores):
    made_anew(pictures / "p3.png")
    os.utime(pictures / "p5.png", (time.time() - 40,) * 2)
    assert counts(night("second")) == (2, 8)
    assert counts(night("plain", embeddings_rebuild=True)) == (10, 0)
    scores = [read_scores(tmp_path / f"out-{name}")["score"] for name in ("first", "second", "plain")]
    np.testing.assert_allclose(scores[1], scores[2], atol=1e-6)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


def test_by_content_a_touched_file_is_unchanged_and_a_replaced_one_is_not(first, night, pictures):
    before = os.stat(pictures / "p3.png")
    os.utime(pictures / "p5.png", (time.time() - 40,) * 2)
    data = bytearray((pictures / "p3.png").read_bytes())
    made_anew(pictures / "p3.png")
    (pictures / "p3.png").write_bytes((pictures / "p3.png").read_bytes().ljust(len(data), b"\0")[: len(data)])
    os.utime(pictures / "p3.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert counts(night("second", embeddings_version="content")) == (1, 9)


def test_a_file_that_was_just_written_is_encoded_again(night, pictures):
    # Another change in the same tick of the clock would leave it the same size and time.
    path = pictures / "p3.png"
    os.utime(path, ns=(0, (time.time_ns() + 3600 * 10**9)))
    night("first")
    assert counts(night("second")) == (0, 10)
    now = time.time_ns()
    os.utime(path, ns=(now, now // 10**9 * 10**9))
    reader = ImageReader(Layout(16, 16), 10**6, 10**6, versions="stat")
    assert reader.look_up(str(path)).version is None and reader.look_up(str(pictures / "p4.png")).version is not None


def test_a_file_that_changes_while_it_is_read_is_filed_as_what_it_was(pictures):
    path = pictures / "p1.png"
    os.utime(path, (time.time() - 60,) * 2)

    class LateLoader(PictureLoader):
        def load(self, *arguments):
            made_anew(path)
            return super().load(*arguments)

    reader = ImageReader(Layout(16, 16, loader=LateLoader()), 10**6, 10**6, versions="stat")
    before = reader.look_up(str(path)).version
    assert reader.read_with_version(str(path)).version == before != reader.look_up(str(path)).version


def test_images_that_fail_tonight_fail_as_without_a_store(first, night, pictures, tmp_path, read_scores):
    (pictures / "p1.png").unlink()
    (pictures / "p2.png").unlink()
    (pictures / "p2.png").mkdir()
    (pictures / "p3.png").write_bytes(b"")
    (pictures / "p4.png").write_bytes(b"no image")
    result = night("second")
    assert counts(result) == (0, 6) and result.counters["images_failed"] == 4
    night("plain", embeddings=None)
    kept, plain = read_scores(tmp_path / "out-second"), read_scores(tmp_path / "out-plain")
    for column in ("left_status", "right_status", "error", "same_image", "match"):
        assert kept[column].tolist() == plain[column].tolist()
    assert {"missing", "unreadable", "empty"} < set(kept["left_status"])


def test_outside_of_the_root_nothing_is_reused(first, night, tmp_path, pictures):
    (tmp_path / "elsewhere").mkdir()
    result = night("second", image_root=str(tmp_path / "elsewhere"), manifests=(str(absolute(tmp_path, pictures)),))
    assert result.counters["images_failed"] == 10 and result.summary["images"]["outside_root"] == 10


def absolute(tmp_path, pictures):
    path = tmp_path / "absolute.csv"
    path.write_text("left,right\n" + "\n".join(f"{pictures}/p{n}.png,{pictures}/p{(n + 1) % 10}.png" for n in range(10)))
    return path


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"color": "bgr"}, "preprocessing"), ({"max_image_pixels": 10**6}, "max image pixels"), ({}, "model digest")],
)
def test_another_model_or_other_pixels_meet_no_old_embedding(settings, told, first, night, tmp_path, small_model, caplog):
    import keras

    if not settings:
        model = keras.models.load_model(small_model)
        model.layers[-1].set_weights([weights * 0.9 for weights in model.layers[-1].get_weights()])
        model.save(tmp_path / "other.keras")
        settings = {"model": str(tmp_path / "other.keras")}
    second = night("second", **settings)
    assert counts(second) == (10, 0)
    assert second.summary["embeddings"]["ignored"] == f"made with another {told}" and told in caplog.text
    assert counts(night("third", **settings)) == (0, 10)


def test_what_does_not_change_embeddings_keeps_them(first, night, small_model, tmp_path):
    shutil.copy(small_model, tmp_path / "moved.keras")
    assert counts(night("second", model=str(tmp_path / "moved.keras"), threshold=0.9, batch_size=3, block_rows=5)) == (0, 10)


def test_rows_that_tonight_does_not_name_stay_and_grow_old(first, night, pairs, tmp_path):
    lines = pairs.read_text().splitlines()
    pairs.write_text("\n".join([lines[0], "pictures/p1.png,pictures/p2.png"]))
    assert counts(night("second")) == (0, 2)
    rows = stored(tmp_path)
    assert len(rows) == 10 and rows["last_used"].nunique() == 1
    grow_older(tmp_path, days=30)
    assert counts(night("third", embeddings_days=31)) == (0, 2) and len(stored(tmp_path)) == 10
    grow_older(tmp_path, days=30)
    assert counts(night("fourth", embeddings_days=31)) == (0, 2)
    assert {uri.rsplit("/", 1)[1] for uri in stored(tmp_path)["uri"]} == {"p1.png", "p2.png"}
    pairs.write_text("\n".join(lines))
    assert counts(night("fifth")) == (8, 2)


def grow_older(tmp_path, days):
    """Writes the store again with earlier dates, as the store itself would have then."""
    path = str(tmp_path / "store")
    published = EmbeddingStore(path).read_published()
    assert published is not None
    earlier = published.since - datetime.timedelta(days)
    session = EmbeddingStoreSession(path, "stat", published.key, None, None, earlier)
    rows = pa.Table.from_pandas(stored(tmp_path), stored_schema(published.key["embedding_size"]), preserve_index=False)
    dates = pa.array(np.array(rows["last_used"]) - np.timedelta64(days, "D"), pa.date32())
    rows = rows.set_column(rows.schema.get_field_index("last_used"), rows.schema.field("last_used"), dates)
    session.publish(list(session.write(rows)), "older")


def cut(store, said, part):
    part.write_bytes(part.read_bytes()[:-1])


def change_columns(store, said, part):
    pq.write_table(pq.read_table(part).drop_columns(["digest"]), part)
    said["files"][0]["bytes"] = part.stat().st_size


def change_rows(store, said, part):
    pq.write_table(pq.read_table(part).slice(1), part)
    said["files"][0]["bytes"] = part.stat().st_size


DAMAGES = {
    "JSON": (lambda store, said, part: said.clear(), "cannot be understood"),
    "missing": (lambda store, said, part: part.unlink(), "is missing"),
    "size": (cut, "bytes and should have"),
    "footer": (lambda store, said, part: part.write_bytes(b"\0" * part.stat().st_size), "cannot be read"),
    "columns": (change_columns, "other columns"),
    "rows": (change_rows, "9 rows and should have 10"),
    "names": (lambda store, said, part: said["files"][0].update(name="../part.parquet"), "names files that no store has"),
    "format": (lambda store, said, part: said.update(format=99), "format 99"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_store_that_is_not_whole_is_refused_or_rebuilt(damage, first, night, tmp_path):
    store = tmp_path / "store"
    break_it, told = DAMAGES[damage]
    said = json.loads((store / POINTER).read_text())
    break_it(store, said, store / said["folder"] / said["files"][0]["name"])
    (store / POINTER).write_text(json.dumps(said) if said else "{not JSON")
    with pytest.raises(batchverify.PreflightError, match=f"the store is not whole: .*{told}.*--embeddings-rebuild"):
        night("second")
    assert not (tmp_path / "out-second").exists()
    if damage not in ("JSON", "footer"):  # once refused, they are all rebuilt alike
        return
    result = night("third", embeddings_rebuild=True)
    assert counts(result) == (10, 0) and result.summary["embeddings"]["ignored"] == "--embeddings-rebuild"
    assert len(stored(tmp_path)) == 10


def test_damage_inside_of_a_file_fails_the_run(first, night, tmp_path):
    (part,) = (tmp_path / "store").glob("embeddings-*/part-*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(data)
    before = (tmp_path / "store" / POINTER).read_bytes()
    with pytest.raises(batchverify.RunError, match=r"part-[0-9a-f]+.parquet is damaged; restore it, or .*--embeddings-rebuild"):
        night("second")
    assert list((tmp_path / "out-second").iterdir()) == []
    assert (tmp_path / "store" / POINTER).read_bytes() == before
    assert [path.parent.name for path in (tmp_path / "store").glob("*/*")] == [part.parent.name]


@pytest.mark.processes
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_run_has_encoded_is_not_encoded_again(how, first, night, pairs, pictures, small_model, tmp_path):
    before = (tmp_path / "store" / POINTER).read_bytes()
    made_anew(pictures / "p3.png")
    arguments = ["--manifest", str(pairs), "--output", str(tmp_path / "out"), "--model", small_model, "--block-rows", "1"]
    process = start_program([*arguments, "--embeddings", str(tmp_path / "store")], os.environ | {"TMPDIR": str(tmp_path)})
    wait_for(tmp_path / "out" / "_RUNNING", process)
    while len(list((tmp_path / "store").glob("embeddings-*/part-*.parquet"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(how)
    process.communicate(timeout=300)
    assert (tmp_path / "store" / POINTER).read_bytes() == before
    again = night("again")
    assert counts(again) == (0, 10) and again.summary["embeddings"]["unfinished"] == 1
    assert len(stored(tmp_path)) == 10


@pytest.fixture
def fail_midway(night, monkeypatch):
    """Runs a night whose encoder fails for good after the first six images, batch by batch, each batch a part of its own."""

    def run(name, **settings):
        encode = KerasNetwork.encode_parts

        def encode_some(self, uris, is_due):
            yield from itertools.islice(encode(self, uris, lambda: True), 2)
            raise MemoryError("the device is gone")

        with monkeypatch.context() as patch:
            patch.setattr(KerasNetwork, "encode_parts", encode_some)
            with pytest.raises(batchverify.RunError, match="the device is gone"):
                night(name, batch_size=3, **settings)

    return run


def test_a_failed_night_is_gone_on_with(fail_midway, night, tmp_path, read_scores):
    fail_midway("failed")
    assert not (tmp_path / "store" / POINTER).exists() and not (tmp_path / "out-failed" / "_SUCCESS").exists()
    resumed = night("resumed", batch_size=3)
    assert counts(resumed) == (4, 6) and resumed.summary["embeddings"]["unfinished"] == 6
    assert len(stored(tmp_path)) == 10
    undisturbed = night("undisturbed", batch_size=3, embeddings=None)
    assert undisturbed.counters["images_encoded"] == 10
    scores = [read_scores(tmp_path / f"out-{name}") for name in ("resumed", "undisturbed")]
    pd.testing.assert_frame_equal(*scores, check_exact=False, rtol=0, atol=1e-6)
    assert counts(night("next")) == (0, 10)


def test_what_a_failed_night_has_encoded_is_kept_though_the_next_one_does_not_name_it(fail_midway, night, pairs, tmp_path):
    fail_midway("failed")
    lines = pairs.read_text().splitlines()
    pairs.write_text("\n".join([lines[0], "pictures/p1.png,pictures/p2.png"]))
    encoded, reused = counts(night("short"))
    kept = len(stored(tmp_path))
    assert encoded + reused == 2 and kept == 6 + encoded
    pairs.write_text("\n".join(lines))
    assert counts(night("whole")) == (10 - kept, kept) and len(stored(tmp_path)) == 10


def test_a_torn_part_is_left_out_and_deleted(fail_midway, night, tmp_path, caplog):
    fail_midway("failed")
    cut_short, damaged = sorted((tmp_path / "store").glob("embeddings-*/part-*.parquet"))
    cut_short.write_bytes(cut_short.read_bytes()[:-100])
    data = bytearray(damaged.read_bytes())
    data[len(data) // 3] ^= 1
    damaged.write_bytes(data)
    (damaged.parent / ".part.unfinished").write_bytes(b"PAR1")
    assert counts(night("resumed")) == (10, 0)
    assert "is damaged" in caplog.text and "is of a run that did not finish, and is left out" in caplog.text
    assert len(stored(tmp_path)) == 10


def test_parts_of_another_model_or_before_a_rebuild_are_not_used(fail_midway, night, tmp_path):
    fail_midway("failed")
    assert counts(night("other", color="bgr")) == (10, 0) and len(stored(tmp_path)) == 10
    fail_midway("failed-again", color="bgr", embeddings_rebuild=True)
    assert counts(night("rebuilt", color="bgr", embeddings_rebuild=True)) == (10, 0) and len(stored(tmp_path)) == 10


def test_nights_add_what_is_new_and_write_all_now_and_then(first, night, pairs, pictures, tmp_path):
    def written_anew(name):
        said = night(name).summary["embeddings"]
        return said["encoded"], said["written_anew"]

    base = said_of(tmp_path)["base"]
    before = (tmp_path / "store" / POINTER).read_bytes()
    assert written_anew("unchanged") == (0, False) and (tmp_path / "store" / POINTER).read_bytes() == before
    for number in (1, 2, 3):
        made_anew(pictures / f"p{number}.png")
        assert written_anew(f"added-{number}") == (1, False)
        assert said_of(tmp_path)["base"] == base and len(said_of(tmp_path)["files"]) == number + 1
        assert len(stored(tmp_path)) == 10
    (added,) = (tmp_path / "store").glob(f"{said_of(tmp_path)['folder']}/*.parquet")
    assert pq.read_metadata(added).num_rows == 1
    made_anew(pictures / "p4.png")
    assert written_anew("anew") == (0 + 1, False)  # Three of thirteen rows were added: less than a quarter.
    assert written_anew("anew-2") == (0, True)
    assert len(said_of(tmp_path)["files"]) == 1 and said_of(tmp_path)["base"] != base and len(stored(tmp_path)) == 10


def said_of(tmp_path):
    return json.loads((tmp_path / "store" / POINTER).read_text())


def test_after_a_week_all_is_written_anew_with_tonight_s_dates(first, night, tmp_path):
    grow_older(tmp_path, days=6)
    assert counts(night("sixth")) == (0, 10) and said_of(tmp_path)["run_id"] == "older"
    grow_older(tmp_path, days=1)
    night("seventh")
    today = datetime.datetime.now(datetime.UTC).date()
    assert said_of(tmp_path)["since"] == today.isoformat() and set(stored(tmp_path)["last_used"]) == {today}


def test_of_two_runs_at_once_neither_loses_what_it_has_encoded(first, night, tmp_path):
    """Some stores know no locks: the run that ends last leaves the store as it is, and the next run uses what it wrote."""
    path = str(tmp_path / "store")
    published = EmbeddingStore(path).read_published()
    assert published is not None
    today = datetime.datetime.now(datetime.UTC).date()
    sessions = [EmbeddingStoreSession(path, "stat", published.key, published, None, today) for _ in range(2)]
    rows = sessions[0].read(0, published.files[0])
    for number, session in enumerate(sessions):
        named = pa.array([f"/tonight/{number}.png"], pa.string())
        session.publish(session.write(rows.slice(0, 1).set_column(0, rows.schema.field("uri"), named)), f"run-{number}")
    now = EmbeddingStore(path).read_published()
    assert now is not None and now.rows == 11 and now.folder == sessions[0].folder
    night("next")
    assert {"/tonight/0.png", "/tonight/1.png"} < set(stored(tmp_path)["uri"])


def test_a_run_that_misses_a_gate_publishes_its_embeddings(first, night, pictures, tmp_path):
    (pictures / "p3.png").unlink()
    made_anew(pictures / "p4.png")
    gate = batchverify.Limit.parse("0")
    gated = night("gated", max_failed_rows=gate)
    assert not gated.summary["gates"][0]["met"] and counts(gated) == (1, 8)
    assert len(stored(tmp_path)) == 10
    assert counts(night("again", max_failed_rows=gate)) == (0, 9)


def test_one_store_takes_one_run_at_a_time(night, tmp_path):
    with (
        EmbeddingStore(str(tmp_path / "store")).claimed(f"embeddings-{0:032x}"),
        pytest.raises(batchverify.PreflightError, match=r"--embeddings .* another run writes there now"),
    ):
        night("second")
    assert counts(night("third")) == (10, 0)


def test_a_store_that_cannot_be_published_costs_nothing(first, night, pictures, tmp_path, monkeypatch, caplog):
    def full(self, text):
        raise OSError("No space left on device")

    made_anew(pictures / "p3.png")
    before = (tmp_path / "store" / POINTER).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingStore, "_replace_pointer", full)
        assert counts(night("second")) == (1, 9)
    assert "the scores are whole, but the new embeddings could not be published (No space left" in caplog.text
    assert (tmp_path / "out-second" / "_SUCCESS").exists() and (tmp_path / "store" / POINTER).read_bytes() == before
    assert counts(night("third")) == (0, 10) and len(stored(tmp_path)) == 10


def test_a_store_whose_old_files_cannot_be_deleted_is_published(first, night, pictures, tmp_path, monkeypatch, caplog):
    def refuse(self, files, except_for=()):
        if except_for:
            raise OSError("Permission denied")

    made_anew(pictures / "p3.png")
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingStore, "delete", refuse)
        assert counts(night("second")) == (1, 9)
    assert "files that do not count any more stay until the next run (Permission denied)" in caplog.text
    assert "the store is as it was" not in caplog.text
    assert counts(night("third")) == (0, 10)


def test_leftovers_of_crashed_runs_are_swept_and_other_folders_refused(night, tmp_path, pictures):
    left = tmp_path / "store" / f"embeddings-{7:032x}"
    left.mkdir(parents=True)
    (left / f"part-{7:032x}.parquet").write_bytes(b"left by a crashed run")
    night("first")
    assert len(stored(tmp_path)) == 10
    with pytest.raises(batchverify.PreflightError, match=r"holds 'p\d.png' and no embeddings; name a folder of their own"):
        night("second", embeddings=str(pictures))
    with pytest.raises(batchverify.PreflightError, match="is not a directory"):
        night("third", embeddings=str(pictures / "p1.png"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--embeddings", ""], "--embeddings is empty"),
        (["--embeddings", "store*"], r"holds one of * ? ["),
        (["--embeddings", "out/store"], "are the same directory, or one contains the other"),
        (["--embeddings", "."], "are the same directory, or one contains the other"),
        (["--embeddings-rebuild"], "needs an embedding store, and none is given"),
        (["--embeddings-version", "content"], "needs an embedding store, and none is given"),
        (["--embeddings", "store", "--embeddings-days", "0"], "give at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options, told, capsys):
    assert main(["--manifest", "pairs.csv", "--output", "out", *options]) == 2
    assert told in capsys.readouterr().err


def test_the_check_and_the_closing_words_tell_of_the_store(pairs, pictures, request, small_model, tmp_path, capsys):
    arguments = ["--manifest", str(pairs), "--model", small_model, "--embeddings", str(tmp_path / "store")]
    assert main([*arguments, "--output", str(tmp_path / "o1"), "--check"]) == 0
    assert "nothing is stored yet" in capsys.readouterr().out and not (tmp_path / "store").exists()
    request.getfixturevalue("first")
    made_anew(pictures / "p3.png")
    assert main([*arguments, "--output", str(tmp_path / "o1"), "--check"]) == 0
    assert "10 embeddings that fit; of 10 images tried, 9 are in it unchanged" in capsys.readouterr().out
    assert main([*arguments, "--output", str(tmp_path / "o1")]) == 0
    told = capsys.readouterr().out
    assert "10 distinct: 1 encoded, 9 from the store, 0 failed" in told and "9 of 10 images were in it unchanged" in told
    assert "9 of them were in the store of embeddings, 1 were encoded." in " ".join(
        (tmp_path / "o1" / "_report.html").read_text().split()
    )
    assert main([*arguments, "--output", str(tmp_path / "o2"), "--color", "bgr", "--check"]) == 0
    assert "what is stored is not used: made with another preprocessing" in capsys.readouterr().out


def test_a_network_that_runs_whole_has_no_embeddings_to_keep(night, small_model, tmp_path):
    import keras

    model = keras.models.load_model(small_model)
    model.export(str(tmp_path / "saved"), verbose=False)
    with pytest.raises(batchverify.PreflightError, match=r"runs whole, .* leave --embeddings out"):
        night("first", model=str(tmp_path / "saved"), pixels="0..255")


class UndatedFileSystem(LocalFileSystem):
    """Opens `undated:///path` on this machine, and says nothing of it."""

    @classmethod
    def scheme(cls):
        return "undated"

    def open(self, path, mime_type="", compression_type=None):
        return open(path[path.index("://") + 3 :], "rb")

    def metadata(self, path):
        return None


class DatedFileSystem(UndatedFileSystem):
    """Opens `dated:///path` likewise, with its size and time."""

    seconds_added = 0

    @classmethod
    def scheme(cls):
        return "dated"

    def metadata(self, path):
        found = os.stat(path[path.index("://") + 3 :])
        return FileMetadata(path, found.st_size, found.st_mtime + self.seconds_added)


def test_images_of_another_file_system_are_kept_if_it_dates_them(night, pictures, tmp_path, monkeypatch):
    names = [f"dated://{pictures}/p{number}.png" for number in range(10)]
    names += [f"undated://{pictures}/p{number}.png" for number in range(6)]
    manifest = tmp_path / "stored.csv"
    manifest.write_text("left,right\n" + "\n".join(f"{names[n]},{names[n - 1]}" for n in range(16)))
    assert counts(night("first", manifests=(str(manifest),))) == (16, 0)
    assert counts(night("second", manifests=(str(manifest),))) == (6, 10)
    monkeypatch.setattr(DatedFileSystem, "seconds_added", 1)
    assert counts(night("third", manifests=(str(manifest),))) == (16, 0)
