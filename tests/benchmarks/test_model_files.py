"""Each kind of model file that strangers have scores what its network scores, or is refused."""

import numpy as np
import pytest

from batchverify.config import ModelConfig
from batchverify.errors import PreflightError
from batchverify.model.load import load_model
from benchmarks.model_files import KINDS, measure

pytestmark = pytest.mark.benchmarks
REFUSED = ("an autoencoder", "a classifier of ten classes between pairs")


@pytest.mark.parametrize("kind", KINDS, ids=[str(number) for number in range(len(KINDS))])
def test_a_file_scores_what_its_network_scores(kind, tmp_path):
    asked, said, difference = measure(kind, tmp_path)
    if kind.name in REFUSED:
        assert difference is None and (said or asked)
    else:
        assert difference is not None and difference < 1e-5
        assert asked  # None of them says everything itself.


def test_scores_of_other_weights_would_differ(tmp_path):
    """The comparison could fail: a network with another guard is told apart."""
    kind = next(kind for kind in KINDS if "without a guard" in kind.name)
    path, own = kind.make(tmp_path)
    with pytest.raises(PreflightError):
        load_model(ModelConfig(model=path, lambdas=("l1",), pixels="0..1"))
    model = load_model(ModelConfig(model=path, pixels="-1..1", lambdas=("euclidean",), output_is="distance"))
    images = model.preprocessing.as_loaded(np.arange(6 * 64 * 96).reshape(6, 64, 96, 1) % 251).astype("float32")
    found = model.compare(model.encode(images), model.encode(images[::-1]))
    assert abs(found - own(images, images[::-1])).max() > 1e-3
