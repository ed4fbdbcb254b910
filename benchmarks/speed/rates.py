"""What an image costs this machine, for the arithmetic of the limit: processor time to decode it, and to encode it.

    pip install -e '.[bench]'
    python -m benchmarks.speed.rates --network demo --image-size 250x250

Processor time, not wall time, multiplies by the cores. Other work on the machine still slows it, as it takes caches and
memory: 0.66 ms to decode on a quiet machine were 1.07 ms on a busy one. Then come the tables of `benchmarks.speed.lock`: for
how long an image keeps all other threads from running Python.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from batchverify.config import ModelConfig
from batchverify.images.decode import UndecodedImage
from batchverify.images.loaders import decide_loading
from batchverify.images.reader import ImageReader
from batchverify.images.tensorflow_loader import BatchDecoder
from batchverify.model.preprocessing import Preprocessing
from batchverify.model.start_tensorflow import start_tensorflow
from benchmarks.speed.images import SIZES, ensure_images
from benchmarks.speed.lock import KINDS, print_lock, processor_seconds
from benchmarks.speed.networks import CALIBRATION_IMAGES, NETWORKS, ensure_network
from benchmarks.speed.scripts.encoder import Parts
from benchmarks.speed.scripts.limit_threads import read_into

_BATCH = 64
_MOST_PIXELS = 10**8


def main() -> None:
    """Prints both times, and the rates that they allow."""
    parser = argparse.ArgumentParser(description="Processor time to decode and to encode an image.")
    parser.add_argument("--network", choices=NETWORKS, default="demo")
    parser.add_argument("--image-size", choices=SIZES, default="250x250")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "batchverify-benchmark")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="files to measure the lock with")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to look at each kind for")
    parser.add_argument("--device", type=float, default=12_000.0, help="images a second that a device encodes")
    options = parser.parse_args()
    start_tensorflow()  # It sets what a run sets.
    images = ensure_images(options.cache, SIZES[options.image_size], CALIBRATION_IMAGES, seed=0)
    parts = Parts(str(ensure_network(Path(images[0]).parent, options.network, images)))
    batch = np.empty((_BATCH, *parts.size, 3), np.float32)
    alone = processor_seconds(lambda: _decode_all(batch, images)) / _BATCH
    decode = processor_seconds(_as_batchverify(parts.size, list(images[:_BATCH]))) / _BATCH
    encode = processor_seconds(lambda: parts.encode(batch)) / _BATCH
    size = f"{options.image_size} to {parts.size[0]}x{parts.size[1]}"
    print(f"decode {size}, one at a time: {1000 * alone:.2f} ms, {1 / alone:,.0f}/s a core")
    print(f"decode {size}, as batchverify does: {1000 * decode:.2f} ms, {1 / decode:,.0f}/s a core")
    print(f"encode ({options.network}): {1000 * encode:.2f} ms, {1 / encode:,.0f}/s a core")
    print(f"limit on {options.cores} cores, both on them: {options.cores / (decode + encode):,.0f} images/s", end="; ")
    print(f"with the encoder on a device: {options.cores / decode:,.0f} images/s, or what the device encodes\n")
    print_lock(options.cache, options.image_size, options.kinds, options.seconds, options.device)


def _decode_all(batch: np.ndarray, paths: list[str]) -> None:
    for place, path in zip(batch, paths, strict=False):
        read_into(place, path)


def _as_batchverify(size: tuple[int, int], paths: list[str]) -> Callable[[], object]:
    """Returns what reads JPEG files, looks through each for traps, and decodes them in one call."""
    preprocessing = Preprocessing(*size, 3, "0..255", "rgb", decide_loading(ModelConfig()), "stretch", "")
    decoder = preprocessing.batch_decoder(_MOST_PIXELS)
    assert isinstance(decoder, BatchDecoder)
    reader = ImageReader(preprocessing.layout(), _MOST_PIXELS, _MOST_PIXELS, decode_batch=decoder)

    def decode_all() -> None:
        read = [reader.read_with_version(path, defer=True).image for path in paths]
        if files := [image for image in read if isinstance(image, UndecodedImage)]:
            decoder(files)

    return decode_all


if __name__ == "__main__":
    main()
