"""Skewed manifests: nothing is encoded or sent more often than it must be, and nothing is held beyond a bound."""

import functools
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import batchverify
from batchverify.config import ScoringConfig, VerificationConfig
from batchverify.pipeline.encode import EncodeImages
from batchverify.pipeline.memory import EMBEDDING_BYTES_AT_ONCE
from batchverify.pipeline.network import NetworkLoader
from benchmarks.carried import Carried, count_carried
from benchmarks.shuffle import EMBEDDING_SIZE, NullNetwork, run_null, write_manifest
from benchmarks.skew import CASES

pytestmark = pytest.mark.slow

PAIRS, IMAGES, BLOCK_ROWS = 24_000, 6_000, 5_000  # 6,000 images are two buckets
WIDE = EMBEDDING_BYTES_AT_ONCE // 256


class LoggingNetwork(NullNetwork):
    """A null network that writes down what it is asked to encode, a file each time."""

    def __init__(self, folder: Path, embedding_bytes: int):
        super().__init__()
        self._folder, self.embedding_bytes = folder, embedding_bytes

    def encode(self, uris: pa.Array) -> pa.Table:
        (self._folder / str(uuid.uuid4())).write_text("\n".join(uris.to_pylist()))
        return super().encode(uris)


class Run:
    """One run of a skewed manifest, all that is known of it."""

    def __init__(self, folder: Path, case: str, shared: bool, embedding_bytes: int = 4 * EMBEDDING_SIZE):
        log = folder / "log"
        log.mkdir()
        self.tables = CASES[case](PAIRS, IMAGES)
        manifests = write_manifest(folder, self.tables)
        config = VerificationConfig(manifests=manifests, output=str(folder / "out"), block_rows=BLOCK_ROWS)
        load = functools.partial(LoggingNetwork, log, embedding_bytes)
        self.carried: dict[str, Carried] = {}
        if shared:
            run_null(config, load)  # In one process neither requests nor blocks are carried from step to step.
        else:
            self.carried = count_carried(lambda: run_null(config, load, shared=False), PAIRS)
        self.encoded = [path.read_text().splitlines() for path in log.iterdir()]
        self.output = folder / "out"

    def distinct_in_blocks(self) -> list[int]:
        """Returns how many distinct images each block of the manifest names."""
        blocks = [table.slice(start, BLOCK_ROWS) for table in self.tables for start in range(0, table.num_rows, BLOCK_ROWS)]
        return [len(set(block["left"].to_pylist()) | set(block["right"].to_pylist())) for block in blocks]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory) -> Callable[[str, bool], Run]:
    """Gives the run of a case, which is made once."""
    return functools.cache(lambda case, shared: Run(tmp_path_factory.mktemp("run"), case, shared))


@pytest.mark.parametrize("shared", [True, False], ids=["one table", "sent"])
@pytest.mark.parametrize("case", CASES)
def test_each_image_is_encoded_once_and_each_row_scored_once(case, shared, run_of, read_scores):
    run = run_of(case, shared)
    pairs = pa.concat_tables(run.tables).to_pandas()
    encoded = Counter(uri for uris in run.encoded for uri in uris)
    assert set(encoded) == set(pairs["left"]) | set(pairs["right"]) and set(encoded.values()) == {1}
    scores = read_scores(run.output)
    assert len(scores) == PAIRS == len(scores[["manifest_file", "manifest_row"]].drop_duplicates())
    assert (scores[["left", "right"]].to_numpy() == pairs.to_numpy()).all()
    left, right = (_embeddings(pairs[side]) for side in ("left", "right"))
    np.testing.assert_allclose(scores["score"], NullNetwork().compare(left, right), rtol=1e-6)


def _embeddings(uris: pd.Series) -> np.ndarray:
    column = NullNetwork().encode(pa.array(uris))["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(uris), -1)


@pytest.mark.parametrize("case", CASES)
def test_an_image_is_asked_for_and_sent_once_for_each_block_that_names_it(case, run_of):
    run = run_of(case, False)
    named = run.distinct_in_blocks()
    requests, answers = run.carried["requests"], run.carried["answers"]
    assert requests.rows == answers.rows == sum(named)
    assert requests.elements == answers.elements <= 2 * len(named)  # one for each bucket
    assert answers.bytes < answers.rows * (4 * EMBEDDING_SIZE + 100) + answers.elements * 2000
    assert run.carried["blocks"].elements == len(named)


@pytest.mark.parametrize("shared", [True, False], ids=["one table", "sent"])
def test_a_hot_bucket_is_encoded_in_parts(shared, tmp_path, read_scores):
    run = Run(tmp_path, "hot bucket", shared, embedding_bytes=WIDE)
    sizes = sorted(map(len, run.encoded))
    assert sum(sizes) == len({uri for uris in run.encoded for uri in uris}) > 5_900
    assert sizes[-1] == 256 and len(sizes) == -(-sum(sizes) // 256)
    assert len(read_scores(run.output)) == PAIRS
    if not shared:
        assert run.carried["answers"].rows == sum(run.distinct_in_blocks())
        assert run.carried["answers"].most_rows <= 256


def test_a_part_is_sent_before_the_next_one_is_encoded(tmp_path):
    names = [f"/images/{number}.jpg" for number in range(600)]
    loader = NetworkLoader(functools.partial(LoggingNetwork, tmp_path, WIDE))
    encode = EncodeImages(loader, ScoringConfig(stranger_pairs=0, steadiness_images=0), 1, "", EMBEDDING_BYTES_AT_ONCE)
    encode.setup()
    asked = [("all", pa.table({"uri": names})), ("last", pa.table({"uri": names[::-300]}))]
    found, logged = [], []
    for element in encode.process((0, asked)):
        if isinstance(element, tuple):
            found.append((element[0], element[1]["uri"].to_pylist()))
            logged.append(len(list(tmp_path.iterdir())))
    assert [key for key, _ in found] == ["all", "all", "last", "all", "last"]
    assert logged == [1, 2, 2, 3, 3]
    assert [uri for key, uris in found if key == "all" for uri in uris] == names
    assert [uri for key, uris in found if key == "last" for uri in uris] == [names[299], names[599]]


def test_parts_change_no_score(small_model, pictures, tmp_path, read_scores, monkeypatch):
    chosen = np.random.default_rng(2).integers(10, size=(2, 40))
    frame = pd.DataFrame(
        {side: [f"pictures/p{n}.png" for n in row] for side, row in zip(("left", "right"), chosen, strict=True)}
    )
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    found = []
    for bound in (EMBEDDING_BYTES_AT_ONCE, 3 * 4 * 12):  # the model's embeddings are twelve numbers
        monkeypatch.setattr("batchverify.pipeline.portable.EMBEDDING_BYTES_AT_ONCE", bound)
        config = VerificationConfig(
            manifests=(str(tmp_path / "pairs.csv"),), output=str(tmp_path / str(bound)), model=small_model
        )
        assert batchverify.run(config).counters["images_encoded"] == 10
        found.append(read_scores(config.output))
    np.testing.assert_allclose(found[0]["score"], found[1]["score"], atol=1e-6)
