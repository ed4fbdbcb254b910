"""JPEG files whose header is so plain that nothing in it need be looked at but the size of the picture."""

from __future__ import annotations

from typing import Literal, NamedTuple

from PIL import ExifTags

from batchverify.images.safety import directory_entries, find_directory_hazard, has_many_scans

_START, _START_OF_SCAN, _TABLES = b"\xff\xd8\xff", 0xDA, 0xDB  # The markers are those of ITU-T T.81, table B.1.
_FRAMES, _PROGRESSIVE_FRAME = (0xC0, 0xC1, 0xC2), 0xC2
_MAX_SEGMENTS = 64
# Segments that change nothing, by marker: what each begins with, and its least length. Others, such as EXIF, are not plain.
_SKIPPED = {
    0xC4: (b"", 2),  # Huffman tables, which the decoder checks
    0xDD: (b"", 2),  # restart interval
    0xFE: (b"", 2),  # comment
    0xE0: (b"JFIF\0", 16),
    0xE2: (b"ICC_PROFILE\0", 18),
    0xEE: (b"Adobe", 14),
}
_APP1, _EXIF, _EXIF_BLOCKS = 0xE1, b"Exif\0\0", (b"II*\0", b"MM\0*")
_UPRIGHT, _SHORT = 1, 3


class JpegSize(NamedTuple):
    """The size of a picture in pixels."""

    width: int
    height: int


def plain_jpeg_size(data: bytes) -> JpegSize | None:
    """Returns the size of a plain JPEG file; None for any other file, which must be opened to be known.

    A plain file has eight bits in grey or colour, one scan or as many as a progressive file should have, no EXIF but that of an
    upright picture, no second picture, and a header of a few segments, in which every decoder finds the same. Pillow opens such
    a file without an error. So it need not be opened, nor be searched for traps: that takes many small steps in Python, during
    which no other thread can run.
    """
    header = _read_plain_header(data)
    if header is None:
        return None
    if header.frame == _PROGRESSIVE_FRAME:
        return None if has_many_scans(data) else header.size
    # Behind a sequential scan of all components, decoders refuse a second one.
    return header.size if header.components == header.components_of_scan else None


class _Header(NamedTuple):
    """What the header of a plain file says.

    Attributes:
        size: The size of the picture.
        frame: The marker of the frame.
        components: The number of components of the picture.
        components_of_scan: The number of components in the first scan.
    """

    size: JpegSize
    frame: int
    components: int
    components_of_scan: int


def _read_plain_header(data: bytes) -> _Header | None:
    """Returns the header of a file, or None if there is anything in it that is not plain."""
    if not data.startswith(_START):
        return None
    position, size, frame, components, has_exif = 2, None, 0, 0, False
    for _ in range(_MAX_SEGMENTS):
        if position + 5 > len(data) or data[position] != 0xFF:
            return None
        marker, length = data[position + 1], data[position + 2] << 8 | data[position + 3]
        start, end = position + 4, position + 2 + length
        if end > len(data):
            return None
        if marker == _START_OF_SCAN:
            return size and _Header(size, frame, components, data[start])
        if marker in _FRAMES:
            size = None if size else _frame_size(data[start:end])
            if size is None:
                return None
            frame, components = marker, data[position + 9]
        elif marker == _TABLES:
            if not _are_tables_whole(data[start:end]):
                return None
        elif marker == _APP1:
            if has_exif or not _is_upright(data[start:end]):
                return None
            has_exif = True
        elif not _is_skipped(data, marker, start, length):
            return None
        position = end
    return None


def _is_skipped(data: bytes, marker: int, start: int, length: int) -> bool:
    """Returns whether a segment, whose content begins at `start`, changes nothing."""
    beginning, least = _SKIPPED.get(marker, (b"", 2**16))
    return length >= least and data.startswith(beginning, start)


def _frame_size(frame: bytes) -> JpegSize | None:
    """Returns the size in a frame header of eight bits in one or three components (ITU-T T.81, B.2.2)."""
    if len(frame) < 9 or frame[0] != 8 or frame[5] not in (1, 3) or len(frame) != 6 + 3 * frame[5]:
        return None
    size = JpegSize(frame[3] << 8 | frame[4], frame[1] << 8 | frame[2])
    return size if min(size) > 0 else None


def _is_upright(segment: bytes) -> bool:
    """Returns whether a segment is a block of EXIF without traps, whose first directory does not turn the picture."""
    block = segment[len(_EXIF) :]
    if not (segment.startswith(_EXIF) and block.startswith(_EXIF_BLOCKS)) or find_directory_hazard(block):
        return False
    order: Literal["little", "big"] = "little" if block.startswith(b"II") else "big"
    for tag, kind, count, value in directory_entries(block):
        # The number of an entry of two bytes is what the first two of its four bytes hold.
        number = int.from_bytes(value.to_bytes(4, order)[:2], order)
        if tag == ExifTags.Base.Orientation and (kind, count, number) != (_SHORT, 1, _UPRIGHT):
            return False
    return True


def _are_tables_whole(tables: bytes) -> bool:
    """Returns whether a segment is made of whole quantization tables of 8 or 16 bits (ITU-T T.81, B.2.4.1)."""
    position = 0
    while position < len(tables):
        position += 129 if tables[position] >= 16 else 65
    return position == len(tables)
