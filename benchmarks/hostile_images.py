"""A corpus of image files made to break a reader, the same for the same seed.

`python benchmarks/hostile_images.py DIR` writes it into DIR and prints what each file may become.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from batchverify.images.formats import can_read_heif

MOST_PIXELS, MOST_BYTES = 4_000_000, 2**22  # what the corpus is made to be read with
Expected = frozenset[str]

OK = frozenset({"ok"})
UNREADABLE = frozenset({"unreadable"})
LARGE = frozenset({"too_large", "unreadable"})
MISSING = frozenset({"missing"})
LENIENT = frozenset({"ok", "unreadable"})  # the format leaves it open, or a decoder mends it
ANY = frozenset({"ok", "unreadable", "too_large", "unsupported"})  # whatever has bytes


def write_corpus(folder: str | Path, seed: int = 0) -> dict[str, Expected]:
    """Writes the corpus into an empty `folder`; returns what to read, paths and URIs, and the acceptable statuses."""
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, data, statuses in image_files(seed):
        (folder / name).write_bytes(data)
        expected[str(folder / name)] = statuses
    return expected | _odd_names(folder) | _odd_objects(folder) | _URIS


def image_files(seed: int = 0) -> Iterator[tuple[str, bytes, Expected]]:
    """Yields name, bytes and acceptable statuses of every plain file of the corpus."""
    rng = random.Random(seed)
    whole = seeds()
    for name, data in whole.items():
        yield f"whole-{name}", data, OK
        yield from _truncated(name, data)
        yield from _flipped(name, data, rng)
        yield from _spliced(name, data, rng)
    yield from _misnamed(whole)
    yield from _empty_and_noise(rng)
    yield from _lying_pngs()
    yield from _lying_jpegs(whole["progressive.jpg"])
    yield from _lying_gifs()
    yield from _lying_bmps()
    yield from _lying_pnms()
    yield from _lying_tiffs()
    yield from _lying_webps(whole["lossless.webp"])
    yield from _animations()
    yield from _exifs()
    yield from _lying_containers()


# Whole files, which the rest is made of


def picture(width: int = 60, height: int = 44, mode: str = "RGB") -> Image.Image:
    """Returns a noisy picture, which no format can pack into a few bytes."""
    noise = random.Random(width * height).randbytes(width * height * 4)
    return Image.frombytes("RGBA", (width, height), noise).convert(mode)


def seeds() -> dict[str, bytes]:
    """Returns a whole small file of each format and way of packing, by name."""
    rgb, grey, clear = picture(), picture(mode="L"), picture(mode="RGBA")
    files = {
        "baseline.jpg": saved(rgb, "JPEG", quality=80),
        "progressive.jpg": saved(rgb, "JPEG", quality=80, progressive=True),
        "grey.jpg": saved(grey, "JPEG"),
        "restarts.jpg": saved(rgb, "JPEG", restart_marker_rows=1),
        "cmyk.jpg": saved(picture(mode="CMYK"), "JPEG"),
        "rgb.png": saved(rgb, "PNG"),
        "palette.png": saved(rgb.quantize(64), "PNG", transparency=3),
        "sixteen.png": saved(Image.frombytes("I;16", (60, 22), grey.tobytes()), "PNG"),
        "interlaced.png": _interlaced_png(),
        "lossy.webp": saved(rgb, "WEBP", quality=80),
        "lossless.webp": saved(rgb, "WEBP", lossless=True),
        "clear.webp": saved(clear, "WEBP"),
        "rgb.bmp": saved(rgb, "BMP"),
        "palette.bmp": saved(rgb.quantize(200), "BMP"),
        "run-length.bmp": _bmp(8, 8, 8, _RUNS, compression=1),
        "plain.gif": saved(rgb.quantize(128), "GIF"),
    }
    for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"{packing}.tiff"] = saved(rgb, "TIFF", compression=packing)
    files["group4.tiff"] = saved(picture(mode="1"), "TIFF", compression="group4")
    files |= {"plain.avif": saved(rgb, "AVIF"), "rgb.ppm": saved(rgb, "PPM"), "grey.pgm": saved(grey, "PPM")}
    return files | ({"photo.heic": _heic(rgb)} if can_read_heif() else {})


def _heic(image: Image.Image) -> bytes:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer)
    return buffer.getvalue()


def saved(image: Image.Image, kind: str, **settings) -> bytes:
    """Returns `image` as a file of a kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def magics() -> list[bytes]:
    """Returns what files of all formats begin with, those that are read and some that are not."""
    return [*_MAGIC, *_OTHERS]


# Damage of any file


def _truncated(name: str, data: bytes) -> Iterator[tuple[str, bytes, Expected]]:
    for length in (1, 2, 3, 4, 8, 12, 16, 24, 40):
        yield f"first-{length}-{name}", data[:length], UNREADABLE | ({"unsupported"} if b"ftyp" in data[:8] else set())
    for percent in range(5, 100, 7):
        yield f"cut-{percent}%-{name}", data[: len(data) * percent // 100], UNREADABLE
    for missing in (1, 2, 4, 9, 30):  # an end marker, a checksum, padding: some formats can do without
        yield f"less-{missing}-{name}", data[:-missing], LENIENT


def _flipped(name: str, data: bytes, rng: random.Random) -> Iterator[tuple[str, bytes, Expected]]:
    for number in range(10):
        damaged = bytearray(data)
        for _ in range(1 + number):
            # Half of them in the head, where the sizes are.
            place = rng.randrange(min(120, len(data)) if number % 2 else len(data))
            damaged[place] ^= 1 << rng.randrange(8)
        yield f"flipped-{number}-{name}", bytes(damaged), ANY


def _spliced(name: str, data: bytes, rng: random.Random) -> Iterator[tuple[str, bytes, Expected]]:
    for number in range(4):
        start, end = sorted(rng.randrange(8, len(data)) for _ in range(2))
        yield f"without-middle-{number}-{name}", data[:start] + data[end:], ANY
        yield f"middle-twice-{number}-{name}", data[:end] + data[start:], ANY
    zeroed = rng.randrange(8, len(data) - 8)
    yield f"zeros-inside-{name}", data[:zeroed] + bytes(8) + data[zeroed + 8 :], ANY


def _misnamed(whole: dict[str, bytes]) -> Iterator[tuple[str, bytes, Expected]]:
    yield "a-png.jpg", whole["rgb.png"], OK
    yield "a-jpeg.png", whole["baseline.jpg"], OK
    yield "a-gif.exe", whole["plain.gif"], OK
    yield "no-extension", whole["lossy.webp"], OK


def _empty_and_noise(rng: random.Random) -> Iterator[tuple[str, bytes, Expected]]:
    yield "nothing.jpg", b"", frozenset({"empty"})
    yield "zeros.jpg", bytes(4096), UNREADABLE
    yield "text.png", b"GIF is not this\n" * 9, UNREADABLE
    yield "over-the-limit.png", bytes(MOST_BYTES + 1), frozenset({"too_large"})
    for magic, kind in _MAGIC.items():
        yield f"magic-and-zeros.{kind}", magic + bytes(500), UNREADABLE
        yield f"magic-and-noise.{kind}", magic + rng.randbytes(500), ANY - OK
    for magic, kind in _OTHERS.items():
        yield f"other-{kind}", magic + rng.randbytes(500), ANY - OK


_MAGIC = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"RIFF\xf0\1\0\0WEBPVP8 ": "webp", b"BM": "bmp", b"GIF89a": "gif",
    b"II*\0\x08\0\0\0": "tiff", b"MM\0*\0\0\0\x08": "tif", b"II+\0\x08\0\0\0": "bigtiff", b"\x28\0\0\0": "dib",
}  # fmt: skip
_OTHERS = {
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999999 9999999\n(x) run\n": "eps", b"8BPS\0\1": "psd",
    b"P6 4294967296 4294967296 255\n": "ppm", b"Pf 4 4 1.0\n": "pfm",
    b"\0\0\0\x0cjP  \r\n\x87\n": "jp2", b"\0\0\1\0\xff\xff": "ico", b"icns": "icns",
    b"SIMPLE  =                    T": "fits", b"\x89HDF\r\n\x1a\n": "hdf5", b"GRIB    \1": "grib", b"DDS ": "dds",
    b"\0\0\0\x1cftypavif": "avif", b"\x01\xda": "sgi", b"qoif": "qoi", b"/* XPM */": "xpm", b"\xd7\xcd\xc6\x9a\0\0": "wmf",
    b"%PDF-1.7\n": "pdf", b"PK\3\4": "zip", b"\x1f\x8b\x08": "gz", b"<svg xmlns='http://www.w3.org/2000/svg'>": "svg",
}  # fmt: skip


# PNG


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(
    width: int, height: int, packed: bytes, extra: bytes = b"", depth: int = 8, kind: int = 0, interlace: int = 0
) -> bytes:
    """Returns a PNG file of these parts, whose header may say anything; kind 0 is grey, 3 a palette."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace)
    chunks = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _grey_rows(width: int, height: int) -> bytes:
    return zlib.compress(bytes((width + 1) * height))


def _interlaced_png() -> bytes:
    """A 40×40 picture in Adam7's seven passes, here given by their rows' length and number."""
    passes = [(5, 5), (5, 5), (10, 5), (10, 10), (20, 10), (20, 20), (40, 20)]
    noise = random.Random(7)
    rows = b"".join(b"\0" + noise.randbytes(width) for width, height in passes for _ in range(height))
    return _png(40, 40, zlib.compress(rows, 0), interlace=1)


def _lying_pngs() -> Iterator[tuple[str, bytes, Expected]]:
    rows = _grey_rows(20, 20)
    for name, width, height, statuses in [
        ("wider", 40, 20, LENIENT), ("higher", 20, 400, LENIENT), ("smaller", 20, 10, LENIENT),
        ("no-width", 0, 20, UNREADABLE), ("no-height", 20, 0, UNREADABLE), ("negative", 2**32 - 1, 2**32 - 1, LARGE),
        ("largest", 2**31 - 1, 2**31 - 1, LARGE), ("one-too-wide", 2001, 2000, LARGE), ("line", 2**31 - 1, 1, LARGE),
    ]:  # fmt: skip
        yield f"{name}.png", _png(width, height, rows), statuses
    yield "just-right.png", _png(2000, 2000, _grey_rows(2000, 2000)), OK
    yield "one-line.png", _png(4_000_000, 1, _grey_rows(4_000_000, 1)), OK
    yield "one-column.png", _png(1, 1_900_000, _grey_rows(1, 1_900_000)), OK
    yield "bomb.png", _png(50_000, 50_000, _squeezed(2**28), depth=1), LARGE
    yield "bomb-behind-the-pixels.png", _png(20, 20, _squeezed(2**28)), LENIENT
    for kind, head in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
        text = _chunk(kind, head + _squeezed(2**28))
        yield f"bomb-{kind.decode()}.png", _png(20, 20, rows, text), LENIENT
        yield f"bomb-{kind.decode()}-behind.png", _png(20, 20, rows)[:-12] + text + _chunk(b"IEND", b""), LENIENT
        many = _chunk(kind, head + _squeezed(2**20 - 9)) * 300
        yield f"many-{kind.decode()}.png", _png(20, 20, rows, many), LENIENT
        yield f"no-zlib-{kind.decode()}.png", _png(20, 20, rows, _chunk(kind, head + b"?" * 99)), LENIENT
    yield "100000-chunks.png", _png(20, 20, rows, _chunk(b"teSt", b"") * 100_000), LENIENT
    yield "50000-parts.png", _png(20, 20, b"", _chunk(b"IDAT", b"") * 50_000 + _chunk(b"IDAT", rows)), LENIENT
    yield "no-pixels.png", _png(20, 20, b""), UNREADABLE
    yield "no-palette.png", _png(20, 20, rows, kind=3), LENIENT
    yield "short-palette.png", _png(20, 20, zlib.compress(b"\xff" * 420), _chunk(b"PLTE", b"abc"), kind=3), LENIENT
    yield "long-transparency.png", _png(20, 20, rows, _chunk(b"PLTE", b"abc") + _chunk(b"tRNS", bytes(9000)), kind=3), LENIENT
    yield "depth-3.png", _png(20, 20, rows, depth=3), UNREADABLE
    yield "kind-9.png", _png(20, 20, rows, kind=9), UNREADABLE
    yield "endless-chunk.png", _png(20, 20, rows)[:33] + b"\xff\xff\xff\xffIDAT" + rows, LENIENT
    yield "wrong-checksum.png", _png(20, 20, rows).replace(_chunk(b"IEND", b"")[4:], b"IEND????"), LENIENT
    greedy, whole = _greedy_directory(), _png(20, 20, rows)
    profile = zlib.compress(b"\nexif\n9\n" + greedy.hex().encode())
    xmp = _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>")
    for kind, text in ((b"eXIf", greedy), (b"tEXt", b"exif\0" + greedy)):
        yield f"greedy-{kind.decode()}.png", _png(20, 20, rows, _chunk(kind, text)), UNREADABLE
        yield f"greedy-{kind.decode()}-behind.png", whole[:-12] + _chunk(kind, text) + whole[-12:], UNREADABLE
    behind = _chunk(b"zTXt", b"Raw profile type exif\0\0" + profile)
    yield "greedy-profile-behind.png", _png(20, 20, rows, xmp)[:-12] + behind + whole[-12:], OK
    yield "xmp-of-a-large-picture.png", _png(2000, 2000, _grey_rows(2000, 2000), xmp), OK
    yield "two-headers.png", _png(20, 20, rows, _chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))), ANY


@functools.cache
def _squeezed(length: int) -> bytes:
    """Returns a thousandth of `length` bytes, which unpack to `length` zeros."""
    packer, block = zlib.compressobj(9), bytes(2**20)
    parts = [packer.compress(block) for _ in range(length // 2**20)]
    return b"".join([*parts, packer.compress(bytes(length % 2**20)), packer.flush()])


# JPEG


def _marker(code: int, data: bytes) -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(data) + 2) + data


def _after_start(jpeg: bytes, segments: bytes) -> bytes:
    return jpeg[:2] + segments + jpeg[2:]


def _with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """Returns the JPEG file with another size in its frame header."""
    place = max(jpeg.find(b"\xff\xc0\0"), jpeg.find(b"\xff\xc2\0")) + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


def many_scans(side: int, scans: int) -> bytes:
    """Returns a progressive JPEG of one colour, `side` pixels wide and high, whose last scan comes `scans` times."""
    jpeg = saved(Image.new("L", (side, side), 77), "JPEG", progressive=True)
    last = jpeg.rfind(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * scans + jpeg[-2:]


def _lying_jpegs(progressive: bytes) -> Iterator[tuple[str, bytes, Expected]]:
    jpeg, cmyk = saved(picture(), "JPEG"), saved(picture(mode="CMYK"), "JPEG")
    for name, whole in (("baseline", jpeg), ("progressive", progressive)):
        yield f"smaller-{name}.jpg", _with_size(whole, 16, 16), LENIENT
        yield f"higher-{name}.jpg", _with_size(whole, 60, 400), LENIENT
        yield f"wider-{name}.jpg", _with_size(whole, 1999, 2000), LENIENT
        yield f"no-width-{name}.jpg", _with_size(whole, 0, 44), UNREADABLE
        yield f"no-height-{name}.jpg", _with_size(whole, 60, 0), UNREADABLE
        yield f"largest-{name}.jpg", _with_size(whole, 65_535, 65_535), LARGE
        yield f"precision-{name}.jpg", whole.replace(b"\x11\x08\0\x2c", b"\x11\x10\0\x2c"), UNREADABLE
    yield "thousands-of-scans.jpg", many_scans(1990, 6_000), LENIENT
    yield "restart-65535.jpg", _after_start(jpeg, _marker(0xDD, b"\xff\xff")), LENIENT
    yield "restart-1.jpg", _after_start(jpeg, _marker(0xDD, b"\0\1")), LENIENT
    yield "restart-too-long.jpg", _after_start(jpeg, _marker(0xDD, bytes(600))), LENIENT
    scan = jpeg.find(b"\xff\xda") + 14
    yield "restarts-without-end.jpg", jpeg[:scan] + b"\xff\xd0\xff\xd7" * 200_000 + jpeg[scan:], LENIENT
    yield "fill-bytes.jpg", jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:], LENIENT
    yield "150000-exif-segments.jpg", _after_start(jpeg, _marker(0xE1, b"Exif\0\0" + bytes(10)) * 150_000), LENIENT
    for transform in (0, 1, 2, 3, 255):
        adobe = _marker(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
        yield f"adobe-{transform}-cmyk.jpg", _after_start(cmyk, adobe), LENIENT
        yield f"adobe-{transform}-rgb.jpg", _after_start(jpeg, adobe), LENIENT
    yield "adobe-short.jpg", _after_start(cmyk, _marker(0xEE, b"Adobe")), LENIENT
    yield "no-tables.jpg", jpeg.replace(b"\xff\xc4", b"\xff\xef"), LENIENT
    yield "no-quantisation.jpg", jpeg.replace(b"\xff\xdb", b"\xff\xef"), UNREADABLE
    yield "arithmetic.jpg", jpeg.replace(b"\xff\xc0", b"\xff\xc9"), LENIENT
    yield "lossless-mode.jpg", jpeg.replace(b"\xff\xc0", b"\xff\xc3"), UNREADABLE
    yield "segment-of-none.jpg", _after_start(jpeg, b"\xff\xe1\0\0"), LENIENT
    yield "segment-of-one.jpg", _after_start(jpeg, b"\xff\xe1\0\1"), LENIENT
    yield "400000-segments.jpg", _after_start(jpeg, _marker(0xE5, b"") * 400_000), LENIENT
    yield "icc-out-of-order.jpg", _after_start(jpeg, _marker(0xE2, b"ICC_PROFILE\0\x09\x02abc") * 9), LENIENT
    yield "photoshop-loop.jpg", _after_start(jpeg, _marker(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff")), LENIENT
    several = b"MPF\0II*\0\x08\0\0\0\2\0\1\xb0\4\0\1\0\0\0\xff\xff\0\0\2\xb0\7\0\x20\0\0\0\xff\xff\xff\xff\0\0\0\0"
    yield "several-pictures.jpg", _after_start(jpeg, _marker(0xE2, several)), LENIENT
    yield "greedy-pictures.jpg", _after_start(jpeg, _marker(0xE2, b"MPF\0" + _greedy_directory(5_400, kind=5))), UNREADABLE
    for prefixes in (1, 2, 5_000):
        parts = _parts(b"Exif\0\0" * (prefixes - 1) + _greedy_directory())
        yield f"greedy-exif-prefixed-{prefixes}-times.jpg", _after_start(jpeg, parts), UNREADABLE
    yield "greedy-exif-as-if-big.jpg", _after_start(jpeg, _parts(_greedy_directory(head=b"MM\0+"))), UNREADABLE


def _parts(exif: bytes) -> bytes:
    """Returns a block of EXIF in as many segments of a JPEG file as it takes."""
    return b"".join(_marker(0xE1, b"Exif\0\0" + exif[start : start + 65_000]) for start in range(0, len(exif), 65_000))


# GIF


def _gif(screen: tuple[int, int], frames: Iterable[bytes], colours: int = 0) -> bytes:
    """Returns a GIF file with a palette of 2 ** (colours + 1) colours; negative: without one."""
    flags, palette = (0x80 | colours, bytes(range(6)) * 2**colours) if colours >= 0 else (0, b"")
    return b"GIF89a" + struct.pack("<HHBBB", *screen, flags, 0, 0) + palette + b"".join(frames) + b";"


def _gif_frame(place: tuple[int, int], size: tuple[int, int], packed: bytes = b"\2\2\x44\1\0", flags: int = 0) -> bytes:
    """Returns one frame; `packed` is the code size and the blocks, here of one pixel."""
    return b"," + struct.pack("<HHHHB", *place, *size, flags) + packed


def _lying_gifs() -> Iterator[tuple[str, bytes, Expected]]:
    one = _gif_frame((0, 0), (1, 1))
    yield "outside.gif", _gif((10, 10), [_gif_frame((500, 500), (1, 1))]), LENIENT
    yield "far-outside.gif", _gif((10, 10), [_gif_frame((65_535, 65_535), (1, 1))]), LARGE
    yield "overlapping-the-edge.gif", _gif((10, 10), [_gif_frame((5, 5), (20, 20))]), UNREADABLE
    yield "frame-of-65535.gif", _gif((10, 10), [_gif_frame((0, 0), (65_535, 65_535))]), LARGE
    yield "screen-of-65535.gif", _gif((65_535, 65_535), [one]), LARGE
    yield "screen-just-right.gif", _gif((2000, 2000), [one]), LENIENT
    yield "no-screen.gif", _gif((0, 0), [one]), LENIENT
    yield "frame-of-nothing.gif", _gif((10, 10), [_gif_frame((0, 0), (0, 0))]), LENIENT
    yield "no-frame.gif", _gif((10, 10), []), UNREADABLE
    yield "no-colours.gif", _gif((1, 1), [one], colours=-1), LENIENT
    for bits in (0, 1, 9, 12, 13, 255):
        yield f"code-size-{bits}.gif", _gif((9, 9), [_gif_frame((0, 0), (9, 9), bytes([bits, 2, 0x44, 1, 0]))]), LENIENT
    yield "codes-without-end.gif", _gif((9, 9), [_gif_frame((0, 0), (9, 9), b"\2" + (b"\xff" * 256) * 9000)]), LENIENT
    yield "500000-comments.gif", _gif((1, 1), [b"!\xfe\1a\0" * 500_000, one]), LENIENT
    yield "comment-of-4-megabytes.gif", _gif((1, 1), [b"!\xfe", (b"\xff" + b"a" * 255) * 16_000, b"\0", one]), LENIENT
    yield "comment-behind-the-picture.gif", _gif((1, 1), [one, b"!\xfe" + b"\1a" * 2_000_000 + b"\0"]), LENIENT
    yield "picture-of-tiny-blocks.gif", _gif((1, 1), [_gif_frame((0, 0), (1, 1), b"\2" + b"\1a" * 2_000_000 + b"\0")]), LENIENT
    yield "empty-extensions.gif", _gif((1, 1), [b"!\xff\0" * 900_000, one]), LENIENT


# BMP


def _bmp(width: int, height: int, bits: int, pixels: bytes, compression: int = 0, colours: int = 0, header: int = 40) -> bytes:
    palette = bytes(range(256)) * 4 if bits <= 8 else b""
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0, colours, 0)
    start = 14 + 40 + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + palette + pixels


_RUNS = b"".join(b"\x08" + bytes([9 * row]) + b"\0\0" for row in range(8)) + b"\0\1"  # eight rows of eight, and the end


def _lying_bmps() -> Iterator[tuple[str, bytes, Expected]]:
    pixels = bytes(20 * 20 * 3)
    for name, width, height, statuses in [
        ("wider", 40, 20, UNREADABLE), ("higher", 20, 40, UNREADABLE), ("smaller", 20, 10, LENIENT),
        ("no-width", 0, 20, UNREADABLE), ("no-height", 20, 0, UNREADABLE), ("upside-down", 20, -20, LENIENT),
        ("negative-width", -20, 20, ANY - OK), ("largest", 2**31 - 1, 2**31 - 1, LARGE), ("lowest", 20, -(2**31), LARGE),
    ]:  # fmt: skip
        yield f"{name}.bmp", _bmp(width, height, 24, pixels), statuses
    yield "run-length-leap.bmp", _bmp(4_000_000, 1, 8, b"\0\2\xff\xff" * 50, compression=1), LENIENT | LARGE
    yield "run-length-leaps-4.bmp", _bmp(2000, 2000, 4, b"\0\2\xff\xff" * 50, compression=2), LENIENT | LARGE
    yield "run-length-lines.bmp", _bmp(3_999_999, 1, 8, b"\1\1\0\0" * 400_000, compression=1), LENIENT | LARGE
    yield "run-length-nothing.bmp", _bmp(2000, 2000, 8, b"\0\2\0\0" * 700_000, compression=1), LENIENT | LARGE
    yield "run-length-ones.bmp", _bmp(2000, 2000, 8, b"\1\1" * 2_000_000, compression=1), LENIENT
    yield "run-length-ones-4.bmp", _bmp(2000, 2000, 4, b"\1\1" * 2_000_000, compression=2), LENIENT
    yield "run-length-narrow.bmp", _bmp(40, 100_000, 8, b"\1\1\0\0" * 100_000, compression=1), LENIENT
    yield "run-length-no-end.bmp", _bmp(2000, 2000, 8, b"\xff\1", compression=1), LENIENT
    yield "colours.bmp", _bmp(20, 20, 8, bytes(400), colours=2**31), UNREADABLE
    yield "colours-16-million.bmp", _bmp(20, 20, 8, bytes(400), colours=2**24), LENIENT
    yield "header-4-gigabytes.bmp", _bmp(20, 20, 24, pixels, header=2**32 - 1), UNREADABLE
    for compression in (3, 4, 5, 99):
        yield f"compression-{compression}.bmp", _bmp(20, 20, 32, pixels * 2, compression=compression), LENIENT
    for bits in (0, 2, 17, 64):
        yield f"bits-{bits}.bmp", _bmp(20, 20, bits, pixels), LENIENT
    whole = _bmp(20, 20, 24, pixels)
    yield "pixels-elsewhere.bmp", whole[:10] + b"\xff\xff\xff\x7f" + whole[14:], UNREADABLE


# PNM


def _lying_pnms() -> Iterator[tuple[str, bytes, Expected]]:
    long = 4_000_000
    yield "values-up-to-254.ppm", b"P6 1000 1000 254\n" + bytes(3 * 10**6), OK
    yield "text.ppm", b"P3 1000 600 255\n" + b"9 " * (long // 2), LENIENT
    yield "text.pbm", b"P1 2000 2000\n" + b"1" * long, OK
    yield "comments.ppm", b"P3 1000 600 255\n" + b"#\n" * (long // 2), UNREADABLE
    yield "comments.pbm", b"P1 2000 2000\n" + b"#\n1" * (long // 3), UNREADABLE
    yield "blanks-without-an-end.ppm", b"P6" + b" " * 60 + b"x", UNREADABLE
    yield "breaks-without-an-end.ppm", b"P6 1" + b"\n" * 60_000 + b"x", UNREADABLE
    yield "comments-without-an-end.ppm", b"P6 " + b"# \n" * 20_000 + b"x", UNREADABLE
    yield "hashes.ppm", b"P6 " + b"#" * 60_000, UNREADABLE
    yield "comment-behind-two-numbers.pgm", b"P5 1 1\n#" + b"a" * long + b"\n255\n\0", UNREADABLE
    yield "comment-within-a-number.pgm", b"P5 12#\n34 5\n#" + b"a" * long + b"\n255\n\0", UNREADABLE
    for kind in ("P0", "P7", "P0CMYK", "Pf", "PF", "PyP", "PyRGBA", "PyCMYK"):
        yield f"kind-{kind}.ppm", kind.encode() + b"\n1 1\n255\n" + bytes(4), ANY - OK
    yield "kind-Pf-comment.ppm", b"Pf\n#" + b"a" * long + b"\n1 1\n-1.0\n" + bytes(4), ANY - OK
    yield "kind-PyP-blanks.ppm", b"PyP\n" + b" " * long + b"1 1\n255\n\0", ANY - OK


# TIFF: entries of tag, type (3 a short, 4 a long, 2 a text), count and value

_ENTRY = "<HHII"
Entry = tuple[int, int, int, int]


def _ifd(entries: list[Entry], following: int = 0) -> bytes:
    body = b"".join(struct.pack(_ENTRY, *entry) for entry in sorted(entries))
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def _tiff(pixels: bytes, *changes: Entry, without: tuple[int, ...] = (), following: int = 0, behind: bytes = b"") -> bytes:
    """Returns a 20×20 grey TIFF file in one strip, some of whose entries are replaced, added or left out."""
    entries = {
        256: (256, 4, 1, 20), 257: (257, 4, 1, 20), 258: (258, 3, 1, 8), 259: (259, 3, 1, 1), 262: (262, 3, 1, 1),
        273: (273, 4, 1, 8), 277: (277, 3, 1, 1), 278: (278, 4, 1, 20), 279: (279, 4, 1, len(pixels)),
    }  # fmt: skip
    entries |= {change[0]: change for change in changes}
    kept = [entry for tag, entry in entries.items() if tag not in without]
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + _ifd(kept, following) + behind


def _tiled(packed: bytes, compression: int, side: int) -> bytes:
    """Returns a 20×20 TIFF file in one tile of `side` pixels."""
    tile = [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8), (325, 4, 1, len(packed))]
    return _tiff(packed, (259, 3, 1, compression), *tile, without=(273, 278, 279))


@functools.cache
def _greedy_directory(entries: int = 20_000, kind: int = 7, head: bytes = b"II*\0") -> bytes:
    """Returns a block of TIFF or EXIF whose entries all name the whole block: 20,000 of them 4.8 GB."""
    order = "<" if head.startswith(b"II") else ">"
    size = 8 + 2 + 12 * entries + 4
    count = size // 8 if kind == 5 else size
    parts = b"".join(struct.pack(f"{order}HHLL", 1000 + number, kind, count, 0) for number in range(entries))
    return head + struct.pack(f"{order}LH", 8, entries) + parts + bytes(4)


def _with_inner_directory(pixels: bytes, tag: int, kind: int) -> bytes:
    """Returns a TIFF file that names a further directory, each of whose entries names the same 60,000 bytes."""
    inner = _ifd([(50_000 + number, 7, 60_000, 0) for number in range(5_000)])
    return _tiff(pixels + inner, (279, 4, 1, len(pixels)), (tag, kind, 1, 8 + len(pixels)))


def _lying_tiffs() -> Iterator[tuple[str, bytes, Expected]]:
    pixels, deflate = bytes(range(200)) * 2, (259, 3, 1, 8)
    yield "plain.tiff", _tiff(pixels), OK
    for name, width, height, statuses in [
        ("wider", 400, 20, UNREADABLE), ("higher", 20, 400, UNREADABLE), ("smaller", 20, 10, LENIENT),
        ("no-width", 0, 20, UNREADABLE), ("no-height", 20, 0, UNREADABLE), ("largest", 2**32 - 1, 2**32 - 1, LARGE),
        ("line", 2**31 - 1, 1, LARGE), ("line-just-right", 4_000_000, 1, UNREADABLE),
    ]:  # fmt: skip
        size = [(256, 4, 1, width), (257, 4, 1, height)]
        yield f"{name}.tiff", _tiff(pixels, *size), statuses
        yield f"{name}-deflate.tiff", _tiff(zlib.compress(pixels), deflate, *size), statuses
    bomb = _squeezed(2**28)
    yield "bomb-strip.tiff", _tiff(bomb, deflate), LENIENT
    for side in (16_384, 40_000, 65_520, 2**24, 2**31):
        yield f"bomb-tile-{side}.tiff", _tiled(bomb, 8, side), LARGE | LENIENT
        yield f"raw-tile-{side}.tiff", _tiled(pixels, 1, side), LARGE | LENIENT
        yield f"lzw-tile-{side}.tiff", _tiled(pixels, 5, side), LARGE | LENIENT
    yield "no-tile-width.tiff", _tiled(pixels, 8, 0), LENIENT
    yield "rows-4-billion.tiff", _tiff(pixels, (278, 4, 1, 2**32 - 1)), LENIENT
    yield "rows-none.tiff", _tiff(pixels, (278, 4, 1, 0)), LENIENT
    yield "strip-4-gigabytes.tiff", _tiff(pixels, (279, 4, 1, 2**32 - 1)), LENIENT
    yield "strip-elsewhere.tiff", _tiff(pixels, (273, 4, 1, 2**32 - 9)), UNREADABLE
    many = [(256, 4, 1, 1), (257, 4, 1, 10**6), (278, 4, 1, 1), (273, 3, 10**6, 8), (279, 3, 10**6, 8)]
    yield "1000000-strips.tiff", _tiff(b"\x08\0" * 10**6, *many), LENIENT
    yield "strips-uncounted.tiff", _tiff(pixels, (273, 4, 2**28, 8), (279, 4, 2**28, 8)), UNREADABLE
    yield "bits-uncounted.tiff", _tiff(pixels, (258, 3, 2**30, 8)), UNREADABLE
    yield "text-of-2-gigabytes.tiff", _tiff(pixels, (270, 2, 2**31 - 1, 8)), LENIENT
    yield "type-99.tiff", _tiff(pixels, (270, 99, 1, 8)), LENIENT
    yield "width-as-text.tiff", _tiff(pixels, (256, 2, 4, 0x30303039)), UNREADABLE
    yield "65535-samples.tiff", _tiff(pixels, (277, 3, 1, 65_535)), UNREADABLE
    for packing in (2, 3, 4, 5, 6, 7, 32_773, 32_809, 34_676, 34_712, 34_925, 50_000, 50_001, 65_000):
        yield f"packing-{packing}.tiff", _tiff(pixels, (259, 3, 1, packing)), ANY
    start = 8 + len(pixels)
    yield "cyclic.tiff", _tiff(pixels, following=start), OK
    second = start + len(_ifd([(0, 0, 0, 0)] * 9))
    yield "cyclic-by-two.tiff", _tiff(pixels, following=second, behind=_ifd([(256, 4, 1, 20)], following=start)), OK
    yield "directory-elsewhere.tiff", b"II*\0" + struct.pack("<I", 2**31) + bytes(400), UNREADABLE
    yield "directory-in-the-head.tiff", b"II*\0\0\0\0\0" + bytes(400), UNREADABLE
    yield "65535-entries.tiff", b"II*\0\x08\0\0\0\xff\xff" + struct.pack(_ENTRY, 270, 2, 4, 8) * 65_535, UNREADABLE
    yield "cyclic-exif.tiff", _tiff(pixels, (34_665, 4, 1, start)), LENIENT
    for name, tag, kind in (("exif", 34_665, 4), ("gps", 34_853, 13), ("interop", 40_965, 3)):
        yield f"greedy-{name}.tiff", _with_inner_directory(pixels, tag, kind), UNREADABLE
    entries = struct.pack("<HHQQ", 270, 2, 4, 8) * 140_000
    yield "140000-entries.tiff", b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 140_000) + entries, UNREADABLE
    yield "greedy.tiff", _greedy_directory(), UNREADABLE
    yield "greedy-as-if-big.tiff", _greedy_directory(head=b"MM\0+"), UNREADABLE
    wide = [(256, 4, 1, 4_000_000), (257, 4, 1, 1), (322, 4, 1, 2_000_000), (323, 4, 1, 1), (324, 3, 2, 8 | 9 << 16)]
    wide.append((325, 3, 2, 1 | 1 << 16))
    yield "tiles-a-byte-apart.tiff", _tiff(bytes(3_000_000), *wide, without=(273, 278, 279)), UNREADABLE
    lines = [(256, 4, 1, 2_000_000), (257, 4, 1, 2), (278, 4, 1, 1), (273, 3, 2, 8 | 9 << 16), (279, 3, 2, 1 | 1 << 16)]
    yield "strips-a-byte-apart.tiff", _tiff(bytes(3_000_000), *lines), UNREADABLE
    yield "floats.tiff", _tiff(bytes(1600), (258, 3, 1, 32), (339, 3, 1, 3)), frozenset({"unsupported"})


# WebP


def _riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _part(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _canvas(width: int, height: int, flags: int = 0) -> bytes:
    return _part(b"VP8X", struct.pack("<I", flags) + _three(width - 1) + _three(height - 1))


def _three(number: int) -> bytes:
    return struct.pack("<I", number)[:3]


def _webp_frame(size: tuple[int, int], picture_chunk: bytes) -> bytes:
    return _part(b"ANMF", bytes(6) + _three(size[0] - 1) + _three(size[1] - 1) + _three(40) + b"\0" + picture_chunk)


_WEBP_ANIMATION = _part(b"ANIM", bytes(6))


def _vp8l(width: int, height: int, rest: bytes) -> bytes:
    return _part(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + rest)


def _lying_webps(lossless: bytes) -> Iterator[tuple[str, bytes, Expected]]:
    rest, chunk = lossless[25:], lossless[12:]
    for name, width, height in (("wider", 300, 44), ("smaller", 10, 10), ("largest", 16_384, 16_384), ("line", 16_384, 1)):
        yield f"{name}.webp", _riff(_vp8l(width, height, rest)), LARGE if name == "largest" else LENIENT
        yield f"canvas-{name}.webp", _riff(_canvas(width, height) + chunk), LARGE | LENIENT
    for side in (2_000, 16_384, 60_000):
        frame = _webp_frame((60, 44), chunk)
        statuses = LARGE if side > 2_000 else OK
        yield f"canvas-{side}.webp", _riff(_canvas(side, side, flags=2) + _WEBP_ANIMATION + frame), statuses
    yield "canvas-2-to-the-24.webp", _riff(_canvas(2**24, 255, flags=2) + _WEBP_ANIMATION + _webp_frame((60, 44), chunk)), LARGE
    yield "frame-outside.webp", _riff(_canvas(10, 10, flags=2) + _WEBP_ANIMATION + _webp_frame((60, 44), chunk)), LENIENT
    yield "no-frame.webp", _riff(_canvas(60, 44, flags=2) + _WEBP_ANIMATION), UNREADABLE
    yield "riff-4-gigabytes.webp", lossless[:4] + b"\xfe\xff\xff\xff" + lossless[8:], LENIENT
    yield "riff-of-none.webp", lossless[:4] + bytes(4) + lossless[8:], LENIENT
    yield "300000-chunks.webp", _riff(_canvas(60, 44) + _part(b"teSt", b"") * 300_000 + chunk), LENIENT
    yield "profile-missing.webp", _riff(_canvas(60, 44, flags=0x3C) + chunk), LENIENT


# Animations of thousands of frames


def _animations() -> Iterator[tuple[str, bytes, Expected]]:
    yield "20000-frames.gif", _gif((10, 10), [_gif_frame((0, 0), (1, 1))] * 20_000), LENIENT
    tiny = saved(Image.new("RGB", (1, 1), "red"), "WEBP", lossless=True)[12:]
    frames = _webp_frame((1, 1), tiny) * 20_000
    yield "20000-frames.webp", _riff(_canvas(1000, 1000, flags=2) + _WEBP_ANIMATION + frames), OK
    yield "20000-frames.png", _apng(20_000), OK
    single = 8 + 400
    pages, length = [], len(_ifd([(0, 0, 0, 0)] * 9))
    for page in range(2_000):
        whole = _tiff(bytes(400), following=single + length * (page + 1) if page < 1_999 else 0)
        pages.append(whole[single:])
    yield "2000-pages.tiff", b"II*\0" + struct.pack("<I", single) + bytes(400) + b"".join(pages), OK


def _apng(frames: int) -> bytes:
    control, pixels, number = [], _grey_rows(1, 1), 0
    for _ in range(frames):
        control.append(_chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 1, 1, 0, 0, 1, 100, 0, 0)))
        control.append(_chunk(b"fdAT", struct.pack(">I", number + 1) + pixels))
        number += 2
    whole = _png(1, 1, pixels, _chunk(b"acTL", struct.pack(">II", frames, 0)))
    return whole[:-12] + b"".join(control) + whole[-12:]


# EXIF


def _exif(*entries: Entry) -> bytes:
    return b"II*\0\x08\0\0\0" + _ifd(list(entries))


def _exifs() -> Iterator[tuple[str, bytes, Expected]]:
    turned = (0x0112, 3, 1, 6)
    blocks = {f"orientation-{value}": _exif((0x0112, 3, 1, value)) for value in (0, 1, 6, 9, 99, 65_535)}
    blocks |= {f"orientation-of-type-{kind}": _exif((0x0112, kind, 1, 6)) for kind in (0, 1, 2, 4, 5, 7, 9, 10, 11, 12, 99)}
    blocks["several-orientations"] = _exif((0x0112, 3, 2, 6 | 3 << 16))
    blocks["orientation-uncounted"] = _exif((0x0112, 3, 2**31, 6))
    blocks["truncated"] = _exif(turned)[:13]
    blocks["no-directory"] = b"II*\0\x08\0\0\0"
    blocks["nothing"] = b""
    blocks["noise"] = random.Random(1).randbytes(300)
    blocks["directory-elsewhere"] = b"MM\0*\xff\xff\xff\xff"
    blocks["turned-and-cyclic"] = _exif(turned, (0x8769, 4, 1, 8), (0x8825, 4, 1, 8))
    blocks["turned-and-a-broken-text"] = _exif(turned, (0x010E, 2, 2**30, 8))
    blocks["turned-and-a-type-99"] = _exif(turned, (0x010E, 99, 4, 8))
    blocks["turned-and-a-wrong-type"] = _exif(turned, (0x9286, 12, 1, 2**31), (0xA002, 2, 4, 2**31))
    blocks["turned-and-no-ratio"] = _exif(turned, (0x011A, 5, 1, 0), (0x011B, 10, 1, 2))
    blocks["5000-entries"] = _exif(turned, *((0x010E, 2, 4, 8),) * 5_000)
    webp = saved(picture(), "WEBP")[12:]
    for name, block in blocks.items():
        yield f"exif-{name}.jpg", _after_start(saved(picture(), "JPEG"), _marker(0xE1, b"Exif\0\0" + block)), OK
        yield f"exif-{name}.png", _png(20, 20, _grey_rows(20, 20), _chunk(b"eXIf", block)), OK
        yield f"exif-{name}.webp", _riff(_canvas(60, 44, flags=8) + webp + _part(b"EXIF", block)), OK
    for name, block in (("greedy", _greedy_directory()), ("400000-directories", b"II*\0" * 400_000)):
        yield f"exif-{name}.webp", _riff(_canvas(60, 44, flags=8) + webp + _part(b"EXIF", block)), UNREADABLE


# What is not a plain file, or has no plain name


# AVIF and HEIC


def _lying_containers() -> Iterator[tuple[str, bytes, Expected]]:
    """Yields files whose container names another size than the coded picture has."""
    blank = Image.new("RGB", (2000, 1500))
    wholes = {"avif": saved(blank, "AVIF", speed=10)} | ({"heic": _heic(blank)} if can_read_heif() else {})
    for kind, whole in wholes.items():
        for width, height in ((16, 16), (1, 1), (0, 0), (2001, 1500), (4000, 1), (2**31 - 1, 2**31 - 1), (16384, 16384)):
            yield f"said-{width}x{height}.{kind}", _with_extents(whole, width, height), ANY


def _with_extents(whole: bytes, width: int, height: int) -> bytes:
    """Returns a file whose `ispe` box (ISO/IEC 23008-12, 6.5.3) names another size."""
    start = whole.index(b"ispe") + 8
    return whole[:start] + struct.pack(">II", width, height) + whole[start + 8 :]


def _odd_names(folder: Path) -> dict[str, Expected]:
    """Writes one good picture under names that a shell, a log or a terminal would stumble over."""
    png = saved(picture(), "PNG")
    names = [
        "line\nbreak.png", "\"quo'tes`.png", "$(reboot);&|.png", "-rf", " ", "%00%2e%2e.png", "\x1b[31mred.png", "*?[a].png",
        "\u202egnp.exe", "Ünïcödé-🙂.png", "a:b.png", "x" * 251 + ".png", os.fsdecode(b"\xff\xfe\x80.png"),
    ]  # fmt: skip
    expected = {}
    for name in names:
        (folder / name).write_bytes(png)
        expected[str(folder / name)] = OK
    (folder / "scheme:").mkdir()
    (folder / "scheme:" / "inside.png").write_bytes(png)
    expected[f"{folder}/scheme://inside.png"] = OK
    expected[f"{folder}/../{folder.name}/a:b.png"] = OK
    expected[f"{folder}//.//a:b.png"] = OK
    return expected


def _odd_objects(folder: Path) -> dict[str, Expected]:
    """Makes folders, pipes, sockets and links, and returns these and names that cannot be."""
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "scheme:" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as one:
        _bind(one, folder, "socket.png")
    for name, target in {"zero.png": "/dev/zero", "full.png": "/dev/full", "null.png": "/dev/null", "loop.png": "loop.png",
                         "loop-a.png": "loop-b.png", "loop-b.png": "loop-a.png", "nowhere.png": "no/such/place",
                         "chain.png": "pipe.png", "memory.png": "/proc/self/mem", "status.png": "/proc/self/status",
                         "itself.png": "."}.items():  # fmt: skip
        (folder / name).symlink_to(target)
    (folder / "secret.png").write_bytes(saved(picture(), "PNG"))
    (folder / "secret.png").chmod(0)
    expected = {
        "folder.png": UNREADABLE, "pipe.png": UNREADABLE, "scheme://pipe.png": UNREADABLE, "chain.png": UNREADABLE,
        "zero.png": UNREADABLE, "full.png": UNREADABLE, "null.png": UNREADABLE, "itself.png": UNREADABLE,
        "socket.png": frozenset({"missing", "unreadable"}), "status.png": UNREADABLE,
        "memory.png": frozenset({"unavailable", "unreadable", "denied"}),
        "loop.png": MISSING, "loop-a.png": MISSING, "nowhere.png": MISSING, "no-such-file.png": MISSING,
        "secret.png": OK if os.geteuid() == 0 else frozenset({"denied"}),
        "whole-rgb.png/": MISSING, "whole-rgb.png/below.png": MISSING, "a\0b.png": MISSING, "\0://b.png": MISSING,
        "\ud800.png": MISSING, "x" * 256: MISSING, "/".join(["long" * 20] * 50): MISSING, "../" * 1400 + "x": MISSING,
        "": UNREADABLE, "..": UNREADABLE, "../": UNREADABLE,
    }  # fmt: skip
    return {f"{folder}/{name}": statuses for name, statuses in expected.items()}


def _bind(one: socket.socket, folder: Path, name: str) -> None:
    """Makes a socket's file; its path would be too long for the kernel, so it is named from within the folder."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        one.bind(name)
    finally:
        os.fchdir(here)
        os.close(here)


_NOWHERE = frozenset({"missing", "unsupported", "unavailable"})
_URIS = dict.fromkeys([
    "gopher://host/a.png", "http://127.0.0.1:1/a.png", "https://[::1/a.png", "file:///etc/hostname", "data://,a", "://", "a://",
    "javascript://%0aalert(1)", "store://a\nb/c.png", "s3://bucket/a.png", "hdfs://host/a.png", "azfs://a/b/c.png", "\0://a",
    "x://\0", "ftp://host/\udcff.png", "x://\ud800", "", " ", "~", "file:/etc/hostname", "C:\\a.png", "a" * 5000 + "://b",
    "-", "|id", "//", "s3://", "hdfs://",
], _NOWHERE) | {"//": UNREADABLE} | dict.fromkeys(
    ["s3://bucket/a.png", "/proc/1/cwd/x.png", "/proc/2/exe/x.png"], _NOWHERE | {"denied"}
)  # fmt: skip


def main() -> None:
    """Writes the corpus into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="an empty folder, or one to be made")
    parser.add_argument("--seed", type=int, default=0, help="of the random damage")
    options = parser.parse_args()
    for name, statuses in write_corpus(options.folder, options.seed).items():
        print(f"{' or '.join(sorted(statuses)):<40} {name[:200]!r}")


if __name__ == "__main__":
    main()
