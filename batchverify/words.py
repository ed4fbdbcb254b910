"""Counts in words: `1 row`, `2 rows`, `1 of 5 rows is`."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, which is in the singular for 1: `counted(2, "row")` is `2 rows`."""
    return f"{number:,} {noun if number == 1 else f'{noun}s'}"


def counted_of(part: int, total: int, noun: str) -> str:
    """Returns a part of a number with its noun: `0 of 1 row`, `1 of 5 rows`."""
    return f"{part:,} of {counted(total, noun)}"


def agree(part: int, singular: str, plural: str, total: int | None = None) -> str:
    """Returns the verb behind a count, or behind a part of a total: `1 of 5 is`, `0 of 1 is`, `0 of 5 are`."""
    return singular if part == 1 or total == 1 else plural
