"""Model files made to break a loader are loaded or refused in a sentence; they run, write and crash nothing."""

import base64
import contextlib
import copy
import io
import json
import marshal
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.load import load_model

pytestmark = [pytest.mark.processes, pytest.mark.slow]
MOST_SECONDS = 20  # of processor time, for one file
MOST_GIGABYTES = 8  # of memory that the loading process may ask for, TensorFlow's own included
ROUNDS = int(os.environ.get("BATCHVERIFY_FUZZ_MODELS", "1"))  # how often the random damage is done, each time with new seeds
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


@pytest.fixture(scope="module")
def entries(small_model) -> dict[str, bytes]:
    """The files in a good archive."""
    with zipfile.ZipFile(small_model) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def hdf5(small_model, tmp_path_factory) -> bytes:
    """The same model as Keras writes it into one HDF5 file."""
    path = tmp_path_factory.mktemp("hdf5") / "small.h5"
    keras.models.load_model(small_model).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def found(entries, hdf5, tmp_path_factory) -> dict[str, dict[str, str]]:
    """By group and name, what came of loading every file: `loaded`, what it was refused with, or what went wrong.

    All are loaded in one process, whose start takes longer than most files, and which a file may crash. What a file would
    plant is named `planted`, in the folder that this process works in.
    """
    folder = tmp_path_factory.mktemp("hostile")
    files, work, temporary = (folder / name for name in ("files", "work", "temporary"))
    for one in (files, work, temporary):
        one.mkdir()
    for group, make in GROUPS.items():
        for name, data in make(entries, hdf5).items():
            (files / f"{group}: {name}").write_bytes(data)
    before = _listing(folder.parent, but=folder / "report.jsonl")
    done = subprocess.run(
        [sys.executable, __file__, str(files), str(folder / "report.jsonl")],
        cwd=work, env=os.environ | {"TMPDIR": str(temporary)}, timeout=1800, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = (folder / "report.jsonl").read_text(encoding="utf-8").splitlines()
    outcomes = {name: words for name, words, _ in map(json.loads, lines)}
    assert done.returncode == 0, f"crashed with {done.returncode} at {list(outcomes)[-1:]}: {done.stderr[-600:]}"
    assert _listing(folder.parent, but=folder / "report.jsonl") == before
    groups: dict[str, dict[str, str]] = {group: {} for group in GROUPS}
    for name, words in outcomes.items():
        group, _, name = name.partition(": ")
        groups[group][name] = words
    return groups


def _listing(folder: Path, but: Path) -> dict[str, tuple[int, int]]:
    """Returns the sizes and times of all files below a folder."""
    states = {str(path): path.lstat() for path in folder.rglob("*") if path.is_file() and path != but}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}


@pytest.mark.parametrize(
    "group", ["members", "archives", "long", "mutated", "sizes", "planted", "weights", "attributes", "cut", "damaged"]
)
def test_each_file_is_loaded_or_refused_in_one_sentence(group, found):
    assert found[group]
    assert {name: words for name, words in found[group].items() if not words.startswith(("loaded", "refused: --model"))} == {}


def test_members_that_point_elsewhere_are_refused(found):
    for name in ("0", "1", "2", "3", "4", "5", "6", "kind-120000", "weights-as-a-link"):
        assert "points outside" in found["members"][f"{name}.keras"], name
    assert not os.path.exists("/tmp/evil-batchverify")


def test_odd_but_whole_archives_are_loaded(found):
    for name in ("no-metadata", "packing-12", "packing-14", "2000-members", "commented", "prefixed-pk"):
        assert found["archives"][f"{name}.keras"] == "loaded", name
    assert found["sizes"]["pooled-16.keras"] == found["mutated"]["whole.keras"] == found["damaged"]["whole.h5"] == "loaded"


def test_weights_that_lie_elsewhere_or_are_no_numbers_are_refused(found):
    for name in ("an-external-link", "a-soft-link", "external-storage", "a-virtual-dataset", "a-huge-dataset", "no-numbers"):
        assert all(found["weights"][f"{name}{suffix}"].startswith("refused") for suffix in (".keras", ".h5")), name


def test_bombs_are_refused_as_bombs(found):
    assert "bomb" in found["archives"]["bomb.keras"] and "bomb" in found["weights"]["a-huge-dataset.h5"]


def test_more_weights_than_are_stored_are_refused_as_that(found):
    for name in ("units-1000000000", "behind-a-stateful-layer", "beside-claims"):
        assert "its config asks for" in found["sizes"][f"{name}.keras"], name


def test_what_is_truncated_is_refused(found):
    assert {name for name, words in found["cut"].items() if words == "loaded"} == set()


def archive(entries: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip archive."""
    return archive_of([(zipfile.ZipInfo(name), data) for name, data in entries.items()], packing)


def archive_of(members: list[tuple[zipfile.ZipInfo, bytes]], packing: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members with one name, which is the point
        for info, data in members:
            file.writestr(info, data, compress_type=packing)
    return buffer.getvalue()


def with_config(entries: dict[str, bytes], config, packing: int = zipfile.ZIP_STORED) -> bytes:
    """Returns an archive with another config, an object or its JSON."""
    text = config if isinstance(config, (str, bytes)) else json.dumps(config)
    return archive(entries | {CONFIG: text if isinstance(text, bytes) else text.encode()}, packing)


def with_weights(entries: dict[str, bytes], change) -> bytes:
    """Returns an archive whose weights have been changed, by a function of the open HDF5 file."""
    return archive(entries | {WEIGHTS: changed(entries[WEIGHTS], change)})


def changed(hdf5: bytes, change) -> bytes:
    buffer = io.BytesIO(hdf5)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


# Archives


def members_elsewhere(entries, hdf5) -> dict[str, bytes]:
    """Archives with members that point outside, or that are no plain files."""
    names = ["../evil", "/tmp/evil-batchverify", "../../evil", "a/../../evil", "..\\evil", "C:\\evil", "//evil", ".", "/",
             "./..", "evil\n../x", "\x1b[31m../evil", "../" * 40 + "evil", "x/" * 200 + "../" * 250 + "evil"]  # fmt: skip
    models = {f"{number}.keras": archive(entries | {name: b"x"}) for number, name in enumerate(names)}
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR):
        info = zipfile.ZipInfo("assets/member")
        info.external_attr = (kind | 0o777) << 16
        models[f"kind-{kind:o}.keras"] = archive_of([*_members(entries), (info, b"/etc/passwd")])
    as_link = zipfile.ZipInfo(WEIGHTS)
    as_link.external_attr = (stat.S_IFLNK | 0o777) << 16
    models["weights-as-a-link.keras"] = archive_of([*_members({CONFIG: entries[CONFIG]}), (as_link, b"/etc/passwd")])
    return models


def _members(entries: dict[str, bytes]) -> list[tuple[zipfile.ZipInfo, bytes]]:
    return [(zipfile.ZipInfo(name), data) for name, data in entries.items()]


def odd_archives(entries, hdf5) -> dict[str, bytes]:
    """Archives that say two things, or nothing, or what is not so."""
    whole = archive(entries)
    weights = {name: data for name, data in entries.items() if name != WEIGHTS}
    twice = [*_members(entries), (zipfile.ZipInfo(CONFIG), b'{"class_name": "Lambda", "config": {}}')]
    models = {
        "two-configs.keras": archive_of(twice),
        "two-configs-the-other-way.keras": archive_of([(zipfile.ZipInfo(CONFIG), b"{}"), *_members(entries)]),
        "two-weights.keras": archive_of([*_members(entries), (zipfile.ZipInfo(WEIGHTS), b"nothing")]),
        "2000-members.keras": archive(entries | {f"assets/{number}": b"" for number in range(2_000)}),
        "name-of-65000.keras": archive(entries | {"n" * 65_000: b""}),
        "bomb.keras": archive(weights | {WEIGHTS: bytes(2**30 + 2**20)}, zipfile.ZIP_DEFLATED),
        "metadata-list.keras": archive(entries | {METADATA: b"[1]"}),
        "metadata-text.keras": archive(entries | {METADATA: b'"x"'}),
        "metadata-version.keras": archive(entries | {METADATA: b'{"keras_version": {"a": "\\n"}}'}),
        "metadata-folder.keras": archive(entries | {METADATA + "/x": b""}),
        "no-metadata.keras": archive({name: data for name, data in entries.items() if name != METADATA}),
        "no-weights.keras": archive(weights),
        "weights-of-text.keras": archive(entries | {WEIGHTS: b"0.1 0.2"}),
        "pickled.keras": archive(weights | {"model.weights.npz": _pickled_weights()}),
        "prefixed.keras": b"#!/bin/sh\ntouch planted\n" + whole,
        "prefixed-pk.keras": b"PK\3\4" + whole,
        "commented.keras": whole[:-2] + b"\xff\xff" + b"c" * 65_535,
        "directory-elsewhere.keras": whole[:-6] + b"\xff\xff\xff\x7f" + whole[-2:],
        "directory-longer.keras": whole[:-10] + b"\xff\xff\xff\x7f" + whole[-6:],
        "no-directory.keras": b"PK\3\4" + bytes(50) + whole[-22:],
    }
    for packing in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = models[f"packing-{packing}.keras"] = archive(entries, packing)
        for name in (CONFIG, WEIGHTS):
            with zipfile.ZipFile(io.BytesIO(packed)) as file:
                place = file.getinfo(name).header_offset + 30 + len(name) + 100
            models[f"packing-{packing}-damaged-{name}.keras"] = packed[:place] + b"?" * 90 + packed[place + 90 :]
    for place, value, name in ((8, 97, "method"), (6, 1, "encrypted"), (4, 255, "version"), (22, 0xFFFF, "size")):
        models[f"{name}.keras"] = _in_every_header(whole, place, value)
    return models


def _pickled_weights() -> bytes:
    class Evil:
        def __reduce__(self):
            return os.system, ("touch planted",)

    buffer = io.BytesIO()
    np.savez(buffer, weights=np.array([Evil()], dtype=object))
    return buffer.getvalue()


def _in_every_header(whole: bytes, place: int, value: int) -> bytes:
    """Returns a zip archive with a 16-bit number put into each local header, and the like place in the directory."""
    data = bytearray(whole)
    for signature, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        start = whole.find(signature)
        while start >= 0:
            data[start + place + shift : start + place + shift + 2] = value.to_bytes(2, "little")
            start = whole.find(signature, start + 4)
    return bytes(data)


# Configs


def long_configs(entries, hdf5) -> dict[str, bytes]:
    """Configs of many megabytes or many levels."""
    config = json.loads(entries[CONFIG])
    text = entries[CONFIG].decode()
    models = {
        "100-megabytes.keras": with_config(entries, config | {"note": "x" * 10**8}, zipfile.ZIP_DEFLATED),
        "10-million-spaces.keras": with_config(entries, " " * 10**7 + text, zipfile.ZIP_DEFLATED),
        "300000-lists.keras": with_config(entries, config | {"note": [[] for _ in range(300_000)]}, zipfile.ZIP_DEFLATED),
        "number-of-a-million-digits.keras": with_config(entries, '{"n": ' + "9" * 10**6 + "," + text[1:], zipfile.ZIP_DEFLATED),
        "not-a-number.keras": with_config(entries, '{"n": NaN, "m": -Infinity,' + text[1:]),
        "half-a-character.keras": with_config(entries, '{"\\ud800": "\\udfff",' + text[1:]),
        "not-utf-8.keras": with_config(entries, b'{"n": "\xff\xfe",' + text[1:].encode()),
        "utf-16.keras": with_config(entries, text.encode("utf-16")),
    }
    for depth in (300, 900, 940, 980, 100_000):
        nested = "[" * depth + "]" * depth
        models[f"lists-{depth}.keras"] = with_config(entries, '{"n": ' + nested + "," + text[1:])
        nested = '{"config":' * depth + "0" + "}" * depth
        models[f"objects-{depth}.keras"] = with_config(entries, '{"n": ' + nested + "," + text[1:])
        if depth < 1000:
            models[f"models-{depth}.keras"] = with_config(entries, _nested_models(config, depth))
    return models


def _nested_models(config: dict, depth: int) -> str:
    """Returns JSON of a model in a model in a model; built as text, as Python could not build it."""
    start = '{"module": "keras", "class_name": "Sequential", "registered_name": null, "config": {"name": "s", "layers": ['
    return start * (depth // 3) + json.dumps(config) + "]}}" * (depth // 3)


def mutated_configs(entries, hdf5) -> dict[str, bytes]:
    """Configs with parts that are replaced, removed, copied or doubled."""
    models = {"whole.keras": archive(entries)}
    for seed in range(16 * ROUNDS):
        config = _mutated(json.loads(entries[CONFIG]), random.Random(seed))
        models[f"{seed}.keras"] = with_config(entries, config)
    return models


_VALUES: list[Any] = [
    None, True, 0, -1, 2**31, 2**64, 1.5, "", "x", "left", "line\nbreak\x1b[31m", [], {}, [None], [[]], {"config": 3},
    {"class_name": "x"}, {"class_name": []}, {"class_name": "Dense"}, ["left", 0, 0], ["left", 9, 9],
]  # fmt: skip


def _mutated(config: dict, rng: random.Random) -> dict:
    """Replaces, removes, copies or doubles one to three of all values in a config."""
    for _ in range(rng.randint(1, 3)):
        places = _places(config)
        holder, key = rng.choice(places)
        change = rng.randrange(4)
        if change == 0:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
        elif change == 1:
            del holder[key]
        elif change == 2:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place])
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[f"{key}s"] = holder.pop(key)
    return config


def _places(node) -> list[tuple]:
    keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in list(keys) for place in [(node, key), *_places(node[key])]]


def huge_sizes(entries, hdf5) -> dict[str, bytes]:
    """Configs of a few kilobytes that ask for more memory than machines have."""
    config, models = json.loads(entries[CONFIG]), {}
    text = entries[CONFIG].decode()
    dense = next(layer for layer in _layers(config) if layer["class_name"] == "Dense")
    for units in (10**9, 10**18, 2**63, -1):
        dense["config"]["units"] = units
        models[f"units-{units}.keras"] = with_config(entries, config)
    for side in (0, 16, 4_000, 10**9):
        models[f"image-{side}.keras"] = with_config(entries, text.replace("[null, 16, 16, 3]", f"[null, {side}, {side}, 3]"))
        models[f"pooled-{side}.keras"] = _pooling_model(side)
    models["behind-a-stateful-layer.keras"] = _stateful_model(units=10**9)
    dense["config"]["units"] = 10**6
    claiming = changed(entries[WEIGHTS], lambda file: file.create_dataset("claim", (2**27,), "f4", chunks=(2**16,)))
    models["beside-claims.keras"] = with_config(entries | {WEIGHTS: claiming}, config)
    return models


def _stateful_model(units: int) -> bytes:
    """Returns an archive with a dense layer of too many units behind one that makes variables of values, not of shapes."""
    left, right = (keras.Input(batch_shape=(1, 16, 16, 3), name=name) for name in ("left", "right"))
    state = keras.layers.LSTM(2, stateful=True)(keras.layers.Reshape((16, 48))(left))
    pixels = keras.layers.Dense(4)(keras.layers.Flatten()(right))
    both = keras.layers.Subtract()([keras.layers.Dense(4, name="large")(state), pixels])
    entries = _entries_of(keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(both)))
    config = json.loads(entries[CONFIG])
    next(layer for layer in _layers(config) if layer["config"].get("name") == "large")["config"]["units"] = units
    return with_config(entries, config)


def _layers(config: dict) -> list[dict]:
    inner = config["config"].get("layers", []) if isinstance(config.get("config"), dict) else []
    return [config, *(found for layer in inner for found in _layers(layer))]


def _pooling_model(side: int) -> bytes:
    """Returns an archive of few weights for images of any size, which says that it takes them `side` pixels wide and high."""
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    encoder = keras.Model(image, keras.layers.Dense(2)(x))
    left, right = keras.Input((16, 16, 3), name="left"), keras.Input((16, 16, 3), name="right")
    score = keras.layers.Dense(1, activation="sigmoid")(keras.ops.abs(encoder(left) - encoder(right)))
    entries = _entries_of(keras.Model([left, right], score))
    return with_config(entries, entries[CONFIG].decode().replace("[null, 16, 16, 3]", f"[null, {side}, {side}, 3]"))


def _entries_of(model: keras.Model) -> dict[str, bytes]:
    """Returns the files in the archive of a model."""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"model-{os.getpid()}.keras"
    model.save(path)
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    path.unlink()
    return entries


def planted_code(entries, hdf5) -> dict[str, bytes]:
    """Configs with code, or with names of it, in the places that hold layers and functions."""
    config, models = json.loads(entries[CONFIG]), {}
    # One of them may take the guard away for all that follow; they are loaded in the order of their names.
    for name, planted in _planted().items():
        models[f"{name}-as-activation.keras"] = with_config(entries, _with_activation(config, planted))
        lstm = {"module": "keras.layers", "class_name": "LSTM", "registered_name": None, "config": {"name": "l", "units": 2}}
        both = {"layer": lstm, "backward_layer": planted}
        for wrapper, inner in (("TimeDistributed", {"layer": planted}), ("Bidirectional", both)):
            layer = {"module": "keras.layers", "class_name": wrapper, "config": {"name": "w"} | inner, "name": "w"}
            within = copy.deepcopy(config)
            within["config"]["layers"].append(layer | {"registered_name": None, "inbound_nodes": []})
            models[f"{name}-in-{wrapper}.keras"] = with_config(entries, within)
        asides = {"compile_config": planted, "build_config": {"input_shape": planted}}
        models[f"{name}-beside.keras"] = with_config(entries, config | asides)
        models[f"{name}-as-model.keras"] = with_config(entries, planted)
        models[f"{name}-as-activation.h5"] = changed(hdf5, _plant(planted))
    return models


def _planted() -> dict[str, dict]:
    """Returns configs that would make a file `planted`, or let it be made, if a loader followed them."""
    evil = eval("lambda *a, **k: open('planted', 'w').close() or a[0]")
    code = [base64.b64encode(marshal.dumps(evil.__code__)).decode(), None, None]
    function = {"class_name": "__lambda__", "config": {"value": code}}
    return {
        "lambda": {"module": "builtins", **function},
        "layer": {"module": "keras.layers", "class_name": "Lambda", "registered_name": None,
                  "config": {"name": "w", "function": function, "output_shape": [12], "arguments": {}}, "inbound_nodes": []},
        "system": {"module": "os", "class_name": "system", "config": {"command": "touch planted"}, "registered_name": "system"},
        "function": {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
        "builtin": {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "exec"},
        "a-guard-away": {"module": "keras.config", "class_name": "function", "config": "enable_unsafe_deserialization",
                   "registered_name": "enable_unsafe_deserialization"},
        "download": {"module": "keras.utils", "class_name": "get_file", "registered_name": "get_file",
                     "config": {"fname": "planted", "origin": "file:///etc/hostname", "cache_dir": "."}},
    }  # fmt: skip


def _with_activation(config: dict, planted: dict) -> dict:
    """Returns a config whose dense layers have something else as their activation."""
    config = copy.deepcopy(config)
    for layer in _layers(config):
        if layer["class_name"] == "Dense":
            layer["config"]["activation"] = planted
    return config


def _plant(planted: dict):
    def change(file: h5py.File) -> None:
        file.attrs["model_config"] = json.dumps(_with_activation(json.loads(file.attrs["model_config"]), planted))

    return change


# Weights


def _plant_links(file: h5py.File) -> None:
    file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")


def _dataset_of(file: h5py.File) -> tuple[h5py.Group, str]:
    """Returns the group and the name of the first dataset."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    parent, _, name = sorted(names)[0].rpartition("/")
    return file[parent], name


def _replace(make):
    """Returns a change that puts something else in the place of a dataset of weights."""

    def change(file: h5py.File) -> None:
        group, name = _dataset_of(file)
        shape, dtype = group[name].shape, group[name].dtype
        del group[name]
        make(group, name, shape, dtype)

    return change


def _virtual(group: h5py.Group, name: str, shape, dtype) -> None:
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", shape, dtype)
    group.create_virtual_dataset(name, layout)


def _cycle(file: h5py.File) -> None:
    file.create_group("a/b/c")["back"] = file["/"]


def _many_ways(file: h5py.File) -> None:
    """Makes forty groups, each in two places of the one before: 2 ** 40 ways to the last one."""
    group = file.create_group("ways")
    for _ in range(40):
        below = group.create_group("a")
        group["b"] = below
        group = below


def _deep(file: h5py.File) -> None:
    group = file
    for _ in range(3_000):
        group = group.create_group("g")


HOSTILE_WEIGHTS = {
    "a-link-beside": _plant_links,
    "an-external-link": _replace(
        lambda group, name, shape, dtype: group.__setitem__(name, h5py.ExternalLink("/etc/passwd", "/x"))
    ),
    "a-soft-link": _replace(lambda group, name, shape, dtype: group.__setitem__(name, h5py.SoftLink("/nowhere"))),
    "external-storage": _replace(
        lambda group, name, shape, dtype: group.create_dataset(
            name, shape, dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
        )
    ),
    "a-virtual-dataset": _replace(_virtual),
    "a-huge-dataset": _replace(lambda group, name, *_: group.create_dataset(name, (2**40,), "f4", chunks=(2**16,))),
    "3-gigabytes": _replace(lambda group, name, *_: group.create_dataset(name, (3 * 2**28,), "f4", chunks=(2**16,))),
    "no-dataset": _replace(lambda *_: None),
    "a-group": _replace(lambda group, name, *_: group.create_group(name)),
    "texts": _replace(lambda group, name, *_: group.create_dataset(name, data=["a", "b"], dtype=h5py.string_dtype())),
    "references": _replace(lambda group, name, shape, _: group.create_dataset(name, shape, h5py.ref_dtype)),
    "compound": _replace(lambda group, name, shape, _: group.create_dataset(name, shape, np.dtype([("a", "f4"), ("b", "f8")]))),
    "empty": _replace(lambda group, name, *_: group.create_dataset(name, data=h5py.Empty("f4"))),
    "another-shape": _replace(lambda group, name, *_: group.create_dataset(name, data=np.zeros((2, 2, 2, 2, 2)))),
    "no-numbers": _replace(lambda group, name, shape, dtype: group.create_dataset(name, data=np.full(shape, np.nan, dtype))),
    "infinite": _replace(lambda group, name, shape, dtype: group.create_dataset(name, data=np.full(shape, np.inf, dtype))),
    "a-cycle": _cycle,
    "many-ways": _many_ways,
    "deep": _deep,
    "line\nbreak": lambda file: file.__setitem__("line\nbreak", h5py.SoftLink("/x")),
}


def hostile_weights(entries, hdf5) -> dict[str, bytes]:
    """Weights that lie elsewhere, without end, or that are none."""
    models = {f"{name}.keras": with_weights(entries, change) for name, change in HOSTILE_WEIGHTS.items()}
    models |= {f"{name}.h5": changed(hdf5, change) for name, change in HOSTILE_WEIGHTS.items()}
    return models


def _attribute(name: str, value):
    def change(file: h5py.File) -> None:
        holder = file if name in file.attrs else file["model_weights"]
        if name in holder.attrs:
            del holder.attrs[name]
        if value is not None:
            holder.attrs[name] = value

    return change


def hostile_attributes(entries, hdf5) -> dict[str, bytes]:
    """HDF5 files whose attributes are of wrong types."""
    values = [None, 3, 1.5, b"", b"\xff\xfe", "x", "[" * 900 + "]" * 900, "{}", "null", h5py.Empty("f4"), np.arange(9),
              [b"a", b"b"], np.array([[b"top_level"]]), "\ud7ff", '{"class_name": "Functional", "config": {}}']  # fmt: skip
    return {
        f"{name}-{number}.h5": changed(hdf5, _attribute(name, value))
        for name in ("model_config", "keras_version", "layer_names", "backend")
        for number, value in enumerate(values if name == "model_config" else values[:11:4])
    }


# Damage without a plan


def _damaged(whole: bytes, seed: int, most: int = 20) -> bytes:
    """Returns a file with up to `most` bytes changed."""
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(rng.randint(1, most)):
        # Half of it in the first and last kilobytes, where a file's own bookkeeping is.
        place = rng.choice(
            [rng.randrange(2048), len(data) - 1 - rng.randrange(2048), rng.randrange(len(data)), rng.randrange(len(data))]
        )
        data[place % len(data)] = rng.choice([0, 255, rng.randrange(256)])
    return bytes(data)


def _cuts(whole: bytes, parts: int = 8) -> dict[str, bytes]:
    """Returns the beginnings of a file, by name."""
    lengths = [1, 2, 4, 8, 9, 22, 64, 512, *(len(whole) * part // parts for part in range(1, parts)), len(whole) - 22]
    lengths.append(len(whole) - 1)
    return {f"cut-{length}": whole[:length] for length in lengths}


def truncated(entries, hdf5) -> dict[str, bytes]:
    """Files without their end."""
    models = {f"{name}.keras": data for name, data in _cuts(archive(entries)).items()}
    models |= {f"{name}.h5": data for name, data in _cuts(hdf5).items()}
    weights = _cuts(entries[WEIGHTS], parts=6)
    models |= {f"weights-{name}.keras": archive(entries | {WEIGHTS: data}) for name, data in weights.items()}
    return models


def damaged(entries, hdf5) -> dict[str, bytes]:
    """Files with random bytes at random places."""
    whole = archive(entries)
    # With these three seeds, the HDF5 library has been seen to crash.
    models = {"whole.h5": hdf5} | {f"crash-{seed}.h5": _damaged(hdf5, seed) for seed in (38, 317, 951)}
    for seed in range(6 * ROUNDS):
        models[f"{seed}.h5"] = _damaged(hdf5, seed)
        # An archive knows the checksums of its members, so that weights are damaged before they are put into one.
        models[f"weights-{seed}.keras"] = archive(entries | {WEIGHTS: _damaged(entries[WEIGHTS], seed)})
        models[f"archive-{seed}.keras"] = _damaged(whole, seed, most=4)
    return models


GROUPS = {
    "members": members_elsewhere, "archives": odd_archives, "long": long_configs, "mutated": mutated_configs,
    "sizes": huge_sizes, "planted": planted_code, "weights": hostile_weights, "attributes": hostile_attributes,
    "cut": truncated, "damaged": damaged,
}  # fmt: skip


# Folders


@pytest.mark.parametrize("kind", ["pipe", "device", "odd_name", "loop", "secret"])
def test_a_saved_model_folder_of_odd_files_is_refused(kind, tmp_path):
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    odd = folder / "variables" / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "odd_name":
        Path(os.fsdecode(bytes(odd) + b"\xff")).touch()
    else:
        odd.symlink_to({"device": "/dev/zero", "loop": "odd", "secret": "/proc/self/mem"}[kind])
    with _within(MOST_SECONDS), pytest.raises(PreflightError) as caught:
        load_model(ModelConfig(model=str(folder)))
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]


@contextlib.contextmanager
def _within(seconds: float):
    """Raises `TimeoutError` where what it holds takes longer."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _too_long(*_) -> None:
    raise TimeoutError("it takes too long")


def _outcome(path: str) -> str:
    """Loads one file; returns `loaded`, `refused: ` and the sentence, or what went wrong."""
    start = time.process_time()
    try:
        with _within(3 * MOST_SECONDS):
            load_model(ModelConfig(model=path))
        words = "loaded"
    except PreflightError as refused:
        words = f"refused: {refused.problems[0]}"
        if len(refused.problems) != 1 or not words.isprintable():
            words = f"more than a line: {words!r}"
    except BaseException as error:
        words = f"{type(error).__name__}: {error}"[:500]
    seconds = time.process_time() - start
    return words if seconds < MOST_SECONDS else f"after {seconds:.0f} s {words[:60]}"


def _left_behind() -> list[str]:
    """Returns what lies where this process works and where it puts temporary files, and removes it."""
    left = [*Path().iterdir(), *Path(tempfile.gettempdir()).iterdir()]
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name for path in left]


def _load_all(folder: str, report: str) -> None:
    """Loads each file in `folder` and writes what came of it, with a line before it, so that a crash is traced to a file."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_GIGABYTES * 2**30, MOST_GIGABYTES * 2**30))
    with open(report, "w", encoding="utf-8") as file:
        for name in sorted(os.listdir(folder)):
            print(json.dumps([name, "begun", 0]), file=file, flush=True)
            start = time.monotonic()
            words = _outcome(os.path.join(folder, name))
            if left := _left_behind():
                words = f"left {left} behind: {words}"
            print(json.dumps([name, words, time.monotonic() - start]), file=file, flush=True)


if __name__ == "__main__":
    _load_all(sys.argv[1], sys.argv[2])


def test_the_process_that_looks_through_a_file_finds_libraries_where_this_one_does(tmp_path, monkeypatch):
    """As where libraries are on PYTHONPATH, and not with the interpreter."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    assert load_model(ModelConfig()).facts.structure.startswith("one encoder")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(PreflightError, match=r"cannot run \(ModuleNotFoundError: No module named 'h5py'\)"):
        load_model(ModelConfig())
