"""The options that benchmarks of whole runs share."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.speed.images import SIZES
from benchmarks.speed.manifests import CASES
from benchmarks.speed.networks import NETWORKS


def add_course_options(parser: argparse.ArgumentParser, case: str, network: str) -> None:
    """Adds what is run on, how often, and where the figures go.

    Args:
        parser: The parser of the benchmark.
        case: default of `--case`.
        network: default of `--network`.
    """
    parser.add_argument("--case", choices=CASES, default=case, help="shape of the manifest")
    parser.add_argument("--network", choices=NETWORKS, default=network, help="MobileNetV2: 0.35 at 96, or 1.0 at 224 pixels")
    parser.add_argument("--image-size", choices=SIZES, default="250x250", help="of the JPEG files")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the case's 6,000 pairs and of its images")
    parser.add_argument("--rounds", type=int, default=3)
    cache = Path(tempfile.gettempdir()) / "batchverify-benchmark"
    parser.add_argument("--cache", type=Path, default=cache, help="folder of the images and networks, which are made once")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file of all figures")
    parser.add_argument("--seed", type=int, default=0)
