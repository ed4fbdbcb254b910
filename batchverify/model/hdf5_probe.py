"""Reads all of an HDF5 file: `python hdf5_probe.py PATH FOLDER…`, or `-` for standard input; modules are in the folders, too.

The HDF5 library can crash, or run without end, on a damaged file. So this runs in a process of its own, and the process that
starts it survives; it imports nothing of this package. Every other fault of the file is left to the caller: then this process
ends with exit code 0.
"""

from __future__ import annotations

import contextlib
import io
import sys

# An isolated interpreter leaves PYTHONPATH out, where h5py may be.
sys.path += sys.argv[2:]

import h5py

_ALWAYS_READ_BYTES = 2**30
_MAX_EXPANSION = 100


def read_all(group: h5py.Group, max_bytes: int, visited: set[int]) -> None:
    """Reads all attributes below `group`, and all datasets of at most `max_bytes` bytes.

    Args:
        group: The group to begin with.
        max_bytes: The largest size of a dataset that is read.
        visited: The addresses of the groups that were read before.
    """
    _read_attributes(group)
    address = h5py.h5o.get_info(group.id).addr
    if address in visited:
        return
    visited.add(address)
    for key in group:
        with contextlib.suppress(Exception):
            if isinstance(group.get(key, getlink=True), h5py.HardLink):
                item = group[key]
                if isinstance(item, h5py.Group):
                    read_all(item, max_bytes, visited)
                elif isinstance(item, h5py.Dataset):
                    _read_attributes(item)
                    if not item.external and not item.is_virtual and item.size * item.dtype.itemsize <= max_bytes:
                        item[()]


def _read_attributes(item: h5py.HLObject) -> None:
    for name in item.attrs:
        with contextlib.suppress(Exception):
            item.attrs[name]


if __name__ == "__main__":
    with contextlib.suppress(Exception):
        data = sys.stdin.buffer.read() if sys.argv[1] == "-" else None
        with h5py.File(sys.argv[1] if data is None else io.BytesIO(data), "r") as file:
            size = file.id.get_filesize() if data is None else len(data)
            read_all(file, max(_ALWAYS_READ_BYTES, _MAX_EXPANSION * size), set())
