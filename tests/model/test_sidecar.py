"""A sidecar comes from whoever made the model: it is read as what strangers write."""

import os

import pytest

from batchverify.errors import PreflightError
from batchverify.model.sidecar import read_sidecar, sidecar_path


@pytest.mark.parametrize(
    "text",
    [
        '{"custom_object": ["A=l1", 3]}',
        '{"lambda": [null]}',
        '{"image_size": ["8", 8]}',
        '{"image_size": [true, 8]}',
        '{"threshold": NaN}',
        '{"golden": [{"left": "a.png", "right": "b.png", "score": true}]}',
        '{"golden": [{"left": "a.png", "right": "b.png", "score": 0.5, "tolerance": Infinity}]}',
        f'{{"golden": [{{"left": "a.png", "right": "b.png", "score": 1{"0" * 400}}}]}}',
        '{"custom_object": "A=module:attribute"}',
        "[" * 100_000,
        " " * 2**21,
    ],
)
def test_what_it_may_not_state_is_refused_in_one_sentence(text, tmp_path):
    model = str(tmp_path / "model.keras")
    with open(sidecar_path(model), "w", encoding="utf-8") as file:
        file.write(text)
    with pytest.raises(PreflightError) as refusal:
        read_sidecar(model)
    assert len(refusal.value.problems) == 1


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    model = str(tmp_path / "model.keras")
    os.mkfifo(sidecar_path(model))
    with pytest.raises(PreflightError, match="a pipe"):
        read_sidecar(model)
