"""ONNX files: each scores what the Keras network of the same weights scores, or is refused in a sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper

import batchverify
from batchverify.config import ModelConfig
from batchverify.errors import OpenQuestionError, PreflightError
from batchverify.model.diagnosis import examine
from batchverify.model.load import load_model

HEIGHT, WIDTH, VALUES = 12, 10, 5


@pytest.fixture(scope="module")
def encoder() -> keras.Model:
    """An encoder whose weights the ONNX files have."""
    keras.utils.set_random_seed(7)
    image = keras.Input((HEIGHT, WIDTH, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(image)
    return keras.Model(image, keras.layers.Dense(VALUES)(keras.layers.GlobalAveragePooling2D()(x)))


def images(count=6) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, HEIGHT, WIDTH, 3)).astype(np.float32)


def tower(image: str, name: str) -> list[onnx.NodeProto]:
    """The nodes of the encoder, for images (n, 3, height, width)."""
    return [
        helper.make_node("Conv", [image, "kernel", "bias"], [f"{name}_conv"], strides=[2, 2]),
        helper.make_node("Relu", [f"{name}_conv"], [f"{name}_relu"]),
        helper.make_node("GlobalAveragePool", [f"{name}_relu"], [f"{name}_pool"]),
        helper.make_node("Flatten", [f"{name}_pool"], [f"{name}_flat"]),
        helper.make_node("Gemm", [f"{name}_flat", "weights", "offset"], [name]),
    ]


def tensor(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def to_onnx(encoder, nodes, inputs, outputs) -> onnx.ModelProto:
    kernel, bias, weights, offset = encoder.get_weights()
    values = {"kernel": kernel.transpose(3, 2, 0, 1), "bias": bias, "weights": weights, "offset": offset}
    constants = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "network", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def encoder_file(encoder, path, batch="N", size=(HEIGHT, WIDTH)) -> str:
    model = to_onnx(
        encoder, tower("image", "embedding"), [tensor("image", [batch, 3, *size])], [tensor("embedding", [batch, VALUES])]
    )
    onnx.save(model, path)
    return str(path)


def channels_last_file(encoder, path, kind=TensorProto.FLOAT) -> str:
    first = [helper.make_node("Cast", ["image"], ["number"], to=TensorProto.FLOAT),
             helper.make_node("Transpose", ["number"], ["planes"], perm=[0, 3, 1, 2])]  # fmt: skip
    shape = ["N", HEIGHT, WIDTH, 3]
    nodes = [*first, *tower("planes", "embedding")]
    onnx.save(to_onnx(encoder, nodes, [tensor("image", shape, kind)], [tensor("embedding", ["N", VALUES])]), path)
    return str(path)


def siamese_file(encoder, path) -> str:
    head = [
        helper.make_node("Sub", ["a", "b"], ["difference"]),
        helper.make_node("ReduceL2", ["difference"], ["distance"], axes=[1], keepdims=1),
    ]
    inputs = [tensor(name, ["N", 3, HEIGHT, WIDTH]) for name in ("left", "right")]
    nodes = [*tower("left", "a"), *tower("right", "b"), *head]
    onnx.save(to_onnx(encoder, nodes, inputs, [tensor("distance", ["N", 1])]), path)
    return str(path)


def cosine_scores(encoder, left, right) -> np.ndarray:
    a, b = (np.asarray(encoder(side)) for side in (left, right))
    return (1 + (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)) / 2


def load(path, **options):
    return load_model(ModelConfig(model=path, pixels=options.pop("pixels", "0..1"), **options))


def scores(model, left, right) -> np.ndarray:
    return model.compare(model.encode(left), model.encode(right))


MAKERS = {
    "channels_first": lambda encoder, path: encoder_file(encoder, path),
    "one_at_a_time": lambda encoder, path: encoder_file(encoder, path, batch=1),
    "channels_last": lambda encoder, path: channels_last_file(encoder, path),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("pixels", "scale"), [("0..1", lambda x: x / 255), ("-1..1", lambda x: x / 127.5 - 1)])
def test_an_encoder_scores_as_keras_does_with_its_weights(name, pixels, scale, encoder, tmp_path):
    model = load(MAKERS[name](encoder, tmp_path / "encoder.onnx"), compare="cosine", pixels=pixels)
    left, right = images(), images()[::-1]
    expected = cosine_scores(encoder, scale(left), scale(right))
    np.testing.assert_allclose(scores(model, left, right), expected, atol=1e-5)
    assert (model.facts.encodings_per_image, model.facts.encodings_per_pair) == (1, 0)


def test_bytes_need_no_scale(encoder, tmp_path):
    path = channels_last_file(encoder, tmp_path / "encoder.onnx", TensorProto.UINT8)
    model = load_model(ModelConfig(model=path, compare="cosine"))
    expected = cosine_scores(encoder, images(), images()[::-1])
    np.testing.assert_allclose(scores(model, images(), images()[::-1]), expected, atol=1e-5)


def test_two_images_are_scored_by_the_whole_network(encoder, tmp_path):
    model = load(siamese_file(encoder, tmp_path / "pairs.onnx"), output_is="distance")
    left, right = images(), images()[::-1]
    distance = np.linalg.norm(np.asarray(encoder(left / 255)) - np.asarray(encoder(right / 255)), axis=1)
    np.testing.assert_allclose(scores(model, left, right), 1 / (1 + distance), atol=1e-5)
    assert model.facts.structure.startswith("whole: an ONNX file")


def test_a_size_that_is_open_is_asked_with_everything_else(encoder, tmp_path):
    path = encoder_file(encoder, tmp_path / "encoder.onnx", size=("H", "W"))
    with pytest.raises(OpenQuestionError) as refused:
        load_model(ModelConfig(model=path))
    assert [question.option[0] for question in refused.value.questions] == ["--image-size", "--pixels", "--compare"]
    model = load(path, compare="cosine", image_size=(HEIGHT, WIDTH))
    np.testing.assert_allclose(scores(model, images(), images()), 1, atol=1e-6)


@pytest.mark.slow
def test_a_run_scores_with_it_and_says_what_computed(encoder, pictures, tmp_path, read_scores):
    names = [str(pictures / f"p{number}.png") for number in range(10)]
    pd.DataFrame({"left": names, "right": names[::-1]}).to_csv(tmp_path / "pairs.csv", index=False)
    path = encoder_file(encoder, tmp_path / "encoder.onnx")
    config = batchverify.VerificationConfig(
        manifests=(str(tmp_path / "pairs.csv"),), output=str(tmp_path / "out"), model=path, pixels="0..1", compare="cosine",
        embeddings=str(tmp_path / "store"),
    )  # fmt: skip
    result = batchverify.run(config)
    rows = read_scores(tmp_path / "out")
    np.testing.assert_allclose(rows["score"], rows["score"][::-1], atol=1e-6)
    np.testing.assert_allclose(rows["identity_left"], 1, atol=1e-5)
    assert result.summary["run"]["versions"]["onnxruntime"] and result.summary["run"]["certificate"] is None
    assert "onnxruntime computes the network, on the processor." in result.summary["run"]["model_notes"]


def test_the_certificate_is_not_known(encoder, tmp_path):
    path = encoder_file(encoder, tmp_path / "encoder.onnx")
    found = examine(ModelConfig(model=path, compare="cosine", pixels="0..1")).findings
    assert found["certificate"]["holds"].startswith("unknown")


def test_weights_in_the_file_beside_it_are_read_and_count_for_its_digest(encoder, tmp_path):
    path = encoder_file(encoder, tmp_path / "encoder.onnx")
    whole = load(path, compare="cosine")
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="encoder.onnx.data", size_threshold=0)
    parted = load(path, compare="cosine")
    np.testing.assert_array_equal(whole.encode(images()), parted.encode(images()))
    weights = Path(f"{path}.data")
    weights.write_bytes((2 * np.frombuffer(weights.read_bytes(), np.float32)).tobytes())
    assert load(path, compare="cosine").facts.digest != parted.facts.digest


@pytest.mark.parametrize("location", ["other.bin", "../other.bin", "/etc/passwd", "other/encoder.onnx.data"])
def test_weights_elsewhere_are_not_read(location, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = encoder_file(encoder, tmp_path / "encoder.onnx")
    (tmp_path / "other").mkdir()
    for place in ("other.bin", "other/encoder.onnx.data"):
        (tmp_path / place).write_bytes(bytes(10_000))
    model = onnx.load(path)
    point_elsewhere(model.graph.initializer[0], location)
    onnx.save(model, path)
    with pytest.raises(PreflightError, match=r"its weights lie in another file|cannot load"):
        load(path, compare="cosine")


def test_an_address_in_memory_is_refused(encoder, tmp_path):
    path = encoder_file(encoder, tmp_path / "encoder.onnx")
    model = onnx.load(path)
    point_elsewhere(model.graph.initializer[0], "*/_ORT_MEM_ADDR_/*", offset="4096")
    onnx.save(model, path)
    with pytest.raises(PreflightError, match="names an address in memory"):
        load(path, compare="cosine")


def point_elsewhere(constant, location, offset="0"):
    """Has a constant take its values from another place."""
    length = str(len(constant.raw_data))
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        constant.external_data.add(key=key, value=value)


REFUSED: dict[str, tuple[Callable[[bytes], bytes], dict[str, Any], str]] = {
    "cut": (lambda data: data[: len(data) // 2], {}, "copy it again, whole"),
    "lambda": (lambda data: data, {"lambdas": ("l1",)}, "--lambda is for .keras and .h5 files"),
    "openvino": (lambda data: data, {"runtime": "openvino"}, "--runtime openvino is not for --model"),
    "float16": (lambda data: data, {"precision": "float16"}, "--precision float16 is not for --model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name, encoder, tmp_path, capfd):
    change, options, expected = REFUSED[name]
    path = tmp_path / "encoder.onnx"
    encoder_file(encoder, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(PreflightError, match=expected):
        load(str(path), compare="cosine", **options)
    assert "EP Error" not in capfd.readouterr().out


def test_damaged_files_are_refused_or_run(encoder, tmp_path, capfd):
    path, rng = tmp_path / "encoder.onnx", np.random.default_rng(5)
    encoder_file(encoder, path)
    whole, outcomes = path.read_bytes(), []
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(1, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            load(str(path), compare="cosine")
            outcomes.append("run")
        except PreflightError as refused:
            outcomes.append("refused")
            assert len(refused.problems) == 1 and "Traceback" not in str(refused)
    assert {"run", "refused"} == set(outcomes)
    assert "EP Error" not in capfd.readouterr().out


@pytest.mark.processes
def test_nothing_is_reported_to_the_makers_of_onnxruntime(encoder, tmp_path):
    """It notes the session that it reports from in the temporary folder, as it is imported."""
    path = encoder_file(encoder, tmp_path / "encoder.onnx")
    program = "import sys, onnxruntime; from batchverify.cli.main import main; sys.exit(main(sys.argv[1:]))"
    options = ["doctor", "--model", path, "--compare", "cosine", "--pixels", "0..1"]
    left = {}
    for name, start in (("ours", ["-m", "batchverify"]), ("theirs", ["-c", program])):
        (tmp_path / name).mkdir()
        environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
        environment |= {"TMPDIR": str(tmp_path / name)}
        done = subprocess.run([sys.executable, *start, *options], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), done.stderr
        left[name] = [found.name for found in (tmp_path / name).iterdir()]
    assert left["ours"] == []
    assert left["theirs"] in ([], [".ses"])  # Versions before 1.32 report nothing.


@pytest.mark.processes
def test_without_onnxruntime_the_remedy_is_named(encoder, tmp_path):
    path = encoder_file(encoder, tmp_path / "encoder.onnx")
    hide = "import sys; sys.modules['onnxruntime'] = None; import importlib.util as u; f = u.find_spec; "
    hide += "u.find_spec = lambda name, *a: None if name == 'onnxruntime' else f(name, *a); "
    program = f"{hide}from batchverify.cli.main import main; sys.exit(main({json.dumps(['doctor', '--model', path])}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 2 and "pip install 'batchverify[onnx]'" in done.stderr
