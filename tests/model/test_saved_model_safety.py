"""SavedModels of people whom nobody trusts: nothing in them may touch a file, and what Keras exports is loaded."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.core.framework import function_pb2, graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.load import load_model
from batchverify.model.local_copy import digest_model
from tests.support.exchanged_file import exchanged_once_copied
from tests.support.processes import start_program

FORBIDDEN = (
    # They read or write files, or print to one.
    "ReadFile", "WriteFile", "MatchingFiles", "WholeFileReaderV2", "PrintV2", "ImmutableConst", "LoadAndRemapMatrix",
    "GenerateVocabRemapping", "InitializeTableFromTextFileV2", "EncodeProto", "DecodeProtoV2", "SaveSlices",
    "RestoreSlice", "FileSystemSetConfiguration", "DebugIdentity", "DebugIdentityV2", "DebugIdentityV3",
    "DebugNumericSummary", "DebugNumericSummaryV2", "DebugNanCount", "CopyHost", "WriteGraphSummary", "CacheDataset",
    "CacheDatasetV2", "SnapshotDataset", "SnapshotDatasetV2", "SaveDataset", "LoadDataset", "RegisterDataset",
    "RegisterDatasetV2", "TextLineDataset",
    # They run a graph, a function or code that is elsewhere.
    "DatasetFromGraph", "PyFunc", "PyFuncStateless", "EagerPyFunc", "RemoteCall", "XlaCustomCall", "XlaCustomCallV2",
    "XlaCallModule", "XlaLaunch", "TPUPartitionedCall", "SymbolicGradient", "BatchFunction", "MapDefun",
    "DataServiceDatasetV4", "Send", "Recv",
    # They are a saver's, and stand here in no saver's function.
    "RestoreV2", "SaveV2", "MergeV2Checkpoints", "ShardedFilename",
    # Nobody registered it.
    "NoSuchOperation",
)  # fmt: skip


def a_network(library: Any) -> Any:
    pixels = library.Input((8, 8, 3))
    x = library.layers.Conv2D(4, 3, activation="swish")(pixels)
    encoder = library.Model(pixels, library.layers.Dense(4)(library.layers.Flatten()(x)))
    left, right = library.Input((8, 8, 3)), library.Input((8, 8, 3))
    distance = library.layers.Subtract()([encoder(left), encoder(right)])
    return library.Model([left, right], library.layers.Dense(1, activation="sigmoid")(distance))


def export(model: Any, folder: Path) -> str:
    model.export(str(folder), verbose=False) if isinstance(model, keras.Model) else model.save(str(folder))
    return str(folder)


@pytest.fixture(scope="module", params=[keras, tf_keras], ids=["keras3", "keras2"])
def whole(request: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    keras.utils.set_random_seed(1)
    return export(a_network(request.param), tmp_path_factory.mktemp("saved") / "model")


def with_change(whole: str, folder: Path, change: Callable[[Any], None]) -> str:
    """Copies a SavedModel and changes its first meta graph."""
    shutil.copytree(whole, folder)
    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())
    return str(folder)


def load(path: str) -> Any:
    return load_model(ModelConfig(model=path, pixels="0..255"))


def refused_for(operation: str, path: str) -> None:
    with pytest.raises(PreflightError, match=rf"holds the operation {operation}, .*--trust-model-code") as refusal:
        load(path)
    assert len(refusal.value.problems) == 1


def graph_with(operation: str) -> graph_pb2.GraphDef:
    return graph_pb2.GraphDef(node=[{"name": "planted", "op": operation}])


def function_with(operation: str) -> function_pb2.FunctionDef:
    return function_pb2.FunctionDef(signature={"name": "planted"}, node_def=[{"name": "planted", "op": operation}])


def network_function(meta_graph: Any) -> Any:
    """A function of the network and none of a saver; the order of the functions in a file differs from export to export."""
    return next(f for f in meta_graph.graph_def.library.function if "traced_" not in f.signature.name)


def test_what_keras_exports_is_loaded(whole):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    model = load(whole)
    kept = model.encode(images)
    assert np.all(np.isfinite(model.compare(kept, kept[::-1])))


def test_a_saved_model_that_is_exchanged_after_its_check_is_not_loaded(whole, tmp_path):
    path = Path(shutil.copytree(whole, tmp_path / "model"))
    planted = with_change(whole, tmp_path / "planted", lambda meta: meta.graph_def.node.add(name="planted", op="ReadFile"))
    with exchanged_once_copied(path / "saved_model.pb", Path(planted) / "saved_model.pb", "model/saved_model.pb"):
        assert load(str(path)).facts.digest == digest_model(whole)
    refused_for("ReadFile", str(path))


def test_links_in_a_saved_model_are_followed_and_those_without_end_refused(whole, tmp_path):
    for name in os.listdir(whole):
        os.symlink(os.path.join(whole, name), tmp_path / name)
    assert load(str(tmp_path)).facts.digest == digest_model(whole)
    os.symlink(".", tmp_path / "loop")
    with pytest.raises(PreflightError, match="is no file; copy the folder again"):
        load(str(tmp_path))


@pytest.mark.parametrize("operation", FORBIDDEN)
@pytest.mark.parametrize("place", ["graph", "function", "nested"])
def test_an_operation_that_nobody_allowed_is_refused_by_name(operation, place, whole, tmp_path):
    def plant(meta_graph: Any) -> None:
        graph = meta_graph.graph_def
        if place == "nested":  # a function that nothing calls yet
            graph.library.function.append(function_with(operation))
        else:
            nodes = graph.node if place == "graph" else network_function(meta_graph).node_def
            nodes.add(name="planted", op=operation)

    refused_for(operation, with_change(whole, tmp_path / "m", plant))


HIDDEN = {
    "a graph": graph_with("WriteFile"),
    "a function": function_with("WriteFile"),
    "a library of functions": function_pb2.FunctionDefLibrary(function=[function_with("WriteFile")]),
    "a graph's function": graph_pb2.GraphDef(library=function_pb2.FunctionDefLibrary(function=[function_with("WriteFile")])),
    "a meta graph": meta_graph_pb2.MetaGraphDef(graph_def=graph_with("WriteFile")),
    "a SavedModel": saved_model_pb2.SavedModel(meta_graphs=[{"graph_def": graph_with("WriteFile")}]),
}


def in_string(node: Any, data: bytes) -> None:
    node.attr["value"].tensor.string_val.append(data)


def in_content(node: Any, data: bytes) -> None:
    node.attr["value"].tensor.tensor_content = data


def in_attribute(node: Any, data: bytes) -> None:
    node.attr["value"].s = data


def in_list(node: Any, data: bytes) -> None:
    node.attr["value"].list.s.append(data)


@pytest.mark.parametrize("hide", [in_string, in_content, in_attribute, in_list])
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_graph_that_is_hidden_in_a_string_is_refused(kind, hide, whole, tmp_path):
    def plant(meta_graph: Any) -> None:
        hide(network_function(meta_graph).node_def.add(name="planted", op="Const"), HIDDEN[kind].SerializeToString())

    refused_for("WriteFile", with_change(whole, tmp_path / "m", plant))


def test_a_graph_that_is_hidden_in_a_hidden_graph_is_refused(whole, tmp_path):
    outer = graph_pb2.GraphDef(node=[{"name": "c", "op": "Const"}])
    in_string(outer.node[0], graph_with("ReadFile").SerializeToString())

    def plant(meta_graph: Any) -> None:
        in_string(meta_graph.graph_def.node.add(name="planted", op="Const"), outer.SerializeToString())

    refused_for("ReadFile", with_change(whole, tmp_path / "m", plant))


def saver_function(meta_graph: Any, kind: str) -> Any:
    return next(f for f in meta_graph.graph_def.library.function if f"traced_{kind}" in f.signature.name)


@pytest.mark.parametrize("kind", ["save", "restore"])
@pytest.mark.parametrize("way", ["method", "signature", "node", "start-up"])
def test_a_savers_function_that_something_else_calls_is_refused(way, kind, whole, tmp_path):
    def plant(meta_graph: Any) -> None:
        function, saver = saver_function(meta_graph, kind).signature.name, meta_graph.saver_def
        tensor = saver.save_tensor_name if kind == "save" else saver.restore_op_name
        if way == "method":
            meta_graph.object_graph_def.nodes.add().function.concrete_functions.append(function)
        elif way == "signature":
            meta_graph.signature_def["planted"].outputs["y"].name = tensor
        elif way == "node":
            meta_graph.graph_def.node.add(name="planted", op="Identity").input.append(tensor)
        else:
            meta_graph.collection_def["saved_model_main_op"].node_list.value.append(tensor)

    path = with_change(whole, tmp_path / "m", plant)
    with pytest.raises(PreflightError, match=r"SaveV2|ShardedFilename|MergeV2|RestoreV2"):
        load(path)


def test_a_restore_of_a_file_that_the_model_names_is_refused(whole, tmp_path):
    def plant(meta_graph: Any) -> None:
        function = saver_function(meta_graph, "restore")
        function.node_def.add(name="elsewhere", op="Const")
        next(node for node in function.node_def if node.op == "RestoreV2").input[0] = "elsewhere:output:0"

    refused_for("RestoreV2", with_change(whole, tmp_path / "m", plant))


def test_a_function_with_the_name_of_a_forbidden_operation_is_refused(whole, tmp_path):
    def plant(meta_graph: Any) -> None:
        function = function_with("NoOp")
        function.signature.name = "WriteFile"
        meta_graph.graph_def.library.function.append(function)

    refused_for("WriteFile", with_change(whole, tmp_path / "m", plant))


def test_a_graph_in_a_string_that_reads_a_file_is_never_run(tmp_path):
    """The attack itself: the score would say what the first byte of a secret is."""
    secret = tmp_path / "secret"
    secret.write_text("s")
    hidden = tf.Graph()
    with hidden.as_default():
        tf.data.Dataset.from_tensors(tf.io.read_file(str(secret)))
    data = hidden.as_graph_def().SerializeToString()

    class Attack(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3)), tf.TensorSpec((None, 8, 8, 3))])
        def __call__(self, left: Any, right: Any) -> Any:
            byte = tf.io.decode_raw(
                tf.raw_ops.DatasetToSingleElement(
                    dataset=tf.raw_ops.DatasetFromGraph(graph_def=data), output_types=[tf.string], output_shapes=[[]]
                )[0],
                tf.uint8,
            )[0]
            return tf.reduce_mean(left * right, axis=[1, 2, 3]) * 0 + tf.cast(byte, tf.float32) / 256

    attack = Attack()
    tf.saved_model.save(attack, str(tmp_path / "m"), signatures=attack.__call__)
    with pytest.raises(PreflightError, match=r"Dataset.*--trust-model-code"):
        load(str(tmp_path / "m"))


def a_model_without_end(folder: Path) -> str:
    model = a_network(keras)

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3)), tf.TensorSpec((None, 8, 8, 3))])
    def serve(left: Any, right: Any) -> Any:
        endless = tf.while_loop(lambda i: i >= 0.0, lambda i: [i + 1.0], [tf.reduce_sum(left * left)])[0]
        return model([left, right]) + endless

    module = tf.Module()
    module.model, module.serve = model, serve
    tf.saved_model.save(module, str(folder), signatures=serve)
    return str(folder)


@pytest.fixture
def endless_run(tmp_path):
    """The arguments of a run with a model that computes without end."""
    (tmp_path / "p.csv").write_text("left,right\na,b\n")
    model = a_model_without_end(tmp_path / "model")
    places = ["--manifest", str(tmp_path / "p.csv"), "--output", str(tmp_path / "out")]
    return [*places, "--model", model, "--pixels", "0..1"]


@pytest.mark.processes
def test_a_model_that_computes_without_end_is_refused(endless_run):
    program = (
        "import batchverify.model.load as load, batchverify.cli.main as program\n"
        "load._TRIAL_LIMIT_S = 3.0\n"
        "program.run_as_process()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *endless_run], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2 and "on a dozen generated images for 0.05 minutes without an end" in done.stderr


@pytest.mark.processes
def test_a_signal_stops_a_run_whose_model_computes_without_end(endless_run):
    process = start_program(endless_run, os.environ)
    time.sleep(20)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
