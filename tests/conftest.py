"""What the tests share: a small trained-looking model, drawn images, and a way to read a run's scores."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest_plugins = ["tests.support.temporary_folder", "tests.support.models_loaded_once"]
_CACHE_HOME = pytest.StashKey[tempfile.TemporaryDirectory[str]]()
# What takes minutes to make or to fetch: engines, what Go and pip keep, and Matplotlib's list of fonts.
_KEPT_CACHES = ("batchverify-tests", "go-build", "pip", "matplotlib")
DEMO = Path(__file__).resolve().parents[1] / "manifests"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="repeat facts on more engines and in more combinations, too")


def pytest_xdist_auto_num_workers() -> int:
    """Returns one worker more than there are cores: tests of processes and servers wait for most of their time."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Has each library use one thread in a worker of pytest-xdist, as there is a worker for each core."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Has the program find no cache of models, because a test should not depend on an earlier one."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # Its environment is that of the process that started it.
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    session.config.stash[_CACHE_HOME] = cache_home = tempfile.TemporaryDirectory(prefix="batchverify-tests-")
    os.environ["XDG_CACHE_HOME"] = cache_home.name
    Path(cache_home.name, "batchverify").touch()
    for name in _KEPT_CACHES:
        (cache / name).mkdir(parents=True, exist_ok=True)
        Path(cache_home.name, name).symlink_to(cache / name)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Deletes the folder that stands for the user's cache."""
    if _CACHE_HOME in session.config.stash:
        session.config.stash[_CACHE_HOME].cleanup()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what repeats a fact, unless it is asked for, and puts files with slow tests first.

    At the end no worker then waits long for another one.
    """
    if not config.getoption("--exhaustive"):
        repeated = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=repeated)
        items[:] = [item for item in items if item not in repeated]
    slow = {"servers", "workers", "benchmarks", "processes", "slow"}
    ranks = {item.path: 2 for item in items}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        ranks[item.path] = min(ranks[item.path], 0 if "engines" in marks else 1 if marks & slow else 2)
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture(autouse=True)
def every_report_is_made(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test whose run could not make its report, because no run fails for that."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("batchverify.report.render")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    if not request.node.get_closest_marker("broken_report"):
        assert told == []


@pytest.fixture(scope="session")
def demo() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> str:
    """A Siamese network of a few hundred weights, for 16×16 RGB images, with an L1 head without positive weights."""
    import keras  # Tests that need no network start without TensorFlow.

    keras.utils.set_random_seed(3)
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255)(pixels)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = keras.layers.Flatten()(x)
    encoder = keras.Model(pixels, keras.layers.Dense(12, activation="sigmoid")(x), name="encoder")
    left, right = keras.Input((16, 16, 3), name="left"), keras.Input((16, 16, 3), name="right")
    score = keras.layers.Dense(1, activation="sigmoid", kernel_initializer=keras.initializers.Constant(-2.0),
                               bias_initializer=keras.initializers.Constant(2.0))  # fmt: skip
    model = keras.Model([left, right], score(keras.ops.abs(encoder(left) - encoder(right))))
    path = tmp_path_factory.mktemp("model") / "small.keras"
    model.save(path)
    return str(path)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder with ten noisy PNG files, p0.png to p9.png, of several sizes."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(10):
        noise = rng.integers(0, 256, (20 + number, 24, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"p{number}.png")
    return folder


@pytest.fixture(scope="session")
def read_scores() -> Callable[..., pd.DataFrame]:
    """Reads a run's scores as one frame, in manifest order."""

    def read(output) -> pd.DataFrame:
        frames = [pq.read_table(path).to_pandas() for path in sorted(Path(output).glob("scores-*.parquet"))]
        return pd.concat(frames).sort_values(["manifest_file", "manifest_row"], ignore_index=True)

    return read
