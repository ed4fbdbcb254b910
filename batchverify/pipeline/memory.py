"""Estimates of how much memory a run needs, and how much there is.

The factors are measured with `python -m benchmarks.shuffle`. A run in one process holds some blocks of rows at a time,
however many rows there are, and one table of all encoded images.
"""

from __future__ import annotations

from pathlib import Path

from batchverify.images.pixel_budget import BYTES_PER_PIXEL

# What blocks of 131,072 rows take that are compared, checked and written at a time.
_BLOCKS_AT_ONCE_BYTES = 3 * 2**27
# A worker of a distributed runner holds a block and its encoded images, both as tables and as bytes.
_COPIES_IN_WORKER = 7
# The columns of an encoded image beside its embedding.
_OTHER_BYTES_PER_IMAGE = 120
# The place of an image's URI in the table of hashes of a run in one process, and what that has to spare.
_INDEX_BYTES_PER_IMAGE = 40
_GROUP_FOLDER = Path("/sys/fs/cgroup")
# The files of a control group with its limit, its use and its statistics, and the name of the unused cache in these.
_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
_DECODING_PIXELS_IF_UNKNOWN = 128_000_000
# The most embeddings that are sent to one block, and the most that are encoded before they are sent.
EMBEDDING_BYTES_AT_ONCE = 256 * 2**20
# The largest element that is sent on Flink, Spark and other portable runners. Flink sorts elements in a buffer of its managed
# memory, and fails if one is larger than the buffer. With 512 MiB for a task manager of two slots, a block of 14 MB passed, and
# one of 28 MB did not (`python -m benchmarks.engines --cluster flink --block-rows 524288`).
PORTABLE_ELEMENT_BYTES = 16 * 2**20
# The most embeddings that are sent to one block there. These engines hold all of a block in the memory of a task at once.
# Embeddings of 2,048 numbers passed with it where tasks had a heap of 2 GiB, and not where they had 512 MiB
# (`python -m benchmarks.engines --cluster flink --embedding-floats 2048 --pairs 100000 --images 20000 --task-mib 2048`).
PORTABLE_BLOCK_BYTES = 64 * 2**20


def process_bytes(images: int, embedding_bytes: int) -> int:
    """Returns how much a run in one process needs beside the libraries and the model.

    Args:
        images: The number of distinct images.
        embedding_bytes: The size of one embedding.
    """
    return _BLOCKS_AT_ONCE_BYTES + images * (embedding_bytes + _OTHER_BYTES_PER_IMAGE + _INDEX_BYTES_PER_IMAGE)


def worker_bytes(row_bytes: int, images: int, embedding_bytes: int) -> int:
    """Returns how much a worker of a distributed runner needs beside the libraries and the model.

    Args:
        row_bytes: The size of the rows of its largest block, as an Arrow table.
        images: The number of distinct images of that block.
        embedding_bytes: The size of one embedding.
    """
    return _COPIES_IN_WORKER * (row_bytes + images * (embedding_bytes + _OTHER_BYTES_PER_IMAGE))


def default_decoding_pixels() -> int:
    """Returns how many pixels a quarter of the memory that is left now can hold while they are decoded."""
    available = available_bytes()
    return _DECODING_PIXELS_IF_UNKNOWN if available is None else max(1, available // 4 // BYTES_PER_PIXEL)


def available_bytes() -> int | None:
    """Returns how much memory this process can still get from the machine and its control group; None if it is unknown."""
    known = [available for available in (_available_on_machine(), available_in_group(_GROUP_FOLDER)) if available is not None]
    return min(known, default=None)


def _available_on_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # The system is not Linux.
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def available_in_group(folder: Path) -> int | None:
    """Returns how much memory a control group, of version 1 or 2, still gives to its processes; None where it has no limit.

    Its use includes the cache of files. The kernel takes back from that what has not been used lately, such as images that
    were read once, before it refuses memory, so that this part is available. The rest of the cache, such as the code of
    libraries, is used all the time, and is not counted as available. Kubernetes counts in the same way.

    Args:
        folder: The folder that shows the group, or that of all controllers.
    """
    for limit_file, used_file, statistics_file, unused_cache in _GROUP_FILES:
        try:
            limit, used, statistics = ((folder / name).read_text() for name in (limit_file, used_file, statistics_file))
        except OSError:  # The machine has the other version of control groups, or none.
            continue
        if limit.strip() == "max":
            return None
        cache = next((int(line.split()[1]) for line in statistics.splitlines() if line.startswith(f"{unused_cache} ")), 0)
        return max(0, int(limit) - max(0, int(used) - cache))
    return None
