"""Steadiness in a job: images that are encoded again after small changes, against Pillow and Keras."""

import io
import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

import batchverify
from batchverify.cli.main import main
from tests.support.processes import SUBPROCESS_WORKERS

pytestmark = pytest.mark.slow
COUNT = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty pictures of 16×16 pixels, the size that the network takes, so that nothing is resized; one is turned by EXIF."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("steadiness")
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / "turned.jpg", exif=exif)
    names = [*(f"{number}.png" for number in range(COUNT)), "turned.jpg"]
    pd.DataFrame({"left": names, "right": names[::-1]}).to_csv(folder / "pairs.csv", index=False)
    return folder


def run(folder, small_model, output, *beam_args, **settings):
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "pairs.csv"),), output=str(output), model=small_model, **settings
    )
    return batchverify.run(config, beam_args).summary["steadiness"]


def changed(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    pixels = np.asarray(picture)
    shifted = pixels.copy()
    shifted[1:, 1:] = pixels[:-1, :-1]
    shifted[0, 1:], shifted[1:, 0], shifted[0, 0] = pixels[0, :-1], pixels[:-1, 0], pixels[0, 0]
    return {
        "jpeg": tf.io.decode_jpeg(file.getvalue()).numpy(),  # Pillow decodes it a little differently.
        "shift": shifted,
        "brighten": np.minimum(255, np.rint(pixels * 1.05)),
        "mirror": np.asarray(ImageOps.mirror(picture)),
    }


def test_scores_are_those_of_images_that_pillow_changes(folder, small_model, tmp_path):
    model = keras.models.load_model(small_model)
    pictures = [Image.open(folder / f"{number}.png") for number in range(COUNT)]
    # At most 20 of so few images are changed; which ones does not matter to bounds over all.
    found = run(folder, small_model, tmp_path / "out")
    assert found["images"] == 20
    for name, change in found["changes"].items():
        pixels = np.stack([changed(picture)[name] for picture in pictures]).astype(np.float32)
        scores = model.predict([np.stack([np.asarray(picture, np.float32) for picture in pictures]), pixels], verbose=0)[:, 0]
        assert np.min(np.abs(scores - change["score_min"])) < 1e-5
        assert scores.min() - 1e-5 <= change["score_min"] <= change["score_mean"] <= scores.max()


@pytest.mark.parametrize("beam_args", [[], SUBPROCESS_WORKERS], ids=["one process", "workers"])
def test_the_sample_does_not_depend_on_blocks_or_workers(beam_args, folder, small_model, tmp_path):
    reference = run(folder, small_model, tmp_path / "reference")
    found = run(folder, small_model, tmp_path / "out", *beam_args, block_rows=5, batch_size=4)
    for name, change in reference["changes"].items():
        assert found["changes"][name] == pytest.approx(change, abs=1e-6)


def test_a_model_that_rejects_an_image_saved_again_is_reported(folder, small_model, tmp_path, capsys):
    """Above the score of the noisy pictures with their JPEG selves, and below f(x, x)."""
    words = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--threshold", "0.87"]) == 0
    steadiness = json.loads((tmp_path / "out" / "_summary.json").read_text())["steadiness"]
    assert steadiness["verdict"] == "unsteady" and steadiness["changes"]["jpeg"]["rejected"] > 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"NOT STEADY. Changes that people don't see decide: {steadiness['changes']['jpeg']['rejected']} of 20 images" in said
    assert "The model is not steady" in (tmp_path / "out" / "_report.html").read_text()


def test_it_can_be_turned_off(folder, small_model, tmp_path, capsys):
    words = ["--manifest", str(folder / "pairs.csv"), "--model", small_model, "--output", str(tmp_path / "out")]
    assert main([*words, "--steadiness-images", "0"]) == 0
    assert "Steady" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "_summary.json").read_text())["steadiness"] is None
    assert main([*words, "--steadiness-images", "-3", "--overwrite"]) == 2
    assert "--steadiness-images is -3; give 0, for none, to 2,000" in capsys.readouterr().err


def test_the_doctor_changes_the_images_that_it_is_given(folder, small_model, capsys):
    main(["doctor", "--model", small_model, "--images", str(folder), "--threshold", "0.87", "--json"])
    found = json.loads(capsys.readouterr().out)["steadiness"]
    assert found["images"] >= COUNT and found["rejected_after_jpeg"] > 0
