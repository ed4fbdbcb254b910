"""JPEG files whose header is so plain that nothing in it need be looked at but the size of the picture."""

from __future__ import annotations

from typing import NamedTuple

from PIL import ExifTags

from batchverify.images.directories import EXIF, directory_entries, find_directory_hazard
from batchverify.images.safety import APP1, FRAMES, PROGRESSIVE_FRAME, START_OF_SCAN, has_many_scans, plain_segments

_START, _TABLES = b"\xff\xd8\xff", 0xDB  # The markers are those of ITU-T T.81, table B.1.
# Segments that change nothing, by marker: what each begins with, and the least length of its content. Others are not plain.
_SKIPPED = {
    0xC4: (b"", 0),  # Huffman tables, which the decoder checks
    0xDD: (b"", 0),  # restart interval
    0xFE: (b"", 0),  # comment
    0xE0: (b"JFIF\0", 14),
    0xE2: (b"ICC_PROFILE\0", 16),
    0xEE: (b"Adobe", 12),
}
# The start of a block of EXIF in each order of bytes, and the entry of an upright picture: a number of two bytes in four.
_UPRIGHT = {b"II*\0": (3, 1, 1), b"MM\0*": (3, 1, 1 << 16)}


class PictureSize(NamedTuple):
    """The size of a picture in pixels."""

    width: int
    height: int


def plain_jpeg_size(data: bytes) -> PictureSize | None:
    """Returns the size of a plain JPEG file; None for any other file, which must be opened to be known.

    A plain file has eight bits in grey or colour, one scan or as many as a progressive file should have, no EXIF but that of an
    upright picture, no second picture, and a header of a few segments, in which every decoder finds the same. Pillow opens such
    a file without an error. So it need not be opened, nor be searched for traps: that takes many small steps in Python, during
    which no other thread can run.
    """
    if not data.startswith(_START):
        return None
    size, components, is_progressive, has_exif = None, 0, False, False
    for marker, start, end in plain_segments(data):
        if marker == START_OF_SCAN:
            # Behind a sequential scan of all components, decoders refuse a second one.
            is_bounded = not has_many_scans(data) if is_progressive else data[start] == components
            return size if is_bounded else None
        if marker in FRAMES:
            size = None if size else _frame_size(data[start:end])
            if size is None:
                return None
            components, is_progressive = data[start + 5], marker == PROGRESSIVE_FRAME
        elif marker == APP1:
            if has_exif or not _is_upright(data[start:end]):
                return None
            has_exif = True
        elif not (_are_tables_whole(data[start:end]) if marker == _TABLES else _is_skipped(marker, data[start:end])):
            return None
    return None


def _is_skipped(marker: int, content: bytes) -> bool:
    """Returns whether a segment changes nothing."""
    beginning, least = _SKIPPED.get(marker, (b"", 2**16))
    return len(content) >= least and content.startswith(beginning)


def _frame_size(frame: bytes) -> PictureSize | None:
    """Returns the size in a frame header of eight bits in one or three components (ITU-T T.81, B.2.2)."""
    if len(frame) < 9 or frame[0] != 8 or frame[5] not in (1, 3) or len(frame) != 6 + 3 * frame[5]:
        return None
    size = PictureSize(frame[3] << 8 | frame[4], frame[1] << 8 | frame[2])
    return size if min(size) > 0 else None


def _is_upright(segment: bytes) -> bool:
    """Returns whether a segment is a block of EXIF without traps, whose first directory does not turn the picture."""
    block = segment[len(EXIF) :]
    upright = _UPRIGHT.get(block[:4])
    if not segment.startswith(EXIF) or upright is None or find_directory_hazard(block):
        return False
    return all(tag != ExifTags.Base.Orientation or tuple(entry) == upright for tag, *entry in directory_entries(block))


def _are_tables_whole(tables: bytes) -> bool:
    """Returns whether a segment is made of whole quantization tables of 8 or 16 bits (ITU-T T.81, B.2.4.1)."""
    position = 0
    while position < len(tables):
        position += 129 if tables[position] >= 16 else 65
    return position == len(tables)
