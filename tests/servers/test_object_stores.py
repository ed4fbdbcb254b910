"""Runs on gs:// and s3://, for real on loopback: the local run's result, whatever the store does meanwhile, or nothing."""

import collections
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from apache_beam.internal.gcp import auth
from PIL import Image

import batchverify
from batchverify.cli.main import main
from batchverify.images import fetch
from batchverify.images.failure import ImageFailure
from batchverify.images.fetch import fetch_bytes
from batchverify.io import gcs, object_store, store_lock
from batchverify.manifest.plan import plan_manifest
from batchverify.schema import ImageStatus
from tests.support.object_stores import HANG_S, gs_store, keep_descriptions, s3_store
from tests.support.outcomes import failed
from tests.support.processes import start_program

pytestmark = pytest.mark.servers
FINISHED = ["_SUCCESS", "_report.html", "_summary.json", "scores-00000-of-00001.parquet"]
PICTURES = 40
# The first argument of a request that brings an image's bytes.
OF_IMAGE = re.compile(r"(?:/download/storage/v1/b/bucket/o|/bucket)/in/images/([^?]*)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_model) -> Path:
    """Pictures in `images`, one of them broken, `pairs.csv` and `pairs.parquet` of 200 pairs of them, and a model."""
    folder = tmp_path_factory.mktemp("local") / "in"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(8)
    for number in range(PICTURES):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / "images" / f"p{number}.png")
    (folder / "images" / "p7.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    names = [f"images/p{number}.png" for number in range(PICTURES)] + ["images/none.png", "images/größer als 1 #.png"]
    (folder / names[-1]).write_bytes((folder / names[0]).read_bytes())
    pairs = pd.DataFrame({side: [names[i] for i in rng.integers(len(names), size=200)] for side in ("left", "right")})
    pairs["genuine"] = rng.integers(0, 2, size=200).astype(str)
    pairs.to_csv(folder / "pairs.csv", index=False)
    pairs.to_parquet(folder / "pairs.parquet")
    (folder / "model.keras").write_bytes(Path(small_model).read_bytes())
    (folder / "model.keras.batchverify.json").write_text('{"threshold": 0.25}')
    keras.models.load_model(small_model).export(folder / "saved", verbose=False)
    (folder / "saved.batchverify.json").write_text('{"pixels": "0..255"}')
    return folder


@pytest.fixture(scope="module")
def local(folder, read_scores) -> pd.DataFrame:
    """The scores of the local run."""
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "pairs.csv"),), output=str(folder.parent / "out"), model=str(folder / "model.keras")
    )
    batchverify.run(config)
    return read_scores(folder.parent / "out")


@pytest.fixture(scope="module")
def both(folder, tmp_path_factory):
    with ExitStack() as stack:
        found = [stack.enter_context(make(tmp_path_factory.mktemp("account"))) for make in (gs_store, s3_store)]
        for store in found:
            store.upload(folder, "in")
        yield {store.scheme: store for store in found}


@pytest.fixture(params=["gs", "s3"])
def store(request, both, monkeypatch):
    """A store with `folder` in it as `in/`, and nothing else."""
    return prepare(both[request.param], monkeypatch)


@pytest.fixture
def s3(both, monkeypatch):
    """The store that has conditional writes."""
    return prepare(both["s3"], monkeypatch)


def prepare(store, monkeypatch):
    """Empties a store but for `in/`, and tells this process and its children of it."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(store_lock, "_DEAD_AFTER_S", 2.0)
    # Beam looks for credentials once in a process, and other tests may have had it do so.
    monkeypatch.setattr(auth._Credentials, "_credentials_init", False)
    monkeypatch.setattr(auth._Credentials, "_credentials", None)
    store.clear("out")
    store.proxy.clear()
    object_store.set_storage_arguments(store.arguments, [])
    return store


def arguments(store, output="out", manifest="pairs.csv", model="model.keras") -> list[str]:
    options = {"--manifest": f"in/{manifest}", "--output": output, "--model": f"in/{model}"}
    return [word for option, name in options.items() for word in (option, store.uri(name))] + store.arguments


def run_program(*words: str) -> subprocess.CompletedProcess:
    """Runs the program as a user does, from a folder that has nothing to do with it."""
    package = {"PYTHONPATH": str(Path(batchverify.__file__).parents[1])}
    command = [sys.executable, "-m", "batchverify", *words]
    return subprocess.run(command, env=os.environ | package, cwd="/", capture_output=True, text=True, timeout=300)


def assert_same(scores: pd.DataFrame, local: pd.DataFrame, but: dict[str, str] | None = None) -> None:
    """Asserts that a run gave what the local one gave, but for rows that name one of the images `but`, by its status."""
    but = but or {}
    spoilt = scores["left"].isin(but) | scores["right"].isin(but)
    assert scores["manifest_row"].tolist() == local["manifest_row"].tolist()
    for side in ("left", "right"):
        expected = [but.get(name, status) for name, status in zip(local[side], local[f"{side}_status"], strict=True)]
        assert scores[f"{side}_status"].astype(str).tolist() == expected
    same = [column for column in local.columns if column not in ("manifest_file", "error")]
    pd.testing.assert_frame_equal(scores.loc[~spoilt, same], local.loc[~spoilt, same], rtol=0, atol=1e-6)
    assert scores.loc[spoilt, "score"].isna().all()


def scores_of(store, output, tmp_path, read_scores) -> pd.DataFrame:
    return read_scores(store.download(output, tmp_path / f"{store.scheme}-{output}"))


def test_a_run_in_a_store_gives_what_the_local_run_gives(store, folder, local, tmp_path, read_scores):
    store.proxy.delay_s = 0.02
    done = run_program(*arguments(store), "--fetch-threads", "5")
    assert done.returncode == 0, done.stderr
    assert store.names("out") == [f"out/{name}" for name in FINISHED] and store.uploads() == []
    scores = scores_of(store, "out", tmp_path, read_scores)
    assert set(scores["manifest_file"]) == {store.uri("in/pairs.csv")}
    assert_same(scores, local)
    summary = json.loads(store.get("out/_summary.json"))
    assert summary["run"]["threshold"] == 0.25  # as the sidecar beside the model says
    assert b"data:image/" in store.get("out/_report.html")
    # Each image is asked for once to be encoded; a few are looked at before, to prove the model, and after, for the report.
    config = batchverify.VerificationConfig(manifests=(str(folder / "pairs.csv"),), output="-")
    before = [Path(uri).name for uri in plan_manifest(config).sample]
    pairs = {(pair["left"], pair["right"]) for found in summary["extremes"].values() for pair in found}
    after = {Path(uri).name for pair in pairs for uri in pair}
    once = {Path(name).name for name in pd.concat([local["left"], local["right"]])}
    fetched = [(OF_IMAGE.match(asked.path), asked.connection) for asked in store.proxy.asked]
    asked = collections.Counter(found[1] for found, _ in fetched if found)
    assert collections.Counter(once) <= asked <= collections.Counter([*once, *before, *after])
    assert not [prefix for prefix in store.proxy.listed() if "in/images/".startswith(prefix) or "in/images" in prefix]
    # Five threads read, and each of them asks again over the connection that it has.
    assert 1 < store.proxy.busiest <= 5
    assert len({connection for found, connection in fetched if found}) <= 2 * 5 < asked.total() / 5


def test_faults_of_a_store_cost_the_rows_of_the_images_that_they_last_for(store, local, tmp_path, read_scores):
    proxy = store.proxy
    passing: dict[int, list[int | str]] = {1: [503, 503], 2: ["reset"], 3: ["cut"], 4: [429], 5: [500, "cut"]}
    for number, faults in passing.items():
        proxy.spoil(rf"GET .*/in/images/p{number}\.png", *faults)
    proxy.spoil(r"GET .*/in/images/p8\.png", 503, times=1000)
    proxy.spoil(r"GET .*/in/images/p9\.png", "hang", times=1000)
    proxy.spoil(r"GET .*/in/images/p10\.png", 403, times=1000)
    # What is written and moved into place meets faults as well, once each.
    proxy.spoil(r"(PUT|POST) .*beam-temp-scores", 503)
    proxy.spoil(r"(PUT|POST) .*out/summary\.json", 503)
    proxy.spoil(r"GET .*out/_RUNNING", 503)
    started = time.monotonic()
    assert main([*arguments(store), "--image-timeout", "6"]) == 0
    assert time.monotonic() - started < HANG_S
    assert store.names("out") == [f"out/{name}" for name in FINISHED] and store.uploads() == []
    lasting = {"images/p8.png": "unavailable", "images/p9.png": "unavailable", "images/p10.png": "denied"}
    scores = scores_of(store, "out", tmp_path, read_scores)
    assert_same(scores, local, lasting)
    errors = {name: scores.loc[scores["left"] == name, "error"].iloc[0] for name in lasting}
    assert "503" in errors["images/p8.png"]
    assert re.search(r"took longer than 6 s \(--image-timeout\)|timed out", errors["images/p9.png"])
    assert errors["images/p10.png"].endswith("it may not be read")


def test_a_killed_run_is_swept_and_redone(store, local, tmp_path, read_scores):
    """Killed where its files are moved into place, in Amazon's case where they are uploaded, which leaves unseen parts."""
    store.proxy.spoil({"gs": "POST /batch", "s3": "PUT .*beam-temp-scores"}[store.scheme], "hang", times=1000)
    process = start_program(arguments(store), os.environ | {"TMPDIR": str(tmp_path)}, "/", keep_descriptions)
    assert store.proxy.hanging.wait(300), process.communicate(timeout=1)
    process.kill()
    process.wait()
    left = store.names("out") + store.uploads()
    assert "out/_RUNNING" in left and "out/_SUCCESS" not in left
    assert [name for name in left if "beam-temp" in name]
    store.proxy.clear()
    assert main(arguments(store)) == 0
    assert store.names("out") == [f"out/{name}" for name in FINISHED] and store.uploads() == []
    assert_same(scores_of(store, "out", tmp_path, read_scores), local)


def start_slowly(store, folder):
    """Starts a run that waits for its images, and returns when it has claimed its output."""
    store.proxy.delay_s = 0.5
    process = start_program(
        [*arguments(store), "--fetch-threads", "1"], os.environ | {"TMPDIR": str(folder)}, "/", keep_descriptions
    )
    while "out/_RUNNING" not in store.names("out"):
        assert process.poll() is None
        time.sleep(0.1)
    return process


def test_of_two_runs_into_one_place_the_second_is_refused_where_the_store_has_conditional_writes(s3, tmp_path):
    """Amazon's store has them; the emulator of Google's ignores conditions, so that the earlier run fails there as before."""
    first = start_slowly(s3, tmp_path)
    assert "out/_LOCK" in s3.names("out")
    second = run_program(*arguments(s3))
    assert second.returncode == 2, second.stderr
    assert f"--output {s3.uri('out')}: another run writes there now" in second.stderr and "Traceback" not in second.stderr
    s3.proxy.clear()
    _, said = first.communicate(timeout=300)
    assert first.returncode == 0, said
    assert s3.names("out") == [f"out/{name}" for name in FINISHED]


def test_a_stopped_run_leaves_no_lock(s3, tmp_path):
    process = start_slowly(s3, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert s3.names("out") == []


def test_locks_are_held_by_one_and_taken_from_the_dead(store, monkeypatch):
    folder = store.uri("out")
    monkeypatch.setattr(store_lock, "_RENEW_S", 0.2)
    monkeypatch.setattr(store_lock, "_WATCH_S", 0.05)
    held = store_lock.hold(folder)
    if store.scheme == "gs":  # The emulator ignores conditions.
        assert held is None and store.names("out") == []
        return
    assert held is not None and store.names("out") == ["out/_LOCK"]
    with pytest.raises(store_lock.LockedError):
        store_lock.hold(folder)
    with pytest.raises(store_lock.LockedError):
        store_lock.wait_for_death(folder)
    held._released.set()  # As if its process had died.
    time.sleep(0.3)
    taken = store_lock.hold(folder)
    assert taken is not None
    held._released.clear()
    held.release()  # The dead one comes back to life, and must leave the lock to the new holder.
    assert store.names("out") == ["out/_LOCK"]
    taken.release()
    assert store.names("out") == []


def test_of_many_that_want_a_lock_one_gets_it(s3, monkeypatch):
    monkeypatch.setattr(store_lock, "_RENEW_S", 0.2)
    monkeypatch.setattr(store_lock, "_WATCH_S", 0.05)

    def hold(_) -> store_lock.StoreLock | None:
        try:
            return store_lock.hold(s3.uri("out"))
        except store_lock.LockedError:
            return None

    with ThreadPoolExecutor(8) as threads:
        held = [lock for lock in threads.map(hold, range(8)) if lock is not None]
    assert len(held) == 1
    held[0].release()


def test_a_run_that_may_not_write_fails_in_a_sentence_and_leaves_nothing(store, capsys):
    store.proxy.spoil("(PUT|POST) .*(beam-temp-scores|/upload/)", 403, times=1000)
    assert main(arguments(store)) == 1
    said = capsys.readouterr().err
    assert "403" in said and "Traceback" not in said
    assert store.names("out") == [] and store.uploads() == []


def test_all_that_a_run_reads_and_writes_may_lie_in_a_store(store, folder, local, tmp_path, read_scores, capsys):
    """A SavedModel, a Parquet manifest, a folder of images, an earlier run, the report made again."""
    root = ["--image-root", store.uri("in/images")]
    table = pd.read_parquet(store.download("in", tmp_path / "in") / "pairs.parquet")
    table["left"] = [store.uri(f"in/{name}") for name in table["left"]]
    table["right"] = table["right"].str.removeprefix("images/")
    table.to_parquet(tmp_path / "mixed.parquet")
    store.put("in/mixed.parquet", (tmp_path / "mixed.parquet").read_bytes())
    store.upload(folder.parent / "out", "earlier")
    before = ["--baseline", store.uri("earlier"), "--max-drift", "0.1"]
    words = [*arguments(store, manifest="mixed.parquet", model="saved"), "--threshold", "0.25", *root, *before]
    assert main(words) == 0, capsys.readouterr().err
    assert "against " + store.uri("earlier") in capsys.readouterr().out
    scores = scores_of(store, "out", tmp_path, read_scores)
    assert scores["left"].tolist() == table["left"].tolist()
    np.testing.assert_allclose(scores["score"], local["score"], atol=1e-5, equal_nan=True)
    assert main(words) == 2 and "add --overwrite" in capsys.readouterr().err
    store.put("out/_report.html", b"none")
    assert main(["report", store.uri("out"), *store.arguments]) == 0
    assert b"data:image/" in store.get("out/_report.html")


def test_a_model_in_a_store_is_calibrated_there(store, local, tmp_path, read_scores, capsys):
    rows = local.dropna(subset="score")[["left", "right", "score"]]
    rows["genuine"] = (rows["score"] > rows["score"].median()).astype(int)
    store.put("in/labelled.csv", rows.drop(columns="score").to_csv(index=False).encode())
    sidecar = "in/model.keras.batchverify.json"
    before = store.get(sidecar)
    try:
        assert main(arguments(store, "out", "labelled.csv")) == 0
        assert main(["calibrate", store.uri("out"), *store.arguments]) == 0
        assert f"Files     {store.uri(sidecar)}: later runs" in capsys.readouterr().out
        assert json.loads(store.get(sidecar))["threshold"] == 0.25
        assert main([*arguments(store, "out", "labelled.csv"), "--prior", "0.3", "--overwrite"]) == 0
    finally:
        store.put(sidecar, before)
    scores = scores_of(store, "out", tmp_path, read_scores)
    assert scores["llr"].notna().all() and scores["llr"].corr(scores["score"], method="spearman") > 0.99


def test_the_doctor_examines_a_model_on_a_manifest_in_a_store(store, capsys):
    words = ["--model", store.uri("in/model.keras"), "--manifest", store.uri("in/pairs.csv"), *store.arguments]
    assert main(["doctor", *words]) == 0, capsys.readouterr()
    assert f"{PICTURES} images of {store.uri('in/pairs.csv')}" in capsys.readouterr().out
    assert main(["doctor", *words, "--no-such-option"]) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--manifest": "{scheme}://bucket/in/none.csv"}, "there is no such file; check the path"),
        ({"--manifest": "{scheme}://elsewhere/none.csv"}, "there is no such file; check the path"),
        ({"--model": "{scheme}://bucket/in/none.keras"}, "it cannot be fetched"),
        ({"--output": "{scheme}://elsewhere/out"}, "there is no bucket elsewhere; make it first"),
        ({"--baseline": "{scheme}://bucket/none"}, "name an earlier run"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(change, words, store, capsys):
    given = dict(zip(arguments(store)[:6:2], arguments(store)[1:6:2], strict=True)) | change
    argv = [word.format(scheme=store.scheme) for pair in given.items() for word in pair] + store.arguments
    assert main(argv) == (75 if "--manifest" in change else 2)
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and store.names("out") == []


def test_a_manifest_that_may_not_be_read_is_refused(store, capsys):
    store.proxy.spoil("(GET|HEAD) .*pairs.csv", 403, times=1000)
    assert main(arguments(store)) == 2
    said = capsys.readouterr().err
    assert "pairs.csv cannot be looked up" in said and "403" in said and said.count("\n") == 1


@pytest.mark.parametrize("trouble", ["off", "overloaded", "unauthorised", "unlisted"])
def test_a_store_that_cannot_be_reached_is_refused_before_long(trouble, store, monkeypatch, capsys):
    monkeypatch.setattr(gcs, "_PROBE_S", 1.0)
    code = {"overloaded": 503, "unauthorised": 401, "unlisted": 403}.get(trouble)
    words = arguments(store)
    if code is None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
        words = [word.replace(store.proxy.url, "http://127.0.0.1:9") for word in words]
    elif code == 403:
        store.proxy.spoil("GET .*(/o|/bucket/?)\\?.*prefix=out", code, times=1000)
    else:
        store.proxy.spoil(".", code, times=1000)
    started = time.monotonic()
    assert main(words) == 2
    assert time.monotonic() - started < 40
    said = capsys.readouterr().err
    assert ("may not be listed" if trouble == "unlisted" else "the store cannot be reached") in said
    assert "Traceback" not in said and (code is None or str(code) in said)


def test_without_credentials_s3_is_refused_at_once(both, monkeypatch, capsys):
    for name in both["s3"].environment:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert main([*arguments(both["s3"]), "--s3_region_name=eu-central-1"]) == 2
    assert "there are no credentials" in capsys.readouterr().err


@pytest.mark.parametrize(("scheme", "module", "extra"), [("gs", "google.cloud.storage", "gcp"), ("s3", "boto3", "aws")])
def test_a_store_whose_extra_is_not_installed_is_refused(scheme, module, extra):
    code = f"import sys; sys.modules[{module!r}] = None; from batchverify.cli.main import main; sys.exit(main())"
    words = [word for option in ("--manifest", "--output") for word in (option, f"{scheme}://bucket/x")]
    folder = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 2
    assert f"pip install 'batchverify[{extra}]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "faults", "expected", "requests"),
    [
        ("in/404 403 %2F?x=#ü.png", [], b"the picture", 1),
        ("in/404 403 %2F?x=#ü.png", [503] * 1000, ImageStatus.UNAVAILABLE, None),
        ("in/a.png", [404], ImageStatus.MISSING, 1),
        ("in/a.png", [403], ImageStatus.DENIED, 1),
        ("in/a.png", [401] * 9, ImageStatus.DENIED, None),  # Google's client signs in again before it believes it
        ("in/a.png", [503, "cut"], b"the picture", 3),
        ("in/a.png", ["reset", 500], b"the picture", 3),
    ],
)
def test_an_image_is_asked_for_until_it_comes_or_the_time_is_up(name, faults, expected, requests, store):
    store.put(name, b"the picture")
    store.proxy.spoil("GET ", *faults)
    started = time.monotonic()
    found = fetch_bytes(store.uri(name), 100, timeout_s=12.0 if isinstance(expected, bytes) else 3.0)
    assert time.monotonic() - started < 12
    assert (found.status if isinstance(found, ImageFailure) else found) == expected
    assert requests is None or len(store.proxy.asked) == requests


def test_images_that_are_empty_or_too_large(store):
    store.put("in/empty.png", b"")
    store.put("in/large.png", bytes(300_000))
    assert failed(fetch_bytes(store.uri("in/empty.png"), 100)).status == ImageStatus.EMPTY
    assert failed(fetch_bytes(store.uri("in/large.png"), 299_999)).status == ImageStatus.TOO_LARGE
    assert fetch_bytes(store.uri("in/large.png"), 300_000) == bytes(300_000)
