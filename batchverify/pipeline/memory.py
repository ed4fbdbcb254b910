"""How much memory a run needs, estimated from its manifest, and how much there is.

The factors are measured with `python -m benchmarks.shuffle`: in one process Beam's runner holds every row of the manifest
for the length of the run, at several stages at once, and this program one table of encoded images.
"""

from __future__ import annotations

from pathlib import Path

_COPIES_OF_ROWS = 5
_COPIES_OF_IMAGES = 2
# A worker of a distributed runner holds a block and its answers, as tables and as bytes.
_COPIES_IN_WORKER = 7
_BYTES_BESIDE_EMBEDDING = 120
# Of what is sent to one block, and of what one bucket is encoded into before it is answered.
EMBEDDING_BYTES_AT_ONCE = 256 * 2**20


def process_bytes(row_bytes: int, images: int, embedding_bytes: int) -> int:
    """Returns what a run in one process needs beside the libraries and the model.

    Args:
        row_bytes: of all rows of the manifest, as Arrow tables.
        images: how many distinct ones.
        embedding_bytes: of one of them.
    """
    return _COPIES_OF_ROWS * row_bytes + _COPIES_OF_IMAGES * images * (embedding_bytes + _BYTES_BESIDE_EMBEDDING)


def worker_bytes(row_bytes: int, images: int, embedding_bytes: int) -> int:
    """Returns what a worker of a distributed runner needs likewise, for the rows and images of its largest block."""
    return _COPIES_IN_WORKER * (row_bytes + images * (embedding_bytes + _BYTES_BESIDE_EMBEDDING))


def available_bytes() -> int | None:
    """Returns how much memory this process can still have, of the machine's and its control group's; None if nobody says."""
    found = [left for left in (_left_on_machine(), _left_in_group()) if left is not None]
    return min(found, default=None)


def _left_on_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_group() -> int | None:
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # another version of control groups, or none
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
