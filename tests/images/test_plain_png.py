"""PNG files that are left to the batch decoder unopened: Pillow would have found nothing else in them."""

import io
import random
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from batchverify.images.plain_png import plain_png_size
from batchverify.images.safety import find_decoding_hazard
from batchverify.images.traits import find_traits
from batchverify.schema import ImageTraits

SIZE = (48, 40)
MUTATIONS, MOST_PIXELS = 6_000, 8_000_000
START = b"\x89PNG\r\n\x1a\n"


def saved(mode: str = "RGB", kind: str = "PNG", **settings) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], len(START)
    while position < len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        found.append((data[position + 4 : position + 8], data[position + 8 : end]))
        position = end + 4
    return found


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    return START + b"".join(chunk(*part) for part in parts)


def with_chunk(name: bytes, content: bytes, place: int = 1, mode: str = "RGB") -> bytes:
    parts = chunks(saved(mode))
    return joined([*parts[:place], (name, content), *parts[place:]])


def with_split_pixels() -> bytes:
    first, (name, pixels), last = chunks(saved())
    return joined([first, *((name, pixels[start : start + 99]) for start in range(0, len(pixels), 99)), last])


def with_many_chunks(name: bytes) -> bytes:
    first, *rest = chunks(saved())
    return joined([first]) + chunk(name, b"") * 20_000 + joined(rest).removeprefix(START)


def with_header(**changes: int) -> bytes:
    (name, header), *rest = chunks(saved())
    places = {"width": 3, "depth": 8, "colour": 9, "compression": 10, "filters": 11, "interlace": 12}
    changed = bytearray(header)
    for field, value in changes.items():
        changed[places[field]] = value
    return joined([(name, bytes(changed)), *rest])


def text(**entries: str) -> PngImagePlugin.PngInfo:
    found = PngImagePlugin.PngInfo()
    for key, value in entries.items():
        found.add_text(key, value)
    return found


def upright() -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = 6
    return found


PLAIN = {
    "colour": saved(),
    "grey": saved("L"),
    "one bit": saved("1"),
    "a palette": saved("P"),
    "optimized": saved(optimize=True),
    "a resolution": saved(dpi=(300, 300)),
    "a line of text": saved(pnginfo=text(Software="a scanner")),
    "gamma": with_chunk(b"gAMA", (45455).to_bytes(4, "big")),
    "a time behind the pixels": with_chunk(b"tIME", bytes(7), -1),
    "pixels in many chunks": with_split_pixels(),
    "bytes behind its end": saved() + b"more",
}  # fmt: skip
OTHERS = {
    "transparency": saved("RGBA"),
    "grey with transparency": saved("LA"),
    "a transparent colour": saved(transparency=(1, 2, 3)),
    "a palette with transparency": saved("P", transparency=0),
    "sixteen bits": saved("I;16"),
    "EXIF": saved(exif=upright()),
    "EXIF behind the pixels": with_chunk(b"eXIf", upright().tobytes(), -1),
    "EXIF as text": saved(pnginfo=text(**{"Raw profile type exif": "exif"})),
    "XMP": with_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
    "a long text": saved(pnginfo=text(Comment="x" * 5_000)),
    "a colour profile": saved(icc_profile=b"profile" * 50),
    "frames": saved(save_all=True, append_images=[Image.new("RGB", SIZE)]),
    "many chunks": with_many_chunks(b"sBIT"),
    "many chunks of pixels": with_many_chunks(b"IDAT"),
    "a wrong checksum": saved().replace(b"IHDR", b"IHDS", 1).replace(b"IHDS", b"IHDR", 1)[:29] + b"\0" + saved()[30:],
    "a palette that it does not need": with_chunk(b"PLTE", bytes(6)),
    "a palette behind the pixels": with_chunk(b"PLTE", bytes(6), -1, "P"),
    "no palette": joined([part for part in chunks(saved("P")) if part[0] != b"PLTE"]),
    "no pixels": joined([part for part in chunks(saved()) if part[0] != b"IDAT"]),
    "no end": joined(chunks(saved())[:-1]),
    "cut in its pixels": saved()[:-200],
    "the header behind another chunk": with_chunk(b"gAMA", bytes(4), 0),
    "a gamma that is too short": with_chunk(b"gAMA", bytes(3)),
    "no width": with_header(width=0),
    "an unknown depth": with_header(depth=3),
    "an unknown colour type": with_header(colour=5),
    "an unknown compression": with_header(compression=1),
    "an unknown filter": with_header(filters=1),
    "an unknown interlace": with_header(interlace=2),
    "a JPEG file": saved(kind="JPEG"),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_file_has_the_size_that_its_header_names(name):
    assert plain_png_size(PLAIN[name]) == SIZE


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_file_has_to_be_opened(name):
    assert plain_png_size(OTHERS[name]) is None


@pytest.mark.parametrize("name", PLAIN)
def test_pillow_opens_every_plain_file_and_finds_nothing_else_in_it(name):
    """Bytes and names of chunks are changed in many ways, from a seed, and most of the checksums are made right again."""
    rng, parts, plain = random.Random(0), chunks(PLAIN[name].partition(b"more")[0]), 0
    for _ in range(MUTATIONS // len(PLAIN)):
        data = mutated(rng, parts)
        if (size := plain_png_size(data)) and size.width * size.height <= MOST_PIXELS:
            plain += 1
            assert find_decoding_hazard(data) is None
            with Image.open(io.BytesIO(data)) as image:
                assert image.size == size and image.mode in ("1", "L", "RGB", "P") and image.format == "PNG"
                assert find_traits(data, image) is ImageTraits.NONE
    assert 0.05 < plain / (MUTATIONS // len(PLAIN)) < 0.95


def mutated(rng: random.Random, parts: list[tuple[bytes, bytes]]) -> bytes:
    changed = list(parts)
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(changed))
        name, content = changed[place]
        kind = rng.randrange(5)
        if kind == 0:
            changed.insert(rng.randrange(len(changed) + 1), changed[place])
        elif kind == 1 and len(changed) > 1:
            del changed[place]
        elif kind == 2:
            names = (b"gAMA", b"pHYs", b"tRNS", b"PLTE", b"IDAT", b"acTL", b"eXIf", b"iCCP", b"zTXt", b"sRGB", b"bKGD")
            changed[place] = (rng.choice(names), content)
        elif content:
            edited = bytearray(content)
            edited[rng.randrange(min(len(edited), 16))] = rng.choice((0, 1, 2, 3, 6, 8, 16, rng.randrange(256)))
            changed[place] = (name, bytes(edited))
    data = joined(changed)
    if rng.random() < 0.1:
        place = rng.randrange(len(data))
        data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    return data
