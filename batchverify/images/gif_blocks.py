"""The blocks of a GIF file: whether few stand before its picture, and whether a second frame follows."""

from __future__ import annotations

MAX_BLOCKS = 4_000
_MAX_BLOCKS_OF_A_FRAME = 2**20  # Programs write blocks of 255 bytes: so many are a file of 267 MB.
_EXTENSION, _FRAME, _FRAME_OR_END, _FRAME_BYTES = 0x21, b",", b",;", 10


def has_short_gif_header(data: bytes) -> bool:
    """Returns whether the first frame begins, or the file ends, before there are too many blocks."""
    return _find_frame(data, _header_bytes(data), MAX_BLOCKS) is not None


def has_second_frame(data: bytes) -> bool:
    """Returns whether a GIF file has a second frame. The time that Pillow takes grows with the square of a comment's length."""
    first = _find_frame(data, _header_bytes(data), MAX_BLOCKS)
    if first is None or not _is_frame(data, first):
        return False
    pixels = first + _FRAME_BYTES + _palette_bytes(data[first + 9]) + 1
    second = _find_frame(data, pixels, _MAX_BLOCKS_OF_A_FRAME, in_blocks=True)
    return second is not None and _is_frame(data, second)


def _find_frame(data: bytes, position: int, most_blocks: int, in_blocks: bool = False) -> int | None:
    """Returns where the next frame begins, or the file ends; None if there are too many blocks before that.

    Args:
        data: The file's bytes.
        position: Where to begin.
        most_blocks: The number of blocks that may come before.
        in_blocks: Whether the position is among the blocks of one frame or extension.
    """
    for _ in range(most_blocks):
        if position >= len(data) or (not in_blocks and data[position] in _FRAME_OR_END):
            return position
        if in_blocks:
            in_blocks = data[position] > 0
            position += 1 + data[position]
        else:
            in_blocks = data[position] == _EXTENSION
            position += 2 if in_blocks else 1
    return None


def _is_frame(data: bytes, position: int) -> bool:
    return data.startswith(_FRAME, position) and position + _FRAME_BYTES < len(data)


def _header_bytes(data: bytes) -> int:
    return 13 + (_palette_bytes(data[10]) if len(data) > 10 else 0)


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags >= 0x80 else 0
