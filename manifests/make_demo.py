"""Draws the demo's images and writes its manifests: `python manifests/make_demo.py`.

All files depend on one seed: a second run writes the same files.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq

from batchverify.demo import characters

SEED, ALPHABETS, CHARACTERS, WRITERS = 7, 3, 8, 4
PAIRS_OF_EACH_KIND = 60


def main() -> None:
    here = Path(__file__).parent
    rng = np.random.default_rng(SEED)
    drawn = _draw_images(here / "images", rng)
    rows = [*_pairs(drawn, rng), *_special_cases(here / "images", drawn)]
    with open(here / "demo.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["pair_id", "left", "right", "genuine"])
        writer.writerows([f"{number:05d}", *row] for number, row in enumerate(rows))
    text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(["pair_id", "genuine"], "string"))
    pq.write_table(pyarrow.csv.read_csv(here / "demo.csv", convert_options=text), here / "demo.parquet")


def _draw_images(folder: Path, rng: np.random.Generator) -> dict[tuple[int, int], list[str]]:
    """Draws the images and returns their names, one for each writer, by alphabet and character."""
    folder.mkdir(exist_ok=True)
    drawn: dict[tuple[int, int], list[str]] = {}
    for alphabet in range(ALPHABETS):
        for number, character in enumerate(characters.invent_alphabet(rng, CHARACTERS)):
            names = [f"a{alphabet}_c{number}_w{writer}.png" for writer in range(WRITERS)]
            for name in names:
                characters.draw(character, rng).save(folder / name, optimize=True)
            drawn[alphabet, number] = [f"images/{name}" for name in names]
    return drawn


def _pairs(drawn: dict[tuple[int, int], list[str]], rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Returns genuine pairs, and impostor pairs whose characters are of one alphabet: left, right and label of each."""
    rows = []
    for _ in range(PAIRS_OF_EACH_KIND):
        alphabet, characters_of_pair = rng.integers(ALPHABETS), rng.choice(CHARACTERS, 2, replace=False)
        character, impostor = (drawn[alphabet, number] for number in characters_of_pair)
        left, right = rng.choice(WRITERS, 2, replace=False)
        rows.append((character[left], character[right], "1"))
        rows.append((character[left], impostor[right], "0"))
    return rows


def _special_cases(folder: Path, drawn: dict[tuple[int, int], list[str]]) -> list[tuple[str, str, str]]:
    """Returns a pair of identical images, a missing file, a corrupt one, and a row that names no image."""
    whole = (folder / "a0_c0_w0.png").read_bytes()
    (folder / "same_bytes_as_a0_c0_w0.png").write_bytes(whole)
    (folder / "corrupt.png").write_bytes(whole[: len(whole) // 2])
    first = drawn[0, 0]
    return [
        (first[0], "images/same_bytes_as_a0_c0_w0.png", "1"),
        (first[0], first[0], "1"),
        (first[0], "images/no_such_file.png", "1"),
        ("images/corrupt.png", first[1], "1"),
        (first[0], "", ""),
    ]


if __name__ == "__main__":
    main()
