"""The training script, on a run too short to learn much."""

import json

import keras
import numpy as np

from batchverify import train
from batchverify.demo import characters
from batchverify.siamese import split_siamese


def test_a_short_training_gives_a_model_that_the_job_can_use(tmp_path):
    rng = np.random.default_rng(0)
    for alphabet in ("Seen", "Held_out"):
        for number, character in enumerate(characters.invent_alphabet(rng, 16)):
            folder = tmp_path / "images" / alphabet / f"character{number:02d}"
            folder.mkdir(parents=True)
            for writer in range(2):
                characters.draw(character, rng).save(folder / f"{writer}.png")
    output = tmp_path / "model.keras"
    short = ["--invented", "1", "--repeat", "1", "--steps", "2"]
    train.main(["--images", str(tmp_path / "images"), "--output", str(output), "--hold-out", "Held_out", *short])
    model = keras.models.load_model(output)
    weights, bias = model.get_layer("score").get_weights()
    assert (weights <= 0).all()
    image = rng.uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    identity = np.asarray(model([image, image])).item()
    np.testing.assert_allclose(identity, 1 / (1 + np.exp(-bias.item())), atol=1e-6)
    assert split_siamese(model).encoder.output_shape == (None, 101)
    figures = json.loads(output.with_suffix(".json").read_text())
    assert figures["held_out"] == ["Held_out"]
    np.testing.assert_allclose(figures["identity_score"], identity, atol=1e-5)
