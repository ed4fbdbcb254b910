"""Directories of TIFF and EXIF: their entries, and those that take Pillow far more memory or time than they are long."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator

from PIL import ExifTags

Entry = tuple[int, int, int, int]  # Tag, type, count and offset.

EXIF = b"Exif\0\0"
_STRIPS, _MAX_STRIPS = (273, 324), 2**18  # The offsets of strips and of tiles.
_MAX_ENTRIES, _MAX_NUMBERS, _MAX_ALL_NUMBERS, _SLACK_BYTES = 2**16, 2**18, 2**20, 2**16
_MAX_DIRECTORIES, _MAX_STARTS, _MAX_PREFIXES = 10, 32, 10
# The bytes of each type of number in a directory (TIFF 6.0, section 2), and the types that Pillow keeps as bytes.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTE_TYPES, _INLINE_BYTES = (1, 2, 6, 7), 8
# The tags that say where a further directory begins, and the types of whole numbers, which Pillow takes for such a place.
_INNER_DIRECTORIES = frozenset({ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop})
_WHOLE_NUMBERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q"}
# What Pillow takes for the start of a directory, also with its bytes in the wrong order.
_DIRECTORY = re.compile(rb"II(?:\*\0|\0\*|\+\0)|MM(?:\0\*|\*\0|\0\+)")
_TOO_MANY_PREFIXES = f"a block of EXIF that begins {_MAX_PREFIXES} times"


def find_directory_hazard(block: bytes | memoryview, follow: bool = False) -> str | None:
    """Returns what would make Pillow's reader of TIFF and EXIF directories take far more memory or time than the block is long.

    Pillow copies what an entry names once for each entry, and turns numbers into Python objects.

    Args:
        block: The block that the directory is in, from its first byte.
        follow: Whether Pillow also reads the directories that the first one names.
    """
    starts, named, numbers = [_first_start(block)], 0, 0
    for start in starts:
        entries = list(_entries(block, start))
        if hazard := _find_entry_hazard(entries):
            return hazard
        if follow:
            starts += _inner_starts(block, entries).difference(starts)
            if len(starts) > _MAX_DIRECTORIES:
                return f"a directory of TIFF or EXIF that names more than {_MAX_DIRECTORIES} others"
        elsewhere = list(_stored_elsewhere(block, entries))
        named += sum(count * _TYPE_BYTES.get(kind, 1) for kind, count in elsewhere)
        counts = [count for kind, count in elsewhere if kind not in _BYTE_TYPES]
        numbers += sum(counts)
        if max(counts, default=0) > _MAX_NUMBERS:
            return f"a directory of TIFF or EXIF with more than {_MAX_NUMBERS} numbers in an entry"
    if named > 2 * len(block) + _SLACK_BYTES:
        return "a directory of TIFF or EXIF whose entries name far more bytes than it has"
    return f"a directory of TIFF or EXIF with more than {_MAX_ALL_NUMBERS} numbers" if numbers > _MAX_ALL_NUMBERS else None


def _find_entry_hazard(entries: list[Entry]) -> str | None:
    if len(entries) > _MAX_ENTRIES:
        return f"a directory of TIFF or EXIF with more than {_MAX_ENTRIES} entries"
    if any(count > _MAX_STRIPS for tag, _, count, _ in entries if tag in _STRIPS):
        return f"a TIFF file of more than {_MAX_STRIPS} strips"
    return None


def _stored_elsewhere(block: bytes | memoryview, entries: list[Entry]) -> Iterator[tuple[int, int]]:
    """Yields type and count of each entry whose value is not in the directory itself, but is somewhere in the block.

    Pillow leaves out a value that ends behind the block.
    """
    for _, kind, count, offset in entries:
        if _INLINE_BYTES < count * _TYPE_BYTES.get(kind, 1) <= len(block) - offset:
            yield kind, count


def find_exif_hazard(block: bytes) -> str | None:
    """Returns the hazard in a block of EXIF. Pillow takes away one prefix after another, and copies the rest each time."""
    for _ in range(_MAX_PREFIXES):
        if not block.startswith(EXIF):
            return find_directory_hazard(block)
        block = block[len(EXIF) :]
    return _TOO_MANY_PREFIXES


def find_hidden_hazard(data: bytes) -> str | None:
    """Returns the hazard in whatever Pillow may take for a block of EXIF in a file that has it at an unknown place."""
    if EXIF * _MAX_PREFIXES in data:
        return _TOO_MANY_PREFIXES
    starts = [found.start() for found in itertools.islice(_DIRECTORY.finditer(data), _MAX_STARTS + 1)]
    if len(starts) > _MAX_STARTS:
        return f"a file of more than {_MAX_STARTS} directories of EXIF"
    view = memoryview(data)  # Its slices are no copies.
    return next(filter(None, (find_directory_hazard(view[start:], follow=True) for start in starts)), None)


def directory_entries(block: bytes) -> Iterator[Entry]:
    """Yields tag, type, count and offset of each entry of the first directory (TIFF 6.0, section 2; BigTIFF is wider)."""
    return _entries(block, _first_start(block))


def _entries(block: bytes | memoryview, start: int) -> Iterator[Entry]:
    """Yields the entries of the directory that begins at `start`, at most one more than a directory may have."""
    _, length, entry = _formats(block)
    try:
        (entries,) = struct.unpack_from(length, block, start)
    except (struct.error, OverflowError):  # It begins behind the block.
        return
    first, width = start + struct.calcsize(length), struct.calcsize(entry)
    entries = min(entries, _MAX_ENTRIES + 1, (len(block) - first) // width)  # Pillow stops where the block ends early, too.
    yield from struct.iter_unpack(entry, block[first : first + entries * width])


def _first_start(block: bytes | memoryview) -> int:
    """Returns where the first directory begins; behind the block, if it is too short to say that."""
    head, _, _ = _formats(block)
    try:
        (start,) = struct.unpack_from(head, block)
    except struct.error:
        return len(block)
    return int(start)


def _inner_starts(block: bytes | memoryview, entries: list[Entry]) -> set[int]:
    """Returns where the directories begin that these entries name."""
    numbers = (_first_number(block, *entry) for tag, *entry in entries if tag in _INNER_DIRECTORIES)
    return {number for number in numbers if number is not None and number >= 0}


def _first_number(block: bytes | memoryview, kind: int, count: int, offset: int) -> int | None:
    """Returns the first number of an entry; None unless it is a whole number."""
    if kind not in _WHOLE_NUMBERS:
        return None
    order = _order(block)
    field = struct.pack(order + ("Q" if _is_big(block) else "L"), offset)  # A short value stands in the place of the offset.
    place = (field, 0) if count * _TYPE_BYTES[kind] <= len(field) else (block, offset)
    try:
        (number,) = struct.unpack_from(order + _WHOLE_NUMBERS[kind], *place)
    except (struct.error, OverflowError):  # It ends behind the block.
        return None
    return int(number)


def _formats(block: bytes | memoryview) -> tuple[str, str, str]:
    """Returns the formats of where the first directory begins, of the number of its entries, and of an entry."""
    order = _order(block)
    return (f"{order}8xQ", f"{order}Q", f"{order}HHQQ") if _is_big(block) else (f"{order}4xL", f"{order}H", f"{order}HHLL")


def _order(block: bytes | memoryview) -> str:
    return "<" if block[:2] == b"II" else ">"


def _is_big(block: bytes | memoryview) -> bool:
    """Returns whether Pillow reads a block as BigTIFF. In `MM` order it looks at the wrong byte, and never does."""
    return block[2:3] == b"+"
