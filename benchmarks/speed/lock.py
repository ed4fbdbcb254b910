"""How long Python's interpreter lock is held for an image, and how busy readers can keep a fast device.

One thread at a time runs Python in a process, whatever its cores. So a process reads at most as many images a second as the
time for which it holds the lock, for each of them, allows. py-spy looks from outside, many times a second, whether the lock
is held, while batchverify reads, checks and stacks images for an encoder that does nothing. That takes a quiet machine: other
work keeps a thread waiting also while it has the lock. So the decoder of batches, which holds no lock, does nothing either.

The last table is of an encoder that sleeps as long as a device of a given speed would compute. The first row is measured on
the cores that there are. The others are arithmetic: the least of what the cores decode, what the lock lets through, and what
the device takes.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorflow as tf
from PIL import Image

from batchverify.config import ModelConfig, ScoringConfig
from batchverify.images.decode import UndecodedImage
from batchverify.images.loaders import decide_loading
from batchverify.images.reader import ImageReader
from batchverify.model.facts import ModelFacts
from batchverify.model.preprocessing import Preprocessing
from batchverify.pipeline.inference_metrics import InferenceLog
from batchverify.pipeline.keras_network import KerasNetwork
from batchverify.worker_stats import WorkerStats
from benchmarks.speed.images import SIZES, ensure_images

_SIDE, _EMBEDDING, _MOST = 224, 101, 10**9
_FILES, _PHOTOS, _PHOTO_PIXELS = 256, 32, 10**6
_SAMPLES_A_SECOND, _CALLS = 500, 8
_CORES = (2, 4, 8, 16)
_UPRIGHT = {0x010F: "Maker", 0x0110: "Model", 0x0112: 1}  # What a camera writes, in tags of EXIF.
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG": (".jpg", {"quality": 90}),
    "JPEG with EXIF": (".jpg", {"quality": 90, "exif": _UPRIGHT}),
    "progressive JPEG": (".jpg", {"quality": 90, "progressive": True}),
    "PNG": (".png", {}),
    "WebP": (".webp", {"quality": 90}),
}
PATHS = {
    "colour, stretched": ModelConfig(loader="tf"),
    "with antialiasing": ModelConfig(loader="tf", resize="bilinear-antialias"),
    "grey": ModelConfig(loader="tf", color="grey"),
    "cropped": ModelConfig(loader="tf", fit="crop"),
    "padded": ModelConfig(loader="tf", fit="pad"),
}


class DoneDecoder:
    """Stands for a decoder on cores that do nothing else: it takes the files, and gives the pixels of others at once."""

    def __init__(self, preprocessing: Preprocessing):
        self._layout = preprocessing.layout()
        self._pixels = np.zeros((ScoringConfig().batch_size, *preprocessing.image_shape), self._layout.pixel_dtype)

    def __call__(self, files: Sequence[UndecodedImage]) -> list[np.ndarray]:
        """Returns pixels for each file."""
        tf.constant([file.data for file in files])  # The decoder does this under the lock, and the rest without it.
        return [self._layout.with_channels(image) for image in self._pixels[: len(files)]]


class SleepingModel:
    """Stands for a device that encodes so many images a second, one batch at a time; None for one that takes no time."""

    def __init__(self, preprocessing: Preprocessing, images_per_second: float | None):
        self.preprocessing, self._speed, self._device = preprocessing, images_per_second, threading.Lock()
        self.images_at_once = ScoringConfig.batch_size
        shape = preprocessing.height, preprocessing.width, preprocessing.channels
        self.facts = ModelFacts("null", "", shape, _EMBEDDING, 4 * _EMBEDDING, "null", 1, 0, "", runtime="numpy")

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Returns zeros `(n, 101)` after the time that the device takes."""
        if self._speed is not None:
            with self._device:
                time.sleep(len(images) / self._speed)
        return np.zeros((len(images), _EMBEDDING), np.float32)

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns ones `(n,)`."""
        return np.ones(len(left), np.float32)


def print_lock(cache: Path, size: str, kinds: Sequence[str], seconds: float, device: float) -> None:
    """Prints the time for each kind of file, and the share of its time that a device is busy.

    Args:
        cache: The folder of the pictures.
        size: The size of the pictures, one of `SIZES`.
        kinds: Names of `KINDS`; the shares are those of the first one.
        seconds: The time to look at the lock for, at each kind.
        device: The images that the device encodes in a second.
    """
    print("| files | path | lock held, µs an image | ceiling of a process, images/s | processor, µs an image |")
    print("| --- | --- | --- | --- | --- |")
    found: list[tuple[float, float]] = []
    count = _PHOTOS if SIZES[size][0] * SIZES[size][1] > _PHOTO_PIXELS else _FILES
    for kind in kinds:
        paths = ensure_kind(cache, size, kind, count)
        for name, config in PATHS.items():
            held = lock_seconds(functools.partial(encode, make_network(config, decodes=False), paths), seconds)
            processor = processor_seconds(functools.partial(encode, make_network(config), paths)) / count
            found.append((held, processor))
            ceiling = f"{1 / held:,.0f}" if held else "no sample"
            print(f"| {kind} {size} | {name} | {1e6 * held:.0f} | {ceiling} | {1e6 * processor:.0f} |", flush=True)
    _print_busy_shares(ensure_kind(cache, size, kinds[0], count), *found[0], device, seconds)


def ensure_kind(cache: Path, size: str, kind: str, count: int) -> list[str]:
    """Returns the paths of so many files of a kind, made now where they are not there yet."""
    ending, settings = KINDS[kind]
    folder = cache / f"lock-{size}-{kind.replace(' ', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tags := settings.get("exif"), dict):
        exif = Image.Exif()
        exif.update(tags)
        settings = {**settings, "exif": exif}
    paths = []
    for path in ensure_images(cache, SIZES[size], count, seed=0):
        paths.append(str(folder / Path(path).with_suffix(ending).name))
        if not Path(paths[-1]).exists():
            with Image.open(path) as image:
                image.save(paths[-1], **settings)  # type: ignore[arg-type]
    return paths


def make_network(config: ModelConfig, images_per_second: float | None = None, decodes: bool = True) -> KerasNetwork:
    """Returns what a run reads images with, and a model that only sleeps.

    Args:
        config: The loader, its settings, and the layout.
        images_per_second: The speed of the model; None for one that takes no time.
        decodes: Whether files that wait for the batch are decoded.
    """
    color, fit = config.color or "rgb", config.fit or "stretch"
    preprocessing = Preprocessing(_SIDE, _SIDE, 3, "0..255", color, decide_loading(config), fit, "")
    stats = WorkerStats()
    model = SleepingModel(preprocessing, images_per_second)
    decoder = preprocessing.batch_decoder(_MOST) if decodes else DoneDecoder(preprocessing)
    reader = ImageReader(preprocessing.layout(), _MOST, _MOST, stats=stats, decode_batch=decoder)
    return KerasNetwork(model, reader, ScoringConfig(steadiness_images=0), stats, InferenceLog())  # type: ignore[arg-type]


def encode(network: KerasNetwork, paths: Sequence[str]) -> int:
    """Encodes files as a run does; returns their number."""
    images = network.encode(pa.array(paths))
    if set(images["status"].to_pylist()) != {0}:
        raise ValueError("an image could not be read")
    return len(paths)


def processor_seconds(call: Callable[[], object]) -> float:
    """Returns the processor time of a call, over all threads; the median of several, after one that warms up."""
    found = []
    for _ in range(_CALLS + 1):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return statistics.median(found[1:])


def lock_seconds(call: Callable[[], int], seconds: float) -> float:
    """Returns for how many seconds the lock is held for each of what `call` counts."""
    call()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "samples")
        samples = round(_SAMPLES_A_SECOND * seconds)
        watcher = _start_watcher(found, seconds)
        started, count = time.perf_counter(), 0
        while watcher.poll() is None:
            count += call()
        elapsed = time.perf_counter() - started
        if watcher.returncode:
            sys.exit("py-spy failed; it needs the right to look into processes (root, or --cap-add SYS_PTRACE in a container).")
        held = sum(int(line.rpartition(" ")[2]) for line in found.read_text().splitlines())
    return held / samples * elapsed / count


def _start_watcher(output: Path, seconds: float) -> subprocess.Popen:
    where = ["--pid", str(os.getpid()), "--output", str(output), "--format", "raw"]
    how = ["--gil", "--nonblocking", "--rate", str(_SAMPLES_A_SECOND), "--duration", f"{seconds:g}"]
    return subprocess.Popen(["py-spy", "record", *where, *how], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _print_busy_shares(paths: Sequence[str], held: float, processor: float, device: float, seconds: float) -> None:
    network, count = make_network(next(iter(PATHS.values())), device), 0
    encode(network, paths)
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        count += encode(network, paths)
    print(f"\n| cores | images/s | share of its time that a device of {device:,.0f} images/s is busy |")
    print("| --- | --- | --- |")
    cores = len(os.sched_getaffinity(0))
    print(f"| {cores}, measured | {count / elapsed:,.0f} | {count / elapsed / device:.0%} |")
    for cores in _CORES:
        rate = min(cores / processor, 1 / held if held else device, device)
        print(f"| {cores}, by arithmetic | {rate:,.0f} | {rate / device:.0%} |")
