"""A sidecar comes from whoever made the model: it is read as what strangers write."""

import json
import math
import os

import pytest

from batchverify.errors import PreflightError
from batchverify.model.sidecar import read_sidecar, sidecar_path


def calibration(**changes) -> str:
    """A sidecar whose calibration is whole but for the changes."""
    whole = {
        "version": 1, "method": "logistic", "knots": [[0.1, -1.0], [0.9, 1.0]], "run_id": "a", "model_digest": "sha256:0",
        "settings": {}, "genuine": 30, "impostor": 30,
    }  # fmt: skip
    return json.dumps({"calibration": whole | changes})


def test_a_whole_calibration_is_read(tmp_path):
    model = str(tmp_path / "model.keras")
    with open(sidecar_path(model), "w", encoding="utf-8") as file:
        file.write(calibration())
    found = read_sidecar(model).calibration
    assert found is not None and found.knots == ((0.1, -1.0), (0.9, 1.0))


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
        '{"calibration": 3}',
        '{"calibration": {"version": 1}}',
        '{"calibration": {"version": 9}}',
        calibration(knots=[[0.1, -1]]),
        calibration(knots=[[0.1, -1], [0.1, 1]]),
        calibration(knots=[[0.1, 1], [0.9, -1]]),
        calibration(knots=[[0, -1], [0.9, 1]]),
        calibration(knots=[[0.1, -1], [0.9, math.inf]]),
        calibration(knots=[[0.1, -1], [0.9, 10**400]]),
        calibration(knots=[[0.1, -1], [0.9, "1"]]),
        calibration(method="other"),
        calibration(run_id="\u202e"),
        calibration(settings={"preprocess_": "x"}),
        calibration(genuine=True),
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
