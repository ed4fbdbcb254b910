"""What a run in one process keeps in memory: images, and nothing of a row."""

import pytest

from benchmarks.shuffle import measure_alone

pytestmark = pytest.mark.benchmarks


def test_three_times_as_many_rows_of_the_same_images_take_the_same_memory():
    """The rows of three million pairs alone, kept in memory, would take 160 MiB more than those of one million."""
    fewer, more = (measure_alone(pairs, images=20_000) for pairs in (1_000_000, 3_000_000))
    assert more.peak_gib == pytest.approx(fewer.peak_gib, rel=0.1)
