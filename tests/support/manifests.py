"""Manifests that several tests draw."""

from pathlib import Path

import numpy as np
import pandas as pd


def write_pairs(folder: Path, pictures: Path, count: int = 57) -> Path:
    """Writes `pairs.csv` into `folder`, with `count` pairs of the ten images in `pictures`, a folder in it."""
    rng = np.random.default_rng(1)
    names = [f"{pictures.name}/p{number}.png" for number in range(10)]
    frame = pd.DataFrame({side: [names[i] for i in rng.integers(10, size=count)] for side in ("left", "right")})
    frame.to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"
