"""Runs with a store of embeddings that are killed again and again and started again, with a count of what they encode in all.

`benchmarks.faults` runs these cases. The images are links to the demo's, each under a name of its own, so that each is encoded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from batchverify.worker_stats import images_done, read_totals

KILLED_AT = (0.25, 0.5, 0.75)
MOST_ENCODINGS = 1.05
_TOLERANCE = 1e-6  # Images that are encoded in other batches give scores that differ by rounding.
_NOTHING = {"images_encoded": 0.0, "images_reused": 0.0, "images_failed": 0.0}
_SCORES = ("score", "identity_left", "identity_right")


def write_images(demo: Path, folder: Path, count: int) -> Path:
    """Makes `count` images under `folder`, and returns a manifest that names each of them once."""
    originals = [path for path in sorted((demo / "images").glob("*.png")) if _can_be_read(path)]
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        os.symlink(originals[number % len(originals)], folder / "images" / f"{number:06d}.png")
    manifest = folder / "pairs.csv"
    names = [f"images/{number:06d}.png" for number in range(count)]
    pd.DataFrame({"left": names[: count // 2], "right": names[count // 2 :]}).to_csv(manifest, index=False)
    return manifest


def _can_be_read(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except (OSError, SyntaxError):
        return False


def run_with_kills(start: Callable[[Mapping[str, str]], subprocess.Popen[bytes]], images: int, folder: Path) -> int:
    """Starts a run, kills it and its workers whenever a share of the images is done, starts it again, and lets it finish.

    Args:
        start: Starts the run, in a process group of its own, with variables of its environment.
        images: The number of images.
        folder: The folder for temporary files, in which the runs count what they do.

    Returns:
        How many images all runs have encoded together.

    Raises:
        RuntimeError: If a run ends by itself too early, or fails.
    """
    encoded = 0
    for number, share in enumerate((*KILLED_AT, None)):
        temporary = folder / f"tmp-{number}"
        temporary.mkdir(parents=True)
        process = start({"TMPDIR": str(temporary)})
        totals = _NOTHING
        while process.poll() is None and (share is None or images_done(totals) < share * images):
            time.sleep(0.02)
            totals = _totals(temporary) or totals
        if share is not None:
            if process.poll() is not None:
                raise RuntimeError(f"the run that was to be killed at {share:.0%} ended with {process.returncode}")
            os.killpg(process.pid, signal.SIGKILL)
            totals = _totals(temporary) or totals
        if process.wait() != 0 and share is None:
            raise RuntimeError(f"the last run ended with {process.returncode}")
        encoded += int(totals["images_encoded"])
    return encoded


def _totals(temporary: Path) -> dict[str, float]:
    """Returns the counts of the run that has its temporary files in a folder; none before it has any, and after its end."""
    with contextlib.suppress(OSError):
        for folder in temporary.glob("batchverify-run-*"):
            totals = read_totals(str(folder))
            if images_done(totals):
                return totals
    return {}


def are_equal(rows: pd.DataFrame, undisturbed: pd.DataFrame) -> bool:
    """Returns whether two runs have the same rows, with scores that differ by rounding at most."""
    others = [name for name in undisturbed.columns if name not in _SCORES]
    return rows[others].equals(undisturbed[others]) and all(
        np.allclose(rows[name], undisturbed[name], rtol=0, atol=_TOLERANCE, equal_nan=True) for name in _SCORES
    )


@contextlib.contextmanager
def s3_bucket() -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Gives the URI of an empty bucket of a server on this machine, the options that name the server, and its keys."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    client.create_bucket(Bucket="nights")
    try:
        yield "s3://nights", [f"--s3_endpoint_url={address}"], keys
    finally:
        server.stop()
