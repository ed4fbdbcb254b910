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
from tensorflow.core.framework import function_pb2, graph_pb2, variable_pb2
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


def test_a_restore_of_a_file_that_the_model_names_is_never_run(whole, tmp_path):
    def plant(meta_graph: Any) -> None:
        function = saver_function(meta_graph, "restore")
        function.node_def.add(name="elsewhere", op="Const")
        next(node for node in function.node_def if node.op == "RestoreV2").input[0] = "elsewhere:output:0"

    paths = whole, with_change(whole, tmp_path / "m", plant)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    scores = [model.compare(images.reshape(2, -1), images[::-1].reshape(2, -1)) for model in map(load, paths)]
    np.testing.assert_array_equal(*scores)


def write_in_tensorflow_1(folder: Path, with_resources: bool, change: Callable = lambda _: None) -> str:
    """Writes a network with one weight as TensorFlow 1 did, with a saver and without objects."""
    tf1, graph = tf.compat.v1, tf.Graph()
    with graph.as_default(), tf1.Session(graph=graph) as session:
        left, right = (tf1.placeholder(tf.float32, (None, 8, 8, 3), side) for side in ("left", "right"))
        weight = tf1.get_variable("weight", initializer=0.25, use_resource=with_resources)
        tf.exp(-weight * tf.reduce_mean(tf.abs(left - right), axis=[1, 2, 3]) / 255, name="score")
        session.run(tf1.global_variables_initializer())
        builder = tf1.saved_model.Builder(str(folder))
        tensors = {name: tf1.saved_model.build_tensor_info(tensor) for name, tensor in (("left", left), ("right", right))}
        scores = {"score": tf1.saved_model.build_tensor_info(graph.get_tensor_by_name("score:0"))}
        signature = tf1.saved_model.build_signature_def(tensors, scores, "predict")
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    assert not saved.meta_graphs[0].HasField("object_graph_def") and saved.meta_graphs[0].saver_def.restore_op_name
    change(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())
    return str(folder)


@pytest.mark.parametrize("with_resources", [False, True], ids=["references", "resources"])
def test_a_saved_model_of_tensorflow_1_is_loaded_with_its_weights(with_resources, tmp_path):
    model = load(write_in_tensorflow_1(tmp_path / "m", with_resources))
    white, black = (np.full((1, 192), value, np.uint8) for value in (255, 0))
    assert model.compare(white, black) == pytest.approx(np.exp(-0.25)) and model.compare(white, white) == 1


def save_no_more(meta_graph: Any) -> None:
    """Removes the operations of the saver that would be told by their names."""
    graph, saver = meta_graph.graph_def, meta_graph.saver_def
    kept = [node for node in graph.node if node.op not in ("MergeV2Checkpoints", "SaveV2", "ShardedFilename")]
    names = {node.name for node in kept}
    kept = [node for node in kept if names.issuperset(tensor.removeprefix("^").split(":")[0] for tensor in node.input)]
    kept = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)
    saver.save_tensor_name = saver.filename_tensor_name


def saver_that_writes(target: Path) -> tuple[graph_pb2.GraphDef, str]:
    """A graph that calls a function which writes a file, and the name of the call."""

    @tf.function(input_signature=[])
    def save() -> Any:
        tf.raw_ops.SaveV2(prefix=str(target), tensor_names=["x"], shape_and_slices=[""], tensors=[tf.constant(b"planted")])
        return tf.constant([1.0])

    graph = tf.Graph()
    with graph.as_default():
        save.get_concrete_function()()
    call = next(node for node in graph.as_graph_def().node if node.op == "StatefulPartitionedCall")
    return graph.as_graph_def(), call.name


def with_saver_in_start_up(meta_graph: Any, call: str) -> None:
    """Has the loader initialise a local variable by the saver's node."""
    variable = variable_pb2.VariableDef(variable_name="weight:0", initializer_name=call, snapshot_name="score:0")
    meta_graph.collection_def["local_variables"].bytes_list.value.append(variable.SerializeToString())


def test_a_saver_of_tensorflow_1_that_writes_elsewhere_is_never_run(tmp_path):
    def plant(meta_graph: Any) -> None:
        save_no_more(meta_graph)
        graph, call = saver_that_writes(tmp_path / "written")
        meta_graph.graph_def.MergeFrom(graph)
        meta_graph.saver_def.save_tensor_name = f"{call}:0"
        with_saver_in_start_up(meta_graph, call)

    path = write_in_tensorflow_1(tmp_path / "m", True, change=plant)
    with pytest.raises(PreflightError):
        load(path)
    assert not [*tmp_path.glob("written*")]


def default_elsewhere(meta_graph: Any, other: str) -> None:
    """Has the network read its weight from the saver's file itself, whose name is another one where nobody gives one."""
    graph, saver = meta_graph.graph_def, meta_graph.saver_def
    nodes = {node.name: node for node in graph.node}
    default = nodes[saver.filename_tensor_name.split(":")[0]].input[0]
    nodes[default].attr["value"].tensor.string_val[:] = [other.encode()]
    restored = next(node.name for node in graph.node if node.op == "RestoreV2")
    reads = {node.name for node in graph.node if node.op == "ReadVariableOp"}
    for node in graph.node:
        node.input[:] = [restored if tensor.split(":")[0] in reads else tensor for tensor in node.input]


def asset_elsewhere(meta_graph: Any, other: str) -> None:
    """Has the loader take the path of an asset for the name of the saver's file, at start-up."""
    asset = meta_graph.asset_file_def.add(filename=os.path.join("..", "..", os.path.basename(other)))
    asset.tensor_info.name = meta_graph.saver_def.filename_tensor_name
    meta_graph.collection_def["saved_model_main_op"].node_list.value.append(meta_graph.saver_def.restore_op_name)


@pytest.mark.parametrize("name_file", [default_elsewhere, asset_elsewhere])
def test_a_saver_of_tensorflow_1_reads_no_file_but_its_own(name_file, tmp_path):
    """The score would say what another checkpoint holds."""
    secret = tmp_path / "secret"
    tf.raw_ops.SaveV2(prefix=str(secret), tensor_names=["weight"], shape_and_slices=[""], tensors=[tf.constant(4.0)])

    def plant(meta_graph: Any) -> None:
        save_no_more(meta_graph)
        name_file(meta_graph, str(secret))

    path = write_in_tensorflow_1(tmp_path / "m", True, change=plant)
    try:
        model = load(path)
    except PreflightError as refusal:
        assert "placeholder" in str(refusal).lower()  # The saver's file has no name.
        return
    white, black = (np.full((1, 192), value, np.uint8) for value in (255, 0))
    assert model.compare(white, black) == pytest.approx(np.exp(-0.25))


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
        "import batchverify.model.time_limit as limit, batchverify.cli.main as program\n"
        "limit._STEP_LIMIT_S = 6.0\n"
        "program.run_as_process()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *endless_run], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2 and "on a dozen generated images for 0.1 minutes without an end" in done.stderr


@pytest.mark.processes
def test_a_signal_stops_a_run_whose_model_computes_without_end(endless_run):
    process = start_program(endless_run, os.environ)
    time.sleep(20)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
