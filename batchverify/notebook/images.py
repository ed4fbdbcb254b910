"""The images of a column: paths and URIs as they are, and images in memory as files in a temporary folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.manifest.columns import resolve_uris
from batchverify.schema import is_text

# The modes of Pillow's images that PNG holds without a loss and every loader reads, and the mode to write; others become RGB.
_PNG_MODES = {"1": "L", "L": "L", "LA": "LA", "P": "P", "RGB": "RGB", "RGBA": "RGBA"}
_ORIENTATION = 0x0112
_CHANNELS = (1, 2, 3, 4)
_FOLDER = "images"
_TAKEN = "give a path, a URI, the bytes of a file, a uint8 array (height, width[, channels]), or an image of Pillow's"


class ImageFiles:
    """Images in memory as files in a folder, each content once.

    Args:
        folder: A folder that outlives the use of the files.
    """

    def __init__(self, folder: str):
        self._folder = Path(folder) / _FOLDER
        self._folder.mkdir()
        # Many rows of a frame may hold the very same object; it is kept, so that its id is not given to another one.
        self._by_id: dict[int, tuple[Any, str]] = {}

    def uris(self, values: Any, name: str, with_memory: bool = True) -> pa.ChunkedArray:
        """Returns the URIs of images, text `(n,)`; null where there is no image.

        Args:
            values: A pandas series or a sequence of images.
            name: What holds them, for messages.
            with_memory: Whether images may be in memory.

        Raises:
            PreflightError: If one of them is nothing that holds an image.
        """
        if (texts := _as_text(values)) is not None:
            return texts
        uris = [self._uri(value, f"{name}, row {row}", with_memory) for row, value in enumerate(values)]
        return pa.chunked_array([pa.array(uris, pa.string())])

    def plain_errors(self, errors: pa.ChunkedArray) -> pa.ChunkedArray:
        """Returns errors of images without the names of files that are gone."""
        return pc.replace_substring_regex(errors, f"image {re.escape(str(self._folder))}/[^:]*: ", "image in memory: ")

    def _uri(self, value: Any, place: str, with_memory: bool) -> str | None:
        if isinstance(value, str | os.PathLike):
            return os.fspath(value)
        if not isinstance(value, np.ndarray | bytes | Image.Image) and _is_missing(value):
            return None
        if not with_memory:
            raise PreflightError(
                f"{place} holds an image in memory, and image_root and embeddings are for paths; leave them out, or give paths."
            )
        if (known := self._by_id.get(id(value))) is None:
            known = self._by_id[id(value)] = value, self._store(_file_of(value, place))
        return known[1]

    def _store(self, data: bytes) -> str:
        path = self._folder / hashlib.blake2b(data, digest_size=16).hexdigest()
        if not path.exists():
            path.write_bytes(data)
        return str(path)


def absolute_uris(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns URIs in which relative paths start from the working directory."""
    return resolve_uris(uris, os.getcwd())


def without_folder(text: str, folder: str) -> str:
    """Returns text, such as a path or a sentence, without the names of a temporary folder and of its images."""
    return text.replace(f"{folder}/{_FOLDER}/", "memory:").replace(f"{folder}/", "")


@contextlib.contextmanager
def errors_without_folder(folder: str) -> Iterator[None]:
    """Leaves the names of a temporary folder out of the errors of its block; see `without_folder`."""
    try:
        yield
    except (PreflightError, RunError) as error:
        if folder not in str(error):
            raise
        if isinstance(error, PreflightError):
            raise PreflightError([without_folder(problem, folder) for problem in error.problems]) from None
        raise RunError(without_folder(str(error), folder)) from None


def _as_text(values: Any) -> pa.ChunkedArray | None:
    """Returns a column of texts as Arrow has it; None where it holds anything else."""
    if not isinstance(values, pd.Series) or pd.api.types.infer_dtype(values, skipna=True) not in ("string", "empty"):
        return None
    found = pa.Array.from_pandas(values)
    column = found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])
    return column.cast(pa.string()) if is_text(column.type) or pa.types.is_null(column.type) else None


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _file_of(value: Any, place: str) -> bytes:
    """Returns the bytes of an image file that has the pixels of `value`."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image):
        return _file_of_picture(value)
    if hasattr(value, "__array__"):
        return _file_of_array(np.asarray(value), place)
    raise PreflightError(f"{place} holds {type(value).__name__} {str(value)!r:.60}, which is no image; {_TAKEN}.")


def _file_of_array(pixels: np.ndarray, place: str) -> bytes:
    if pixels.dtype == bool:  # Pillow gives the pixels of a picture in black and white as such.
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _CHANNELS)):
        raise PreflightError(f"{place} holds an array of {pixels.dtype} {pixels.shape}; {_TAKEN}.")
    if not pixels.size:
        return b""  # The image has the status `empty`.
    return _png(Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels))


def _file_of_picture(picture: Image.Image) -> bytes:
    """Returns a PNG file of a picture; of one that cannot be decoded, a file that cannot be decoded either."""
    try:
        picture.load()
        orientation = picture.getexif().get(_ORIENTATION, 1)
        # Black and white becomes grey, so that the picture is the same file as its array.
        mode = _PNG_MODES.get(picture.mode, "RGB")
        return _png(picture if picture.mode == mode else picture.convert(mode), orientation)
    except Exception as error:  # Pillow's decoders raise any exception.
        return f"an image of Pillow's that cannot be decoded: {short_reason(error)}".encode()


def _png(picture: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    if orientation != 1:
        exif[_ORIENTATION] = orientation
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1, **({"exif": exif} if orientation != 1 else {}))
    return file.getvalue()


def as_images(images: Any) -> tuple[list[Any], bool]:
    """Returns the images that somebody gives to be scored, and whether it is a single one.

    Args:
        images: One image, as a column of a frame may hold it, or a sequence, series or array of images. An array
            `(n, height, width, channels)` holds n images.
    """
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or _is_missing(images):
        return [images], True
    if isinstance(images, np.ndarray) and images.dtype != object and images.ndim in (2, 3):
        return [images], True
    if isinstance(images, Iterable):
        return list(images), False
    return [images], True
