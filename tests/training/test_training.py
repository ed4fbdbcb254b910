"""Training: every fact on real drawings and real optimiser steps, with a small encoder where the size doesn't matter."""

import csv
import dataclasses
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from batchverify.cli.main import main
from batchverify.cli.messages import epoch_message
from batchverify.config import ModelConfig, VerificationConfig
from batchverify.demo import characters
from batchverify.errors import PreflightError, RunError
from batchverify.model.identity_bound import find_identity_bound
from batchverify.model.split import split_model
from batchverify.training import data, fit, network, sources
from batchverify.training.distort import distort
from batchverify.training.evaluate import evaluate
from batchverify.training.optimizers import LayerwiseMomentum, build_optimizer
from batchverify.training.recipe import Recipe
from batchverify.training.session import plan_training
from batchverify.training.settings import TrainingSettings
from batchverify.training.trainer import Trainer

pytestmark = pytest.mark.slow

SIZE = 32


@pytest.fixture(scope="module")
def alphabets() -> list[data.Group]:
    return sources.draw_groups(3, 6, 4, SIZE, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders: two alphabets of 8 characters, 4 drawings each."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("classes")
    for alphabet in ("Seen", "Held_out"):
        for number, character in enumerate(characters.invent_alphabet(rng, 8)):
            path = root / alphabet / f"character{number:02d}"
            path.mkdir(parents=True)
            for writer in range(4):
                characters.draw(character, rng).save(path / f"{writer}.png")
    return root


def small_backbone(input_shape=(SIZE, SIZE, 3), **_) -> keras.Model:
    """A backbone of one convolution, with the batch normalisation that every backbone here has."""
    return keras.Sequential([keras.Input(input_shape), keras.layers.Conv2D(8, 5, 2, activation="relu"),
                             keras.layers.BatchNormalization(momentum=0.9)])  # fmt: skip


@pytest.fixture
def with_small_backbone(monkeypatch) -> None:
    """The command trains a backbone of one convolution: TensorFlow takes half a minute to build its MobileNetV2."""
    monkeypatch.setattr(keras.applications, "MobileNetV2", small_backbone)


def small_trainer(groups, **said) -> Trainer:
    """A trainer of a network with the published shape and a backbone of one convolution."""
    recipe = Recipe.named(**{"name": "batch", "size": SIZE, "steps": 60, **said})
    if recipe.name == "batch":
        recipe = dataclasses.replace(recipe, batch_groups=2, batch_classes=4)
    keras.utils.set_random_seed(recipe.seed)
    pixels = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Flatten()(small_backbone()(keras.layers.Rescaling(1 / 255)(pixels)))
    x = keras.layers.Dense(16, activation="relu", name="dense")(x)
    x = keras.layers.Dropout(0.2)(x)
    embedding = keras.layers.Dense(network.EMBEDDING_SIZE, activation="sigmoid", name="embedding")(x)
    return Trainer(recipe, groups, keras.Model(pixels, embedding, name="encoder"))


@pytest.mark.parametrize(
    ("name", "head"), [("batch", "repaired"), ("batch", "published"), ("published", "published"), ("koch", "repaired")]
)
def test_the_loss_falls(alphabets, name, head):
    trainer = small_trainer(alphabets, name=name, head=head, batch_pairs=None if name == "batch" else 16)
    losses = [trainer.train_step()[0] for _ in range(60)]
    assert np.mean(losses[-15:]) < 0.97 * np.mean(losses[:15])


def test_the_published_heads_identity_score_is_exactly_the_sigmoid_of_its_bias(alphabets):
    trainer = small_trainer(alphabets, head="published", learning_rate=0.05)
    for _ in range(5):
        trainer.train_step()
    embedded = trainer.encode(alphabets[0].classes[0])
    bias = np.asarray(trainer.head.bias)
    assert bias != 0
    np.testing.assert_array_equal(trainer.compare(embedded, embedded), np.full(4, keras.ops.sigmoid(bias)))


def test_a_frozen_bias_stays_at_zero_and_the_identity_score_at_a_half(alphabets):
    trainer = small_trainer(alphabets, name="published", head="published", freeze_bias=True, learning_rate=0.05)
    for _ in range(5):
        trainer.train_step()
    embedded = trainer.encode(alphabets[0].classes[0])
    np.testing.assert_array_equal(trainer.compare(embedded, embedded), np.full(4, 0.5, np.float32))


@pytest.mark.parametrize(("head", "holds"), [("repaired", True), ("published", False)])
def test_the_certificate_of_the_repaired_head_holds_after_every_step(alphabets, head, holds):
    # At this rate the optimiser pushes weights across zero at once; the published head, without constraint, shows it.
    trainer = small_trainer(alphabets, head=head, learning_rate=1.0)
    for _ in range(5):
        trainer.train_step()
        certificate = find_identity_bound(split_model(network.assemble(trainer.encoder, trainer.head)), ModelConfig())
        assert certificate.holds is holds


def test_resumed_training_ends_with_the_same_weights(alphabets, tmp_path):
    kept, rest = data.split_classes(alphabets, 0.3, 0)

    def run(name, resume=False, stop_at=None):
        def on_step(step, *_):
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        files = fit.TrainingFiles(tmp_path / f"{name}.keras")
        trainer = small_trainer(kept, steps=12, steps_per_epoch=5)
        _, stopped_by = fit.fit(trainer, rest, files, "the same", resume, on_step)
        return trainer, files, stopped_by

    whole, whole_files, _ = run("whole")
    _, files, stopped_by = run("parts", stop_at=7)
    assert stopped_by == signal.SIGINT and files.model.exists() and files.checkpoint.exists()
    parts, files, _ = run("parts", resume=True)
    assert not files.checkpoint.exists()
    for name, value in whole.state().items():
        np.testing.assert_array_equal(value, parts.state()[name])
    read = [list(csv.DictReader(file.log.open())) for file in (whole_files, files)]
    assert [{**row, "seconds": ""} for row in read[0]] == [{**row, "seconds": ""} for row in read[1]]
    assert [row["step"] for row in read[0]] == ["5", "10", "12"]


def test_the_model_that_is_kept_is_the_best_on_validation(alphabets, tmp_path):
    kept, rest = data.split_classes(alphabets, 0.3, 0)
    trainer = small_trainer(kept, steps=8, steps_per_epoch=2, learning_rate=1e-9)

    def ruin(epoch):
        if epoch.epoch == 2:
            trainer.encoder.set_weights([np.zeros_like(weights) for weights in trainer.encoder.get_weights()])

    history, _ = fit.fit(trainer, rest, fit.TrainingFiles(tmp_path / "model.keras"), "", on_epoch=ruin)
    best, last = history.best(), history.epochs[-1].validation_eer
    assert best and best.validation_eer is not None and last is not None
    assert best.epoch <= 2 and best.validation_eer < last == 0.5
    model = keras.models.load_model(tmp_path / "model.keras")
    encode = functools.partial(network.encode, model.get_layer("encoder"))
    kept_eer = evaluate(encode, functools.partial(network.compare, model.get_layer("score")), rest, 0, 4000, 1).eer
    assert kept_eer == pytest.approx(best.validation_eer, abs=1e-3)


def test_patience_ends_training_without_gain(alphabets, tmp_path):
    kept, rest = data.split_classes(alphabets, 0.3, 0)
    trainer = small_trainer(kept, steps=1000, steps_per_epoch=1, patience=3, learning_rate=1e-9)
    history, _ = fit.fit(trainer, rest, fit.TrainingFiles(tmp_path / "model.keras"), "")
    assert (best := history.best()) and history.epochs[-1].epoch == best.epoch + 3 < 100


@pytest.mark.parametrize(("at", "told"), [(1, "the loss of step 2 is nan"), (2, "after step 2 the network has weights")])
def test_a_training_that_diverges_ends_in_a_sentence_and_keeps_no_such_network(at, told, alphabets, tmp_path):
    trainer = small_trainer(alphabets, steps=2, steps_per_epoch=2)

    def diverge(step, *_):
        if step == at:
            trainer.head.kernel.assign(np.full(trainer.head.kernel.shape, np.nan))

    with pytest.raises(RunError, match=f"^{told}.*train again with a --learning-rate below 0.002[.]$"):
        fit.fit(trainer, [], fit.TrainingFiles(tmp_path / "model.keras"), "", on_step=diverge)
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_kept_is_named_where_a_training_diverges_later(alphabets, tmp_path):
    trainer = small_trainer(alphabets, steps=2, steps_per_epoch=1)

    def diverge(_):
        trainer.head.bias.assign([np.inf])

    with pytest.raises(RunError, match=r"diverged.*model.keras holds the network of step 1[.]$"):
        fit.fit(trainer, [], fit.TrainingFiles(tmp_path / "model.keras"), "", on_epoch=diverge)
    assert all(np.isfinite(weights).all() for weights in keras.models.load_model(tmp_path / "model.keras").get_weights())


def test_a_full_disk_ends_a_training_in_a_sentence_and_leaves_no_half_of_a_file(alphabets, tmp_path):
    trainer = small_trainer(alphabets, steps=1)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, most))
    try:
        with pytest.raises(RunError, match=r"model.keras cannot be written [(]File too large[)]; free space there[.]$"):
            fit.fit(trainer, [], fit.TrainingFiles(tmp_path / "model.keras"), "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named_with_what_goes_on(alphabets, tmp_path):
    files = fit.TrainingFiles(tmp_path / "model.keras")

    def block(epoch):
        if epoch.epoch == 1:
            files.log.unlink()
            files.log.mkdir()

    with pytest.raises(RunError, match=r"model.log.csv cannot be written .*free space there, and go on with --resume[.]$"):
        fit.fit(small_trainer(alphabets, steps=2, steps_per_epoch=1), [], files, "", on_epoch=block)
    assert not list(tmp_path.glob("*.part*"))
    files.checkpoint.write_bytes(b"PK")
    with pytest.raises(PreflightError, match=r"checkpoint.npz cannot be read .*; train from the start with --overwrite"):
        fit.fit(small_trainer(alphabets), [], files, "", resume=True)


def short(*more) -> list[str]:
    return ["--size", str(SIZE), "--steps", "4", "--steps-per-epoch", "2", *map(str, more)]


def test_the_command_trains_on_class_folders(folder, tmp_path, capsys, with_small_backbone):
    output = tmp_path / "new" / "model.keras"
    assert main(["train", "--images", str(folder), "--output", str(output), "--hold-out", "Held_out", "--turned-classes",
                       "--joined", "0.5", "--invented", "1", "--validation", "0.3", *short()]) == 0  # fmt: skip
    said = capsys.readouterr().out
    for words in ("held out: 32 images of 8 classes", "epoch   2", "8-way one-shot", "Log "):
        assert words in said
    with zipfile.ZipFile(output) as archive:
        assert "batchverify" not in archive.read("config.json").decode()  # any Keras 3 loads it
    model = keras.models.load_model(output)
    siamese = split_model(model)
    assert siamese.shared and find_identity_bound(siamese, ModelConfig()).holds
    figures = json.loads(output.with_suffix(".json").read_text())
    assert figures["measured_on"] == "held out" and figures["recipe"]["seed"] == 0
    assert figures["figures"]["identity_score"] == pytest.approx(
        find_identity_bound(siamese, ModelConfig()).identity_score, abs=1e-6
    )
    assert len(list(csv.DictReader(output.with_suffix(".log.csv").open()))) == 2
    assert Image.open(output.with_suffix(".curves.png")).size[0] > 600
    assert not output.with_suffix(".checkpoint.npz").exists()


def test_a_training_whose_reader_is_gone_goes_on(folder, tmp_path, monkeypatch, with_small_backbone):
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))

    def read_the_first_line() -> None:
        os.read(reader, 1)
        os.close(reader)

    threading.Thread(target=read_the_first_line).start()  # It ends before the first epoch does.
    output = tmp_path / "model.keras"
    assert main(["train", "--images", str(folder), "--output", str(output), "--validation", "0", *short()]) == 0
    assert output.with_suffix(".json").exists()


def test_a_file_beside_the_model_is_not_replaced_without_being_asked(folder, tmp_path, capsys):
    (tmp_path / "model.json").write_text("an architecture")
    assert main(["train", "--images", str(folder), "--output", str(tmp_path / "model.keras"), *short()]) == 2
    assert f"--output: {tmp_path / 'model.json'} exists; give --resume, --overwrite" in capsys.readouterr().err
    assert (tmp_path / "model.json").read_text() == "an architecture"


def test_a_group_of_one_class_cannot_be_held_out(folder, tmp_path, capsys):
    shutil.copytree(folder / "Seen", tmp_path / "classes" / "Seen")
    shutil.copytree(folder / "Held_out" / "character00", tmp_path / "classes" / "Lonely" / "character00")
    arguments = ["--images", str(tmp_path / "classes"), "--hold-out", "Lonely", "--output", str(tmp_path / "m.keras")]
    assert main(["train", *arguments, *short()]) == 2
    assert "--hold-out Lonely: it has one class of two images or more, and pairs" in capsys.readouterr().err
    assert not list(tmp_path.glob("m.*"))


def test_the_command_trains_on_a_manifest_and_on_encoder_weights(folder, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    rows = ["left,right,genuine"]
    for classes in sorted((folder / "Seen").iterdir()):
        rows += [f"{classes}/0.png,{classes}/{other}.png,1" for other in (1, 2)]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    # Keras publishes ImageNet weights in the format of Keras 2.
    backbone = tf_keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, include_top=False, weights=None)
    backbone.save_weights(tmp_path / "no_top.h5")
    output = tmp_path / "model.keras"
    arguments = ["--manifest", str(tmp_path / "pairs.csv"), "--output", str(output), "--validation", "0",
                 "--encoder-weights", str(tmp_path / "no_top.h5"), "--learning-rate", "1e-9"]  # fmt: skip
    assert main(["train", *arguments, *short()]) == 0
    with zipfile.ZipFile(output) as archive:
        assert "batchverify" not in archive.read("config.json").decode()
    model = keras.models.load_model(output)
    assert find_identity_bound(split_model(model), ModelConfig()).holds
    trained = model.get_layer("encoder")
    found = next(layer for layer in trained.layers if isinstance(layer, keras.Model)).get_layer("Conv1").get_weights()
    np.testing.assert_allclose(found[0], backbone.get_layer("Conv1").get_weights()[0], atol=1e-6)
    assert main(["train", *arguments, *short("--width", 0.5)]) == 2


def test_interrupted_training_leaves_a_model_and_goes_on(folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "model.keras"
    arguments = ["train", "--images", str(folder), "--output", str(output), "--size", str(SIZE), "--validation", "0.3",
                 "--steps-per-epoch", "2", "--steps", "100000"]  # fmt: skip

    def run_until_an_epoch(number, *more):
        def interrupt(epoch):
            signal.raise_signal(number)
            return epoch_message(epoch)

        monkeypatch.setattr("batchverify.cli.train.epoch_message", interrupt)
        assert main([*arguments, *more]) == 128 + number
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "go on with --resume" in out
        return int(next(line for line in out.splitlines() if line.startswith("epoch")).split()[1])

    assert run_until_an_epoch(signal.SIGINT) == 1
    assert keras.models.load_model(output).output_shape == (None, 1)
    assert run_until_an_epoch(signal.SIGTERM, "--resume") > 1
    assert main([*arguments, "--resume", "--seed", "5"]) == 2
    assert main(arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--images", "none"], "--images none: there is no such folder"),
        (["--manifest", "none.csv"], "none.csv: there is no such file"),
        (["--images", "{folder}", "--hold-out", "Held_in"], "there is no such group; there is Held_out"),
        (["--images", "{folder}", "--output", "model.h5"], "give a name that ends in .keras"),
        (["--images", "{folder}", "--width", "0.4"], "--width is 0.4; give one of 0.35"),
        (["--images", "{folder}", "--steps", "0"], "--steps is 0; give at least 1"),
        (["--images", "{folder}", "--joined", "1.5"], "--joined is 1.5"),
        (["--images", "{folder}", "--validation", "1"], "--validation is 1.0"),
        (["--images", "{folder}", "--validation", "0", "--recipe", "koch"], "nothing tells when to stop"),
        (
            ["--images", "{folder}", "--layer-rate", "dense=0.1"],
            "--layer-rate belongs to --recipe koch, and the recipe is",
        ),
        (["--images", "{folder}", "--momentum", "0.5"], "--momentum belongs to --recipe koch, and the recipe is batch"),
        (["--images", "{folder}", "--batch-pairs", "8"], "--batch-pairs belongs to --recipe published and koch"),
        (
            ["--images", "{folder}", "--recipe", "koch", "--joined", "0"],
            "--joined belongs to --recipe batch",
        ),
        (
            ["--images", "{folder}", "--start-from", "m.keras", "--width", "0.5"],
            "--width is for a new encoder, and",
        ),
        (["--images", "{folder}", "--start-from", "m.keras", "--dropout", "0"], "--dropout is for a new encoder"),
        (["--images", "{folder}", "--seed", "-1"], "--seed is -1; give a number from 0 to 4294967295."),
        (["--images", "{folder}", "--seed", "4294967296"], "--seed is 4294967296; give a number from 0"),
        (
            ["--images", "{folder}", "--hold-out", "Seen", "Held_out"],
            "names all groups, and none is left",
        ),
        (["--images", "{folder}", "--recipe", "koch", "--layer-rate", "nose=0.1"], "where the layer is one of backbone"),
        (["--images", "{folder}", "--layer-rate", "dense"], "is not LAYER=NUMBER"),
        (["--images", "{folder}", "--freeze-bias"], "belongs to --head published"),
        (["--images", "{folder}", "--encoder-weights", "none.h5"], "there is no such file"),
        (["--images", "{folder}", "--resume"], "there is no model.checkpoint.npz"),
        (["--images", "{folder}", "--stepps", "3"], "--stepps"),
        (["--images", "{folder}", "--manifest", "x"], "not allowed with"),
        ([], "required"),
    ],
)
def test_a_mistake_is_a_sentence(arguments, told, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [argument.format(folder=folder) for argument in arguments]
    assert main(["train", "--size", str(SIZE), "--output", "model.keras", *given]) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_classes_are_what_genuine_pairs_join(tmp_path):
    rng = np.random.default_rng(3)
    names = [f"{letter}{n}.png" for letter in "abc" for n in range(3)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / name)
    rows = ["left,right,genuine", "a0.png,a1.png,1", "a1.png,a2.png,1", "b0.png,b1.png,1", "c0.png,a0.png,0", "c1.png,c2.png,"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    config = VerificationConfig(manifests=(str(tmp_path / "pairs.csv"),), output="-")
    (group,) = sources.read_manifest(config, 8)
    assert sorted(len(images) for images in group.classes) == [2, 3]
    (tmp_path / "pairs.csv").write_text("\n".join([*rows, "a2.png,a0.png,0"]))
    with pytest.raises(PreflightError, match="row 5 says impostor, and genuine rows join its images"):
        sources.read_manifest(config, 8)


def test_folders_with_or_without_groups_are_read_and_copies_once(folder, tmp_path):
    groups = sources.read_folders(str(folder), 16)
    assert [(group.name, len(group.classes)) for group in groups] == [("Held_out", 8), ("Seen", 8)]
    (flat,) = sources.read_folders(str(folder / "Seen"), 16)
    np.testing.assert_array_equal(flat.classes[0], groups[1].classes[0])
    assert flat.classes[0].shape == (4, 16, 16, 1)
    for copy in ("one", "other"):
        (tmp_path / copy).mkdir()
        (tmp_path / copy / "Seen").symlink_to(folder / "Seen")
    (tmp_path / "tree").mkdir()
    subprocess.run(["cp", "-rL", tmp_path / "one", tmp_path / "other", tmp_path / "tree"], check=True)
    assert len(sources.read_folders(str(tmp_path / "tree"), 16)) == 1


def test_validation_takes_whole_classes(alphabets):
    kept, aside = data.split_classes(alphabets, 0.3, seed=4)
    images = [{image.tobytes() for group in part for c in group.classes for image in c} for part in (kept, aside)]
    assert not images[0] & images[1]
    assert [len(group.classes) for group in kept] == [4, 4, 4] and [len(group.classes) for group in aside] == [2, 2, 2]
    with pytest.raises(PreflightError, match="no group has enough classes"):
        data.split_classes([data.Group("small", alphabets[0].classes[:3])], 0.3, 0)


def numbered_groups(groups=3, classes=6, images=4) -> list[data.Group]:
    """Images of 2×2 pixels: group, class, image, 0."""
    return [
        data.Group(str(g), tuple(np.array([[g, c, i, 0] for i in range(images)], np.uint8).reshape(-1, 2, 2, 1)
                                 for c in range(classes)))
        for g in range(groups)
    ]  # fmt: skip


def test_a_batch_holds_two_images_of_each_class_and_classes_of_one_group_together():
    drawn = data.BatchSampler(numbered_groups(), 2, 5).draw(np.random.default_rng(0)).reshape(20, 4)
    group, number, image = drawn[:, 0], drawn[:, 1], drawn[:, 2]
    assert len(set(zip(group, number, strict=True))) == 10
    assert (group[::2] == group[1::2]).all() and (number[::2] == number[1::2]).all() and (image[::2] != image[1::2]).all()
    assert len(set(group[:10])) == len(set(group[10:])) == 1 and group[0] != group[-1]


def test_drawn_pairs_are_half_genuine_and_impostors_come_from_within_a_group():
    drawn = data.PairSampler(numbered_groups(), 40).draw(np.random.default_rng(0)).reshape(2, 40, 4)
    (left, right) = drawn
    assert (left[:, 0] == right[:, 0]).all()
    np.testing.assert_array_equal(left[:, 1] == right[:, 1], np.arange(40) < 20)
    assert (left[:20, 2] != right[:20, 2]).all()


def test_a_group_that_counts_more_often_is_drawn_more_often_but_never_twice_for_a_batch():
    groups = [dataclasses.replace(group, weight=weight) for group, weight in zip(numbered_groups(), (1, 1, 8), strict=True)]
    rng, sampler, pairs = np.random.default_rng(0), data.BatchSampler(groups, 2, 3), data.PairSampler(groups, 500)
    drawn = [tuple(sampler.draw(rng).reshape(2, 6, 4)[:, 0, 0]) for _ in range(300)]
    assert all(first != second for first, second in drawn)
    assert np.mean([2 in groups for groups in drawn]) > 0.9 and np.mean([0 in groups for groups in drawn]) > 0.3
    assert np.mean(pairs.draw(rng).reshape(-1, 4)[:, 0] == 2) == pytest.approx(0.8, abs=0.06)


def test_groups_that_count_twice_stand_once_in_a_batch(folder, tmp_path, with_small_backbone):
    recipe = Recipe.named("batch", size=SIZE, batch_groups=2, batch_classes=4)
    settings = TrainingSettings(output=tmp_path / "m.keras", images=str(folder / "Seen"), repeat=2, validation=0.0)
    assert plan_training(recipe, settings).trainer._batch_shape == (1, 8)


@pytest.mark.parametrize("turned", [False, True])
def test_invented_alphabets_stand_beside_images_in_colour(turned, tmp_path, with_small_backbone):
    rng = np.random.default_rng(0)
    for path in (tmp_path / "Colours" / f"c{number}" for number in range(4)):
        path.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(path / f"{number}.png")
    recipe = Recipe.named("batch", size=SIZE, batch_groups=2, batch_classes=4)
    settings = TrainingSettings(
        output=tmp_path / "m.keras", images=str(tmp_path), validation=0.0, invented=1, repeat=3, turned_classes=turned
    )
    assert np.isfinite(plan_training(recipe, settings).trainer.train_step()[0])


@pytest.mark.parametrize("size", [8, 9])
def test_joined_images_hold_both(size):
    page, mark = np.full((1, size, size, 1), 255, np.uint8), np.full((1, size, size, 1), 255, np.uint8)
    mark[:, 4, 4] = 7
    for axis in (1, 2):
        both = data.join_images(mark, page, axis)
        assert both.shape == mark.shape
        assert np.argwhere(both == 7)[:, axis].tolist() == [2]
        assert np.argwhere(data.join_images(page, mark, axis) == 7)[:, axis].tolist() == [size // 2 + 2]


def test_joined_classes_are_different_classes(alphabets):
    drawn = data.BatchSampler(alphabets, 1, 5, joined=0.999).draw(np.random.default_rng(0))
    pages = (drawn < 255).mean(axis=0)[..., 0]
    assert drawn.shape == (10, SIZE, SIZE, 1) and len({image.tobytes() for image in drawn}) == 10
    assert pages[:, : SIZE // 2].any() and pages[:, SIZE // 2 :].any()


def test_turned_classes_are_eight_orientations(alphabets):
    turned = data.with_turns(alphabets[:1])
    assert len({group.classes[0].tobytes() for group in turned}) == len({group.name for group in turned}) == 8


@pytest.mark.parametrize("kind", ["affine", "strokes"])
def test_distortions_are_seeded_keep_the_background_and_differ_between_images(alphabets, kind):
    images = np.repeat(alphabets[0].classes[0][:1], 16, axis=0)
    first, again, other = (np.asarray(distort(images, tf.constant(seed), kind)) for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and len({image.tobytes() for image in first}) > 8
    assert first.min() >= -1e-3 and first.max() <= 255 + 1e-3
    ink = [(255 - pixels).sum(axis=(1, 2, 3)) for pixels in (images.astype(np.float32), first)]
    assert abs(ink[1].mean() / ink[0].mean() - 1) < 0.3
    grey = np.full((2, SIZE, SIZE, 3), 90, np.uint8)
    np.testing.assert_allclose(distort(grey, tf.constant([1, 2]), kind), grey, atol=1e-3)


def test_no_distortion_leaves_images_as_they_are(alphabets):
    images = alphabets[0].classes[0]
    np.testing.assert_array_equal(distort(images, tf.constant([1, 2]), "none"), images)


def test_layerwise_momentum_is_the_published_rule():
    first, second = keras.Variable([1.0, 2.0]), keras.Variable([3.0])
    optimizer = LayerwiseMomentum(0.1, [1.0, 0.5], [0.9, 0.7], steps_per_epoch=2, rise_epochs=2)
    optimizer.build([first, second])
    expected, changes = [np.array([1.0, 2.0]), np.array([3.0])], [np.zeros(2), np.zeros(1)]
    for step in range(6):
        gradients = [np.array([0.3, -0.1]) * (step + 1), np.array([0.2])]
        for n, (rate, end) in enumerate(((0.1, 0.9), (0.05, 0.7))):
            momentum = 0.5 + (end - 0.5) * min(1.0, (step // 2) / 2)
            changes[n] = momentum * changes[n] - rate * gradients[n]
            expected[n] = expected[n] + changes[n]
        optimizer.apply([keras.ops.convert_to_tensor(g, "float32") for g in gradients], [first, second])
    np.testing.assert_allclose(first.numpy(), expected[0], rtol=1e-5)
    np.testing.assert_allclose(second.numpy(), expected[1], rtol=1e-5)


def test_rates_fall_as_published():
    layers = {"backbone": [keras.Variable([1.0])], "score": [keras.Variable([1.0])]}
    adam = build_optimizer(Recipe.named("published"), layers)
    adam.iterations.assign(400)
    assert float(adam.learning_rate) == pytest.approx(1e-3 / (1 + 400 * 2.5e-4))
    koch = build_optimizer(Recipe.named("koch", layer_rates=(("backbone", 0.1),)), layers)
    koch.iterations.assign(126 * 3 + 5)
    assert float(koch.learning_rate) == pytest.approx(1e-2 * 0.99**3)


def test_fused_batch_normalisation_is_keras_own():
    rng = np.random.default_rng(2)
    x = rng.normal(3, 2, (16, 8, 8, 4)).astype(np.float32)
    plain, fused = keras.layers.BatchNormalization(momentum=0.5), network.FusedBatchNormalization(momentum=0.5)
    np.testing.assert_allclose(plain(x, training=True), fused(x, training=True), atol=1e-4)
    # TensorFlow's kernel takes the moving variance as that of a sample: by n / (n - 1) more, here 1024 / 1023.
    np.testing.assert_allclose(plain(x, training=False), fused(x, training=False), rtol=1e-3, atol=1e-5)
    for expected, found in zip(plain.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_evaluation_knows_the_best_and_the_worst_network():
    def compare(left, right):
        return np.exp(-np.abs(left - right).sum(axis=1)).astype(np.float32)

    groups = numbered_groups(2, 25, 4)
    perfect = evaluate(lambda images: images.reshape(-1, 4)[:, :2].astype(np.float32), compare, groups, 0, 500, 50)
    assert (perfect.accuracy, perfect.eer, perfect.one_shot, perfect.one_shot_ways) == (1, 0, 1, 20)
    blind = evaluate(lambda images: np.zeros((len(images), 2), np.float32), compare, groups, 0, 500, 50)
    assert (blind.accuracy, blind.one_shot, blind.identity_score) == (0.5, 0, 1)


@pytest.mark.parametrize("said", [{"name": "soup"}, {"head": "mended"}, {"distortion": "wild"}])
def test_a_recipe_knows_its_choices(said):
    with pytest.raises(PreflightError, match="give one of"):
        Recipe.named(**{"name": "batch", **said})


def test_a_recipe_is_written_down_whole():
    recipe = Recipe.named("koch", layer_rates=(("dense", 0.5),))
    assert Recipe(**dataclasses.asdict(recipe)) == recipe
