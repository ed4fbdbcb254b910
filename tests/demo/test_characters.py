"""The demo's data comes from its committed generator."""

import numpy as np

from batchverify.demo import characters


def test_the_same_seed_draws_the_same_characters():
    first, again = (
        [np.asarray(characters.draw(c, rng)) for c in characters.invent_alphabet(rng, 4)]
        for rng in (np.random.default_rng(9), np.random.default_rng(9))
    )
    np.testing.assert_array_equal(first, again)
    assert all(0.02 < 1 - drawing.mean() < 0.3 for drawing in first)


def test_the_demos_images_are_what_the_generator_draws(demo):
    from PIL import Image

    rng = np.random.default_rng(7)
    character = characters.invent_alphabet(rng, 8)[0]
    np.testing.assert_array_equal(
        np.asarray(characters.draw(character, rng)), np.asarray(Image.open(demo / "images" / "a0_c0_w0.png"))
    )
