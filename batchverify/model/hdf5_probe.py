"""Reads all of an HDF5 file: `python hdf5probe.py PATH`, or `-` for standard input. Imports nothing of this package.

The HDF5 library can crash, or run without end, on a damaged file. Whoever starts this in a process of its own sees that,
and survives. What is merely wrong with a file is left to others; this ends well.
"""

from __future__ import annotations

import contextlib
import io
import sys

import h5py

_ALWAYS_READ_BYTES = 2**30


def read_all(group: h5py.Group, most_bytes: int, seen: set[int]) -> None:
    """Reads the attributes and datasets of `group` and of all groups in it, datasets of more than `most_bytes` excepted."""
    _read_attributes(group)
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        return
    seen.add(address)
    for key in group:
        with contextlib.suppress(Exception):
            if isinstance(group.get(key, getlink=True), h5py.HardLink):
                item = group[key]
                if isinstance(item, h5py.Group):
                    read_all(item, most_bytes, seen)
                elif isinstance(item, h5py.Dataset):
                    _read_attributes(item)
                    if not item.external and not item.is_virtual and item.size * item.dtype.itemsize <= most_bytes:
                        item[()]


def _read_attributes(item: h5py.HLObject) -> None:
    for name in item.attrs:
        with contextlib.suppress(Exception):
            item.attrs[name]


if __name__ == "__main__":
    with contextlib.suppress(Exception):
        data = sys.stdin.buffer.read() if sys.argv[1] == "-" else None
        with h5py.File(sys.argv[1] if data is None else io.BytesIO(data), "r") as file:
            read_all(file, max(_ALWAYS_READ_BYTES, 100 * (file.id.get_filesize() if data is None else len(data))), set())
