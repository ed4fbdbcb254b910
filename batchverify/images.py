"""One image: fetched, decoded, resized. What goes wrong is a value, never an exception."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
import re
import stat
import time
import warnings
from typing import NamedTuple, Protocol

import numpy as np
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from batchverify import errors
from batchverify.errors import short_reason
from batchverify.io import object_store
from batchverify.io.filesystem import is_remote
from batchverify.schema import ImageStatus
from batchverify.traps import find_spacious_trap, find_trap, lacks_strips
from batchverify.worker_stats import WorkerStats

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
# Of the files of these formats, where a folder is looked through.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_MISSING = {errno.ENOENT, errno.ENOTDIR}
_DENIED = {errno.EACCES, errno.EPERM}
_ABSENT, _FORBIDDEN = re.compile(r"\b404\b|Not Found|NoSuch"), re.compile(r"\b(401|403)\b|Forbidden")
_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.2
# How long two changes may bear the same time: of the systems that count in seconds, and of all others.
_COARSE_TICK_NS, _TICK_NS = 2 * 10**9, 50 * 10**6
# Larger JPEG files are decoded where they are read: those that are left wait in memory, hundreds at a time.
_MOST_BYTES_LEFT = 512 * 2**10
# Within a JPEG file's scan, neither the byte 0xff itself nor a restart (ITU-T T.81, B.1.1).
_MARKER, _END_OF_IMAGE = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]"), b"\xff\xd9"


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there are no pixels.

    Attributes:
        status: the kind of failure.
        error: the same in words, without the URI.
    """

    status: ImageStatus
    error: str


_NO_OBJECT = Failure(ImageStatus.MISSING, "there is no such object")
_NO_ACCESS = Failure(ImageStatus.DENIED, "it may not be read")
_BY_CODE: dict[int | None, Failure] = {404: _NO_OBJECT, 401: _NO_ACCESS, 403: _NO_ACCESS}


class UndecodedJpeg(NamedTuple):
    """A JPEG file without traps or oddities, left to whoever decodes many at once.

    Attributes:
        data: the file's bytes.
    """

    data: bytes


class Resize(Protocol):
    """Brings an image to a size: uint8 `(height, width[, channels])`.

    Attributes:
        antialias: whether every source pixel counts, so that a JPEG may be decoded at a fraction of its size.
    """

    @property
    def antialias(self) -> bool: ...

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class PillowResize:
    """Resizes with one of Pillow's filters, which antialias, but for the nearest neighbour."""

    resample: Image.Resampling = Image.Resampling.BILINEAR
    antialias: bool = True

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        return np.asarray(image.resize((size[1], size[0]), self.resample))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the network wants an image's pixels.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: 3 or 1.
        grey: whether colours are taken away.
        resize: what brings an image to this size.
        fit: what becomes of other shapes: `stretch`, `crop` (the middle) or `pad` (with black).
    """

    height: int
    width: int
    channels: int = 3
    grey: bool = False
    resize: Resize = PillowResize()
    fit: str = "stretch"


class Read(NamedTuple):
    """What reading an image, or only looking it up, gave.

    Attributes:
        image: uint8 pixels `(height, width, channels)`, or a JPEG file that is left to be decoded, or the failure; None if it
            was only looked up, and is there.
        digest: 16 bytes of the file's content; None if they were not read.
        version: what the file's own file system says of it, which another content would change; None where it says nothing
            that is sure, or nobody asked.
    """

    image: np.ndarray | UndecodedJpeg | Failure | None
    digest: bytes | None = None
    version: str | None = None


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads images as the network wants them.

    Attributes:
        layout: of the result.
        max_pixels: an image of more is `too_large`.
        max_bytes: a file of more is `too_large`.
        root: folder outside of which nothing is opened, or None.
        limit_s: seconds that one image may take in all.
        tally: is told how long it took.
        versions: of `config.EMBEDDING_VERSIONS`: what `look_up` goes by; None where nobody looks up.
    """

    layout: Layout
    max_pixels: int
    max_bytes: int
    root: str | None = None
    limit_s: float = 60.0
    tally: WorkerStats = dataclasses.field(default_factory=WorkerStats)
    versions: str | None = None

    def read(self, uri: str) -> tuple[np.ndarray | Failure, bytes | None]:
        """Returns uint8 pixels `(height, width, channels)` or a failure, and the 16-byte digest of the file's bytes."""
        read = self.read_version(uri)
        assert isinstance(read.image, np.ndarray | Failure)
        return read.image, read.digest

    def read_version(self, uri: str, leave_jpegs: bool = False) -> Read:
        """Reads an image, and the version of it that was there before the first byte was read.

        Args:
            uri: of the image.
            leave_jpegs: whether small and plain JPEG files are left to be decoded.
        """
        file = self._fetch(uri, want_version=self.versions == "stat")
        if isinstance(file, Failure):
            return Read(file)
        fetched = time.perf_counter()
        leave_jpeg = leave_jpegs and len(file.data) <= _MOST_BYTES_LEFT
        image = _decode(file.data, self.layout, self.max_pixels, leave_jpeg)
        self.tally.collect("decode", time.perf_counter() - fetched)
        return Read(image, _digest(file.data), file.version)

    def look_up(self, uri: str) -> Read:
        """Finds out what tells whether an image has changed, its version or its digest, and decodes nothing."""
        by_content = self.versions == "content"
        file = self._fetch(uri, want_data=by_content, want_version=not by_content)
        if isinstance(file, Failure):
            return Read(file)
        return Read(None, digest=_digest(file.data)) if by_content else Read(None, version=file.version)

    def _fetch(self, uri: str, want_version: bool, want_data: bool = True) -> File | Failure:
        started = time.perf_counter()
        file = fetch_file(uri, self.max_bytes, self.root, self.limit_s, want_version, want_data)
        self.tally.collect("fetch", time.perf_counter() - started)
        return file


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


class File(NamedTuple):
    """What a file system gave.

    Attributes:
        data: the file's bytes; none if they were not asked for.
        version: see `Read`.
    """

    data: bytes
    version: str | None


def fetch(uri: str, max_bytes: int, root: str | None = None, limit_s: float = 60.0) -> bytes | Failure:
    """Returns the bytes of the file at `uri`: a local path, or a URI of any file system that Beam opens.

    Args:
        uri: of the file.
        max_bytes: a file of more is `too_large`.
        root: folder outside of which nothing is opened, or None.
        limit_s: seconds that it may take in all; after half of them nothing is tried again.
    """
    file = fetch_file(uri, max_bytes, root, limit_s, want_version=False)
    return file if isinstance(file, Failure) else file.data


def fetch_file(
    uri: str, max_bytes: int, root: str | None = None, limit_s: float = 60.0, want_version: bool = True, want_data: bool = True
) -> File | Failure:
    """Returns bytes and version of the file at `uri`, as much of both as is wanted.

    The version is that of the bytes or an older one, so that a file that changes meanwhile is never filed as what it became.
    """
    if root is not None:
        confined = _confined(uri, root)
        if confined is None:
            return Failure(ImageStatus.OUTSIDE_ROOT, f"it lies outside of {root}")
        uri = confined
    pause, last_try = _FIRST_PAUSE_S, time.monotonic() + limit_s / 2
    for attempt in range(_ATTEMPTS):
        if is_remote(uri):
            file = _find_in_store(uri, max_bytes, last_try, want_version, want_data)
        else:
            file = _find_local(uri, max_bytes, want_data)
        if isinstance(file, File) or file.status is not ImageStatus.UNAVAILABLE:
            break
        if attempt + 1 < _ATTEMPTS and time.monotonic() + pause < last_try:
            time.sleep(pause)
            pause *= 4
    if want_data and isinstance(file, File) and not file.data:
        return Failure(ImageStatus.EMPTY, "the file has no bytes")
    return file


def decode(data: bytes, layout: Layout, max_pixels: int = 64_000_000) -> np.ndarray | Failure:
    """Decodes an image file and resizes it.

    The first frame is taken, EXIF orientation honoured, transparency laid on white, 16 bits scaled to 8.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP, GIF or TIFF file.
        layout: of the result.
        max_pixels: more than these, by the file's header, is `too_large`; nothing is decoded.

    Returns:
        uint8 `(height, width, channels)`, or the failure.
    """
    image = _decode(data, layout, max_pixels, leave_jpeg=False)
    assert not isinstance(image, UndecodedJpeg)
    return image


def _decode(data: bytes, layout: Layout, max_pixels: int, leave_jpeg: bool) -> np.ndarray | UndecodedJpeg | Failure:
    if trap := find_trap(data):
        return Failure(ImageStatus.UNREADABLE, trap)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                found = f"{image.width} × {image.height} pixels, more than {max_pixels}"
                return Failure(ImageStatus.TOO_LARGE, f"{found} (--max-image-pixels)")
            if trap := find_spacious_trap(image, max_pixels):
                return Failure(ImageStatus.TOO_LARGE, trap)
            if lacks_strips(image):
                return Failure(ImageStatus.UNREADABLE, "it cannot be decoded (a part of its pixels is missing)")
            if leave_jpeg and _is_plain_jpeg(image, data):
                return UndecodedJpeg(data)
            # JPEG decodes at a half, a quarter, an eighth at a fraction of the cost; twice the wanted size keeps
            # the result within what the resize filter itself would smooth.
            if layout.resize.antialias:
                image.draft(None, (2 * max(layout.height, layout.width),) * 2)
            return _pixels(image, layout, max_pixels)
    except UnidentifiedImageError:
        return _unidentified(data)
    except Image.DecompressionBombError as error:
        return Failure(ImageStatus.TOO_LARGE, str(error))
    except MemoryError:
        return Failure(ImageStatus.TOO_LARGE, "there is not enough memory to decode it")
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to.
        return Failure(ImageStatus.UNREADABLE, f"it cannot be decoded ({short_reason(error)})")


def _is_plain_jpeg(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Returns whether decoding is all that is left to do, and gives the same pixels whoever does it.

    Of scans that are missing or follow one another oddly, each decoder makes its own; so there is to be one, and its end
    is to be the image's. Pillow has read the file up to that scan.
    """
    if image.fp is None or image.format != "JPEG" or image.mode not in ("RGB", "L") or "progressive" in image.info:
        return False
    end = _MARKER.search(data, image.fp.tell())
    return end is not None and end[0] == _END_OF_IMAGE and _turn(image) is None


def _pixels(image: Image.Image, layout: Layout, max_pixels: int) -> np.ndarray | Failure:
    image = _upright(image)
    width, height = _fitted_size(image.size, layout)
    if width * height > 2 * max_pixels:
        return Failure(ImageStatus.TOO_LARGE, f"padded, it would have {width} × {height} pixels (--fit pad)")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "I" and image.format in (None, "PNG"):  # Pillow's mode for some 16-bit PNG files
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F", "LAB"):
        return Failure(ImageStatus.UNSUPPORTED, f"pixels of kind {image.mode} have no agreed scale; store 8 or 16 bits")
    if image.has_transparency_data:
        image = _on_white(image)
    mode = "L" if layout.grey or layout.channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # which copies all the same
    pixels = layout.resize(_fitted(image, layout), (layout.height, layout.width))
    pixels = pixels.reshape(layout.height, layout.width, -1)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] < layout.channels else pixels


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF block says. Pillow's own `exif_transpose` also copies what is not turned."""
    image.load()
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Of a broken block; the pixels are whole.
        return None


def _fitted(image: Image.Image, layout: Layout) -> Image.Image:
    width, height = _fitted_size(image.size, layout)
    if (width, height) == image.size:
        return image
    left, top = int((image.width - width) / 2), int((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))  # what lies outside is black


def _fitted_size(size: tuple[int, int], layout: Layout) -> tuple[int, int]:
    """Returns width and height after cropping or padding, rounded as Keras' `smart_resize` and `pad_to_aspect_ratio` do."""
    width, height = size
    wanted_width, wanted_height = int(height * layout.width / layout.height), int(width * layout.height / layout.width)
    if layout.fit == "crop":
        return max(1, min(width, wanted_width)), max(1, min(height, wanted_height))
    if layout.fit == "pad":
        # Keras pads both sides by the same whole number.
        return width + max(0, wanted_width - width) // 2 * 2, height + max(0, wanted_height - height) // 2 * 2
    return size


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def _unidentified(data: bytes) -> Failure:
    """Tells a whole file of a format that is not read from a broken one."""
    for name in Image.ID:
        accept = Image.OPEN[name][1]
        if name not in _FORMATS and accept is not None and accept(data[:16]) is True:
            return Failure(ImageStatus.UNSUPPORTED, f"{name} files are not read; store JPEG, PNG, WebP, BMP, GIF or TIFF")
    return Failure(ImageStatus.UNREADABLE, "it is no image of a known format")


def _find_local(path: str, max_bytes: int, want_data: bool) -> File | Failure:
    try:
        # Without O_NONBLOCK the opening of a FIFO would wait for a writer that never comes.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                return Failure(ImageStatus.UNREADABLE, "it is not a file")
            if found.st_size > max_bytes:
                return _too_many_bytes(found.st_size, max_bytes)
            version = _version(found.st_size, found.st_mtime_ns)
            if not want_data:
                return File(b"", version)
            with open(handle, "rb", closefd=False) as file:
                data = file.read(found.st_size + 2**16)  # It may have grown; and /proc gives all its files a size of 0.
                return File(data, version) if len(data) <= max_bytes else _too_many_bytes(None, max_bytes)
        finally:
            os.close(handle)
    except ValueError as error:  # a NUL in the path
        return Failure(ImageStatus.MISSING, str(error))
    except OSError as error:
        if error.errno in _MISSING:
            return Failure(ImageStatus.MISSING, "there is no such file")
        if error.errno in _DENIED:
            return Failure(ImageStatus.DENIED, "it may not be read")
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO):
            return Failure(ImageStatus.MISSING, os.strerror(error.errno))
        return Failure(ImageStatus.UNAVAILABLE, short_reason(error))


def _version(size: int, changed_ns: int) -> str | None:
    """Returns a version made of a file's size and the time of its last change.

    None if that is so recent that a change after this one might get the same time, which git calls racily clean.
    """
    tick_ns = _COARSE_TICK_NS if changed_ns % 10**9 == 0 else _TICK_NS
    return None if abs(time.time_ns() - changed_ns) <= tick_ns else f"{size}-{changed_ns}"


def _find_in_store(uri: str, max_bytes: int, last_try: float, want_version: bool, want_data: bool) -> File | Failure:
    version = _store_version(uri) if want_version else None
    if not want_data:
        return version if isinstance(version, Failure) else File(b"", version)
    data = _read_store(uri, max_bytes, last_try)
    return data if isinstance(data, Failure) else File(data, None if isinstance(version, Failure) else version)


def _store_version(uri: str) -> str | Failure | None:
    try:
        if uri.startswith("s3://"):
            return FileSystems.checksum(uri)  # The etag; S3 tells times by the second.
        found = FileSystems.get_filesystem(uri).metadata(uri)
    except NotImplementedError:  # nor does every file system have to
        return None
    except Exception as error:  # Beam wraps whatever the store's client raises.
        return _store_failure(uri, error)
    if found is None or not found.last_updated_in_seconds:
        return None
    return _version(found.size_in_bytes, round(found.last_updated_in_seconds * 1e6) * 1000)


def _read_store(uri: str, max_bytes: int, last_try: float) -> bytes | Failure:
    try:
        if object_store.has_client(uri):
            data = object_store.read_object(uri, max_bytes, max(1.0, last_try - time.monotonic()))
        else:
            with FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file:
                data = object_store.read_stream(file, max_bytes)
    except errors.StoreError as failure:
        return _BY_CODE.get(failure.code, Failure(ImageStatus.UNAVAILABLE, f"the store gave no image ({failure.words})"))
    except ModuleNotFoundError as error:
        return Failure(ImageStatus.UNSUPPORTED, str(error))
    except Exception as error:  # Beam wraps whatever the store's client raises.
        return _store_failure(uri, error)
    return data if len(data) <= max_bytes else _too_many_bytes(None, max_bytes)


def _store_failure(uri: str, error: Exception) -> Failure:
    words = short_reason(error)
    if isinstance(error, ValueError) and "filesystem" in words.lower():
        return Failure(ImageStatus.UNSUPPORTED, f"no file system is installed for {uri.split('://')[0]}://")
    # Numbers in the URI itself, a port or a name, are no status of the store's.
    said = str(error).replace(uri, "")
    if isinstance(error, FileNotFoundError) or _ABSENT.search(said):
        return _NO_OBJECT
    if isinstance(error, PermissionError) or _FORBIDDEN.search(said):
        return _NO_ACCESS
    return Failure(ImageStatus.UNAVAILABLE, words)


def _too_many_bytes(size: int | None, max_bytes: int) -> Failure:
    found = f"{size} bytes, more than {max_bytes}" if size else f"more than {max_bytes} bytes"
    return Failure(ImageStatus.TOO_LARGE, f"{found} (--max-image-bytes)")


def _confined(uri: str, root: str) -> str | None:
    """Returns where to open `uri`, every link in it resolved, or None if that is outside of `root`."""
    if is_remote(uri):
        return uri if uri.startswith(root.rstrip("/") + "/") and ".." not in uri.split("/") else None
    try:
        real_root, real = os.path.realpath(root), os.path.realpath(uri)
        return real if not is_remote(root) and os.path.commonpath([real_root, real]) == real_root else None
    except ValueError:  # a NUL in the path, or what no file name can be; there is no such file anywhere
        return uri


# It warns of sizes and of odd metadata; the limits here decide. For the whole process, as decoding runs in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pillow's own limit only guesses; the header is checked against --max-image-pixels before anything is allocated.
Image.MAX_IMAGE_PIXELS = None
# A truncated file must fail, not come back half grey; this is Pillow's default, and other libraries change it.
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow loads its rarer formats on demand, and not when they are asked for by name. MPO opens as JPEG.
Image.init()
