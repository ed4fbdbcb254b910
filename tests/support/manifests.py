"""Manifests that several tests draw."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


def write_pairs(folder: Path, pictures: Path, count: int = 57) -> Path:
    """Writes `pairs.csv` into `folder`, with `count` pairs of the ten images in `pictures`, a folder in it."""
    rng = np.random.default_rng(1)
    names = [f"{pictures.name}/p{number}.png" for number in range(10)]
    frame = pd.DataFrame({side: [names[i] for i in rng.integers(10, size=count)] for side in ("left", "right")})
    frame.to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


def draw_shades(folder: Path, rng: np.random.Generator, count: int, noise: int) -> np.ndarray:
    """Writes `0.png` and so on, pictures of 16×16 pixels with one noisy colour each, and returns the colours, `(count, 3)`."""
    shades = rng.integers(0, 256, (count, 3))
    for number, shade in enumerate(shades):
        grain = rng.integers(-noise, noise + 1, (16, 16, 3))
        Image.fromarray(np.clip(shade + grain, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return shades
