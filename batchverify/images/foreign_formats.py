"""Files that people take for images, and that the program does not read: each is named by its first bytes, with the remedy."""

from __future__ import annotations

import re

_CONVERT = "convert it to JPEG or PNG"
# The brands of ISO base media files (ISO/IEC 14496-12, 4.3), which follow `ftyp` at byte 4.
_BRANDS = {
    b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"mif1": "HEIF",
    b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF",
}  # fmt: skip
# What a file begins with; white space and a byte order mark may come before text.
_BEGINNINGS = (
    (rb"\x00\x00\x00\x0cJXL |\xff\x0a", "a JPEG XL file", _CONVERT),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 file", _CONVERT),
    (rb"%PDF-", "a PDF document", "extract its picture as JPEG or PNG"),
    (rb"version https://git-lfs\.github\.com", "a pointer of Git LFS, not the file itself", "run git lfs pull"),
    (rb"[{\[]\s*[\"{\]}]", "JSON text", "download the image again"),
    (rb"PK\x03\x04", "a ZIP archive", "unpack it"),
    (rb"\x1f\x8b", "a gzip file", "unpack it"),
    (rb"Pf\s+\d", "a PFM file, whose pixels have no agreed scale", "store 8 or 16 bits"),
    (rb"8BPS", "a Photoshop document", _CONVERT),
    (rb"FUJIFILMCCD-RAW|II\x1a\0\0\0HEAPCCDR|II\x55\0|IIRO|.{4}ftypcrx ", "a raw file of a camera", _CONVERT),
    (rb".{4}ftyp|\x1aE\xdf\xa3", "a video", "extract a picture as JPEG or PNG"),
)  # fmt: skip
# The first element of a text with tags, behind its declaration and its comments.
_ELEMENT = re.compile(rb"<(?:!doctype\s+)?(svg|html|head|body|error)\b", re.I)
_ELEMENTS = {
    b"svg": f"it is an SVG drawing; {_CONVERT}",
    b"error": "it is an error message of an object store; download the image again",
}
_PAGE = "it is an HTML page, most often an error message; download the image again"
_PATTERNS = [(re.compile(pattern, re.I | re.S), name, remedy) for pattern, name, remedy in _BEGINNINGS]
_BYTES_LOOKED_AT = 2048


def name_foreign_format(data: bytes) -> str | None:
    """Returns what a file that is no image is, and what to do; None where its first bytes do not show it."""
    start = data[:_BYTES_LOOKED_AT]
    if (kind := isobmff_format(start)) in ("HEIC", "HEIF"):
        return f"{kind} files need a decoder; pip install 'batchverify[heif]', or {_CONVERT}"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<") and (element := _ELEMENT.search(text)):
        return _ELEMENTS.get(element[1].lower(), _PAGE)
    for pattern, name, remedy in _PATTERNS:
        if pattern.match(start) or pattern.match(text):
            return f"it is {name}; {remedy}"
    return None


def isobmff_format(data: bytes) -> str | None:
    """Returns `HEIC`, `HEIF` or `AVIF` by the main brand of a file, or else by the first compatible brand that is known."""
    start = data[:_BYTES_LOOKED_AT]
    if start[4:8] != b"ftyp":
        return None
    size = min(len(start), int.from_bytes(start[:4], "big"), 256)
    brands = [start[8:12], *(start[place : place + 4] for place in range(16, size - 3, 4))]
    known = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    precise = [name for name in known if name != "HEIF"]
    return next(iter(precise or known), None)
