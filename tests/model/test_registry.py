"""Models of registries: one of MLflow in a folder, and a server that speaks the needed part of Hugging Face."""

import hashlib
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import apache_beam as beam
import huggingface_hub.constants
import keras
import mlflow
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.pvalue import Row
from apache_beam.testing.util import assert_that

import batchverify
from batchverify.cli.main import main
from batchverify.errors import PreflightError
from batchverify.model.registry import resolve_model
from batchverify.model.sidecar import read_sidecar

DEMO = Path(batchverify.__file__).parent / "demo"


def register(folder: Path, name: str, files: dict[str, Path | bytes]) -> str:
    """Registers a version that holds files, by their paths in it; returns its number."""
    source = folder / f"artifacts-{len(list(folder.iterdir()))}"
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (source / path).write_bytes(content)
        else:
            shutil.copy(content, source / path)
    client = mlflow.MlflowClient()
    if name not in {model.name for model in client.search_registered_models()}:
        client.create_registered_model(name)
    return str(client.create_model_version(name, str(source)).version)


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "registry").as_uri())
    return tmp_path


def sane_files(threshold: float) -> dict[str, Any]:
    sidecar = json.dumps({"threshold": threshold, "loader": "batchverify"}).encode()
    return {"MLmodel": b"flavors: {}", "data/model.keras": DEMO / "sane.keras", "data/model.keras.batchverify.json": sidecar}


def test_a_run_uses_and_records_the_version_that_an_alias_names_when_it_begins(registry, demo):
    client = mlflow.MlflowClient()
    first = register(registry, "faces", sane_files(0.7))
    second = register(registry, "faces", {"model.keras": DEMO / "faulty.keras"})
    client.set_registered_model_alias("faces", "champion", first)
    client.set_registered_model_alias("faces", "next", second)

    command = ["--manifest", str(demo / "demo.csv"), "--output", str(registry / "scores"), "--limit", "20"]
    assert main([*command, "--model", "models:/faces@champion", "--candidate", "models:/faces@next"]) == 0

    summary = json.loads((registry / "scores/_summary.json").read_text())
    run, candidate = summary["run"], summary["candidate"]
    assert run["model"] == "models:/faces/1/data/model.keras"
    assert run["model_version"] == {"registry": "mlflow", "name": "faces", "version": "1", "alias": "champion"}
    assert run["model_digest"] == f"sha256:{hashlib.sha256((DEMO / 'sane.keras').read_bytes()).hexdigest()}"
    assert run["threshold"] == 0.7
    assert candidate["model"] == "models:/faces/2/model.keras" and candidate["model_version"]["alias"] == "next"
    assert "which the alias champion named" in (registry / "scores/_report.html").read_text()
    client.set_registered_model_alias("faces", "champion", second)
    assert resolve_model("models:/faces@champion")[0] == "models:/faces/2/model.keras"


def test_an_alias_that_moves_in_mid_run_changes_nothing(registry, demo):
    client = mlflow.MlflowClient()
    first = register(registry, "faces", sane_files(0.7))
    second = register(registry, "faces", {"model.keras": DEMO / "faulty.keras"})
    client.set_registered_model_alias("faces", "champion", first)

    def move(*_):
        client.set_registered_model_alias("faces", "champion", second)

    config = batchverify.VerificationConfig(
        manifests=(str(demo / "demo.csv"),), output=str(registry / "scores"), model="models:/faces@champion"
    )
    result = batchverify.run(config, watch=move)
    assert str(client.get_model_version_by_alias("faces", "champion").version) == second
    assert result.summary["run"]["model"] == "models:/faces/1/data/model.keras"
    assert result.summary["identity"]["score_min"] > 0.99  # The other version's is 0.5.


def test_images_at_hand_and_pipelines_take_models_of_a_registry(registry, demo):
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("faces", "champion", register(registry, "faces", sane_files(0.7)))
    names = sorted(str(path) for path in (demo / "images").glob("*_c0_*.png"))[:3]
    expected = batchverify.load(str(DEMO / "sane.keras")).score(names[0], names)
    assert batchverify.load("models:/faces@champion").score(names[0], names).tolist() == expected.tolist()

    block = pa.table({"left": names[:1] * 3, "right": names})
    pipeline = beam.Pipeline(runner="FnApiRunner")
    verified = pipeline | beam.Create([("only", block)]) | batchverify.VerifyPairs(
        batchverify.ScoringConfig(model="models:/faces@champion"), expected_images=3
    )  # fmt: skip
    _ = verified.scores | beam.Map(lambda scores, at=str(registry / "own.parquet"): pq.write_table(scores, at))
    pipeline.run().wait_until_finish()
    found = pq.read_table(registry / "own.parquet")
    assert found["score"].to_pylist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert found["match"].to_pylist() == [score >= 0.7 for score in expected]  # The threshold of its sidecar.


def test_rows_of_a_pipeline_take_models_of_a_registry(registry, demo):
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("faces", "champion", register(registry, "faces", sane_files(0.7)))
    client.set_registered_model_alias("faces", "next", register(registry, "faces", sane_files(0.2)))
    left, right = sorted(str(path) for path in (demo / "images").glob("*_c0_*.png"))[:2]
    expected = batchverify.load(str(DEMO / "sane.keras")).score(left, right)

    def check(found: list[Any]) -> None:
        (row,) = found
        assert row.score == pytest.approx(expected, abs=1e-6) == row.score_candidate
        assert row.match == (expected >= 0.7) and row.match_candidate == (expected >= 0.2)

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([Row(left=left, right=right)])
        names = {"model": "models:/faces@champion", "candidate": "models:/faces@next"}
        assert_that(rows | batchverify.VerifyRows(expected_images=2, **names), check)


def test_without_an_address_the_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PreflightError, match=r"models:/faces/1: no registry .* set MLFLOW_TRACKING_URI"):
        resolve_model("models:/faces/1")


def test_a_saved_model_and_the_path_of_one_of_several_models_are_found(registry):
    register(registry, "graph", {"tfmodel/saved_model.pb": b"1", "tfmodel/assets/a.h5": b"2", "MLmodel": b"3"})
    register(registry, "two", {"a.onnx": b"1", "b/b.h5": b"2"})
    assert resolve_model("models:/graph/1")[0] == "models:/graph/1/tfmodel"
    assert resolve_model("models:/two/1/b")[0] == "models:/two/1/b/b.h5"


def test_latest_is_the_highest_version(registry):
    for _ in range(10):
        register(registry, "faces", {"model.keras": b"1"})
    name, facts = resolve_model("models:/faces/latest")
    assert name == "models:/faces/10/model.keras" and facts["version"] == "10"


def test_a_saved_model_of_a_registry_scores_as_its_folder_does(registry, demo):
    keras.models.load_model(DEMO / "sane.keras").export(registry / "exported", verbose=False)
    files = {
        str(path.relative_to(registry / "exported")): path for path in (registry / "exported").rglob("*") if path.is_file()
    }
    version = register(registry, "graph", {f"data/model/{path}": file for path, file in files.items()})
    left, right = (str(path) for path in sorted((demo / "images").glob("*_c0_*.png"))[:2])
    expected = batchverify.load(str(registry / "exported"), pixels="0..255").score(left, right)
    assert batchverify.load(f"models:/graph/{version}", pixels="0..255").score(left, right) == expected


def test_an_onnx_file_of_a_registry_comes_with_the_file_of_its_weights(registry):
    values = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["image"], ["pool"]),
        onnx.helper.make_node("Flatten", ["pool"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "values"], ["embedding"]),
    ]
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "encoder",
        [onnx.helper.make_tensor_value_info("image", floats, ["n", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("embedding", floats, ["n", 5])],
        [onnx.numpy_helper.from_array(values, "values")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    path = registry / "encoder.onnx"
    onnx.save(model, path, save_as_external_data=True, location="encoder.onnx.data", size_threshold=0)
    version = register(registry, "faces", {f"data/{name}": registry / name for name in ("encoder.onnx", "encoder.onnx.data")})
    left, right = np.random.default_rng(3).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    expected = batchverify.load(str(path), compare="cosine", pixels="0..255").score(left, right)
    found = batchverify.load(f"models:/faces/{version}", compare="cosine", pixels="0..255").score(left, right)
    assert found.tolist() == expected.tolist()


def test_a_calibration_goes_into_a_file_and_not_into_the_registry(registry, demo, tmp_path, capsys):
    version = register(registry, "faces", sane_files(0.7))
    scores, name = str(tmp_path / "scores"), f"models:/faces/{version}"
    assert main(["--manifest", str(demo / "demo.csv"), "--output", scores, "--model", name, "--label-column", "genuine"]) == 0
    assert main(["calibrate", scores]) == 2
    assert "lies in a registry, whose versions never change; name a file with --sidecar" in capsys.readouterr().err
    assert main(["calibrate", scores, "--sidecar", str(tmp_path / "sidecar.json")]) == 0
    assert "Version</dt><dd>1</dd>" in (tmp_path / "scores" / "_report.html").read_text()
    files = sane_files(0.7)
    sidecar = json.loads(files["data/model.keras.batchverify.json"]) | json.loads((tmp_path / "sidecar.json").read_text())
    version = register(registry, "faces", files | {"data/model.keras.batchverify.json": json.dumps(sidecar).encode()})
    again = ["--manifest", str(demo / "demo.csv"), "--output", str(tmp_path / "again"), "--limit", "20"]
    assert main([*again, "--model", f"models:/faces/{version}"]) == 0
    scored = pq.read_table(tmp_path / "again")
    assert scored["llr"].null_count == scored["score"].null_count < 20
    assert "too few labelled pairs to draw how reliable" in (tmp_path / "again" / "_report.html").read_text()


@pytest.mark.parametrize(
    "name, reason",
    [
        ("models:/faces@nobody", "has no alias 'nobody'"),
        ("models:/nobody@champion", "has no model 'nobody'"),
        ("models:/faces/9", "has no version 9 of a model 'faces'"),
        ("models:/faces", "give models:/NAME@ALIAS"),
        ("models:/faces/1", "it holds 2 models (a.keras, b.h5); add the path"),
        ("models:/faces/1/c.h5", "it holds no 'c.h5'"),
        ("models:/faces/1/../c.h5", "leave out '..'"),
    ],
)
def test_what_mlflow_does_not_have_is_refused_in_one_sentence(registry, demo, capfd, name, reason):
    register(registry, "faces", {"a.keras": b"1", "b.h5": b"2"})
    command = ["--manifest", str(demo / "demo.csv"), "--output", str(registry / "scores")]
    assert main([*command, "--model", name]) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(told) == 1 and f"--model {name}: " in told[0] and reason in told[0]


def test_a_server_of_mlflow_that_nobody_runs_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(PreflightError, match=r"cannot be asked .* check MLFLOW_TRACKING_URI") as refusal:
        resolve_model("models:/faces/1")
    assert len(refusal.value.problems) == 1


@pytest.mark.parametrize("module, name", [("mlflow", "models:/a/1"), ("huggingface_hub", "hf://a/b")])
def test_a_missing_extra_is_named(monkeypatch, module, name):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(PreflightError, match=r"pip install 'batchverify\["):
        resolve_model(name)


class Hub(ThreadingHTTPServer):
    """A server with one repository, `org/faces`, whose branch can be moved.

    Attributes:
        commits: Files by path, by commit.
        branch: The commit of `main`.
        downloads: The paths that were fetched.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branch = ""
        self.downloads: list[str] = []
        self.token = ""  # What a client must know, if anything.


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.send(*self.find(with_body), with_body)

    def find(self, with_body: bool) -> tuple[int, bytes, dict[str, str]]:
        parts = self.path.split("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        repo, rest = ("/".join(parts[2:4]), parts[4:]) if is_api else ("/".join(parts[:2]), parts[2:])
        commit = self.server.branch if len(rest) > 1 and rest[1] == "main" else (rest[1] if len(rest) > 1 else "")
        is_known = not self.server.token or self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if repo != "org/faces" or not is_known:
            return 401, b"", {"X-Error-Code": "RepoNotFound"}
        if commit not in self.server.commits:
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        files = self.server.commits[commit]
        if is_api and rest[0] == "tree":
            tree = [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files.items()]
            return 200, json.dumps(tree).encode(), {}
        if is_api:
            info = {"id": repo, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
            return 200, json.dumps(info).encode(), {}
        path = "/".join(rest[2:])
        if path not in files:
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        if with_body:
            self.server.downloads.append(path)
        tag = {"ETag": f'"{hashlib.sha256(files[path]).hexdigest()}"', "X-Repo-Commit": commit}
        return 200, files[path], tag

    def send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    sane = {"net/a.keras": (DEMO / "sane.keras").read_bytes(), "net/a.keras.batchverify.json": b'{"threshold": 0.7}'}
    server.commits = {"a" * 40: sane, "b" * 40: {**sane, "net/a.keras": (DEMO / "faulty.keras").read_bytes()}}
    server.branch = "a" * 40
    yield server
    server.shutdown()
    server.server_close()


def test_a_run_uses_the_commit_that_a_branch_named_and_fetches_it_once(hub, demo, tmp_path):
    name = "hf://org/faces@main/net/a.keras"
    command = ["--manifest", str(demo / "demo.csv"), "--limit", "20", "--model", name]
    assert main([*command, "--output", str(tmp_path / "scores")]) == 0
    run = json.loads((tmp_path / "scores/_summary.json").read_text())["run"]
    assert run["model"] == f"hf://org/faces@{'a' * 40}/net/a.keras" and run["threshold"] == 0.7
    facts = {"registry": "huggingface", "name": "org/faces", "version": "a" * 40, "revision": "main"}
    assert run["model_version"] == facts
    assert run["model_digest"] == f"sha256:{hashlib.sha256((DEMO / 'sane.keras').read_bytes()).hexdigest()}"

    assert "which the revision main named" in (tmp_path / "scores/_report.html").read_text()

    assert main(["doctor", "--model", name]) == 0
    assert hub.downloads.count("net/a.keras") == 1
    hub.branch = "b" * 40
    assert resolve_model(name)[0] == f"hf://org/faces@{'b' * 40}/net/a.keras"
    assert read_sidecar(run["model"]).settings == {"threshold": 0.7}


def test_a_private_repository_is_read_with_the_user_s_token(hub, monkeypatch):
    hub.token = "hf_secret"
    name = "hf://org/faces/net/a.keras"
    with pytest.raises(PreflightError, match=r"no such repository, or it is private; .* set HF_TOKEN"):
        resolve_model(name)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    image = np.zeros((96, 96, 3), np.uint8)
    assert batchverify.load(name).score(image, image) > 0.99


@pytest.mark.parametrize(
    "name, reason",
    [
        ("hf://org/nobody", "no such repository, or it is private; check the name, and set HF_TOKEN"),
        ("hf://org/faces@gone", "no revision 'gone'"),
        ("hf://org/faces/b.keras", "it holds no 'b.keras'"),
        ("hf://faces", "give models:/NAME@ALIAS"),
    ],
)
def test_what_hugging_face_does_not_have_is_refused_in_one_sentence(hub, demo, tmp_path, capfd, name, reason):
    command = ["--manifest", str(demo / "demo.csv"), "--output", str(tmp_path / "scores")]
    assert main([*command, "--model", name]) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(told) == 1 and f"--model {name}: " in told[0] and reason in told[0]


def test_hugging_face_out_of_reach_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PreflightError, match=r"Hugging Face cannot be asked .* check HF_ENDPOINT") as refusal:
        resolve_model("hf://org/faces")
    assert len(refusal.value.problems) == 1 and os.linesep not in str(refusal.value)
