"""The field's lists of pairs: those of Labeled Faces in the Wild, and a label and two paths in each line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from batchverify.errors import PreflightError

ORDERS = ("label-left-right", "left-right-label")
_LONGEST_LINE = 65_536
_LABELS = {"1": 1, "true": 1, "0": 0, "-1": 0, "false": 0}


class Pair(NamedTuple):
    """One pair of a list.

    Attributes:
        left: The path of one image.
        right: The path of the other image.
        genuine: 1 for a genuine pair, 0 for an impostor pair.
        fold: The number of the pair's fold, counted from 1; None if the list has no folds.
    """

    left: str
    right: str
    genuine: int
    fold: int | None = None


def read_lines(path: str) -> Iterator[str]:
    """Yields the lines of a text file without their ends.

    Raises:
        PreflightError: if the file is not UTF-8, or a line is so long that the file cannot be a list.
        OSError: if the file cannot be read.
    """
    with open(path, encoding="utf-8-sig", newline=None) as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(_LONGEST_LINE)
            except UnicodeDecodeError:
                raise PreflightError(f"{path}, near line {number}: it is not UTF-8; save the file as UTF-8.") from None
            if len(line) == _LONGEST_LINE:
                raise PreflightError(
                    f"{path}, line {number}: it is longer than {_LONGEST_LINE:,} characters; is it a list of pairs?"
                )
            if not line:
                return
            yield line.rstrip("\n")


def read_lfw_pairs(lines: Iterable[str], path: str, ending: str = ".jpg") -> Iterator[Pair]:
    """Yields the pairs of `pairs.txt` or `pairsDevTrain.txt` of Labeled Faces in the Wild.

    The header gives the number of folds and the number of pairs of each kind in a fold, or the latter alone. Each fold lists
    its genuine pairs, `name number number`, and then its impostor pairs, `name number name number`
    (http://vis-www.cs.umass.edu/lfw/README.txt).

    Args:
        lines: The lines of the file.
        path: The name of the file for messages.
        ending: The ending of the image files' names.

    Raises:
        PreflightError: with the number of the line that is wrong.
    """
    numbered = ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
    folds, pairs_of_kind, has_folds = _lfw_header(numbered, path)
    promised, read = 2 * folds * pairs_of_kind, 0
    for read, (number, fields) in enumerate(numbered, 1):
        if read > promised:
            raise PreflightError(f"{path}, line {number}: there are more pairs than the {promised} of the header.")
        fold, place = divmod(read - 1, 2 * pairs_of_kind)
        left, right = _lfw_images(fields, place < pairs_of_kind, f"{path}, line {number}", ending)
        yield Pair(left, right, int(place < pairs_of_kind), fold + 1 if has_folds else None)
    if read != promised:
        raise PreflightError(f"{path}: the header promises {promised} pairs, but there are {read}; get the whole file.")


def _lfw_header(numbered: Iterator[tuple[int, list[str]]], path: str) -> tuple[int, int, bool]:
    """Returns the number of folds, the number of pairs of each kind in a fold, and whether the header gives folds."""
    number, fields = next(numbered, (1, []))
    if len(fields) not in (1, 2) or not all(map(_is_number, fields)):
        raise PreflightError(f"{path}, line {number}: a header gives folds and pairs, '10 300', or pairs alone, '1100'.")
    *folds, pairs_of_kind = map(int, fields)
    return (folds[0] if folds else 1), pairs_of_kind, bool(folds)


def _lfw_images(fields: list[str], genuine: bool, where: str, ending: str) -> tuple[str, str]:
    """Returns the paths of the two images of a line."""
    layout = "name number number" if genuine else "name number name number"
    numbers = fields[1:] if genuine else fields[1::2]
    if len(fields) != len(layout.split()) or not all(map(_is_number, numbers)):
        raise PreflightError(f"{where}: it should be '{layout}', as the header counts the pairs.")
    names = (fields[0], fields[0] if genuine else fields[2])
    left, right = (f"{name}/{name}_{int(number):04d}{ending}" for name, number in zip(names, numbers, strict=True))
    return left, right


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def read_pair_list(lines: Iterable[str], path: str, order: str = ORDERS[0]) -> Iterator[Pair]:
    """Yields the pairs of a list with a label and two paths in each line, separated by tabs, commas or else blanks.

    Args:
        lines: The lines of the file.
        path: The name of the file for messages.
        order: One of `ORDERS`.

    Raises:
        PreflightError: with the number of the line that is wrong.
    """
    split: Callable[[str], list[str]] | None = None
    for number, line in enumerate(lines, 1):
        if line.strip():
            split = split or _splitter(line)
            yield _listed_pair([field.strip() for field in split(line)], order, f"{path}, line {number}")


def _splitter(line: str) -> Callable[[str], list[str]]:
    if "\t" in line:
        return lambda text: text.split("\t")
    if "," in line:
        return lambda text: next(csv.reader([text], skipinitialspace=True), [])
    return str.split


def _listed_pair(fields: list[str], order: str, where: str) -> Pair:
    if len(fields) != 3 or not all(fields):
        number = sum(map(bool, fields))
        raise PreflightError(f"{where}: there are {number} fields, not the three of {order}; separate them by tabs or commas.")
    label, left, right = fields if order == ORDERS[0] else [fields[2], *fields[:2]]
    if label.lower() not in _LABELS:
        (other_order,) = set(ORDERS) - {order}
        raise PreflightError(f"{where}: the label is '{label:.40}', not 1 or 0; see --order {other_order}, or correct it.")
    return Pair(left, right, _LABELS[label.lower()])
