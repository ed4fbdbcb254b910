"""The pipeline without its network: how many rows a second the two shuffles pass, and in how much memory.

    python -m benchmarks.shuffle --pairs 1000000 --images 50000

Every image gets an embedding made from its URI, nothing is fetched; reading, both shuffles, comparison (one dot
product a row), the identity check, Parquet and the summary are the real ones.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from batchverify.config import VerificationConfig
from batchverify.inference import NetworkLoader, encoded_images
from batchverify.manifest import plan_manifest
from batchverify.pipeline import build, image_table
from batchverify.scores import RunDirectory

EMBEDDING_SIZE = 101


class NullNetwork:
    """Embeds an image by its name, without looking at it."""

    encodings_per_image, encodings_per_pair = 1, 0

    def encode(self, uris: pa.Array) -> pa.Table:
        """See `batchverify.inference.Network`."""
        names = pd.util.hash_array(uris.to_numpy(zero_copy_only=False), categorize=False)
        embeddings = np.repeat(((names % 1000) / 1000).astype(np.float32)[:, None], EMBEDDING_SIZE, axis=1)
        count = len(uris)
        identity = np.ones(count, np.float32)
        return encoded_images(uris, np.zeros(count, np.int8), [None] * count, [None] * count, identity, embeddings)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """See `batchverify.inference.Network`."""
        return np.exp(-np.abs(left - right).sum(axis=1) / EMBEDDING_SIZE)


def write_manifest(path: Path, pairs: int, images: int, seed: int = 0) -> None:
    """Writes a CSV manifest of random pairs."""
    rng = np.random.default_rng(seed)
    names = np.array([f"/images/{number:08d}.jpg" for number in range(images)])
    left, right = (pa.array(names[rng.integers(images, size=pairs)]) for _ in range(2))
    pa.csv.write_csv(pa.table({"left": left, "right": right}), path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows a second through the shuffles, with a null network.")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "pairs.csv"
        write_manifest(manifest, options.pairs, options.images)
        config = VerificationConfig(manifests=(str(manifest),), output=f"{folder}/scores")
        started = time.perf_counter()
        pipeline = beam.Pipeline(argv=["--runner=FnApiRunner"])
        plan = plan_manifest(config)
        table = image_table(pipeline, plan)
        held = table and table.get()
        build(pipeline, config, plan, {"threshold": 0.5, "run_id": config.run_id}, NetworkLoader(NullNetwork), table)
        with RunDirectory(config.output).claimed(config.run_id):
            pipeline.run().wait_until_finish()
        seconds = time.perf_counter() - started
        del held
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.pairs:,} pairs over {options.images:,} images: {seconds:.1f} s", end=", ")
    print(f"{options.pairs / seconds:,.0f} rows/s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
