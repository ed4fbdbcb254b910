"""Small pictures of the most telling pairs, fetched again for the report. What goes wrong is a word in a picture's place."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from batchverify.config import ScoringConfig
from batchverify.evaluation.extremes import is_cut
from batchverify.images.decode import decode
from batchverify.images.failure import ImageFailure
from batchverify.images.fetch import fetch_bytes
from batchverify.images.prefetch import Prefetcher
from batchverify.images.resize import Layout
from batchverify.manifest.columns import pair_uris
from batchverify.schema import MANIFEST_FILE, ImageStatus
from batchverify.uris import is_remote

_SIDE = 128
_THREADS = 8
_LONGEST_WAIT_S = 5.0
_SETTINGS = (
    "left_column", "right_column", "image_root", "max_image_pixels", "max_image_bytes", "image_timeout", "fetch_threads",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picture, or why there is none.

    Attributes:
        data: a `data:` URI; empty where there is none.
        status: `ok`, or what became of the image this time.
    """

    data: str
    status: str


def pair_thumbnails(pairs: Sequence[dict[str, Any]], run: dict[str, Any]) -> list[tuple[Thumbnail, Thumbnail]]:
    """Fetches and decodes the images of `pairs` within the limits of the run that found them.

    Args:
        pairs: of `summary.json`'s `extremes`.
        run: its `run`.

    Returns:
        Two pictures for each pair, each distinct image read once.
    """
    given, folder = run.get("options", {}), run.get("working_directory", "")
    settings = {name: given[name] for name in _SETTINGS if name in given}
    if settings.get("image_root"):
        settings["image_root"] = _from(folder, settings["image_root"])
    config = ScoringConfig(**settings)
    uris = [_absolute(pair, config, folder) for pair in pairs]
    wanted = sorted({uri for both in uris for uri in both if uri is not None and not is_cut(uri)})
    ahead = Prefetcher(
        lambda uri: _thumbnail(uri, config),
        lambda _: Thumbnail("", ImageStatus.UNAVAILABLE),
        min(_THREADS, config.fetch_threads or _THREADS),
        min(_LONGEST_WAIT_S, config.image_timeout),
    )
    found = dict(
        zip(wanted, (picture for batch in ahead.batches(wanted, max(1, len(wanted)), 0) for picture in batch), strict=True)
    )
    return [(_of(left, found), _of(right, found)) for left, right in uris]


def _of(uri: str | None, found: dict[str, Thumbnail]) -> Thumbnail:
    if uri is None:
        return Thumbnail("", ImageStatus.NO_URI)
    return found.get(uri, Thumbnail("", "name too long"))


def _absolute(pair: dict[str, Any], config: ScoringConfig, folder: str) -> tuple[str | None, str | None]:
    manifest = _from(folder, pair["manifest_file"])
    row = {config.left_column: pair["left"], config.right_column: pair["right"], MANIFEST_FILE: manifest}
    left, right = pair_uris(pa.table({name: pa.array([value], pa.string()) for name, value in row.items()}), config)
    return left[0].as_py(), right[0].as_py()


def _from(folder: str, path: str) -> str:
    """Returns where `path` leads from `folder`; a URI or an absolute path leads to the same place from anywhere."""
    return path if is_remote(path) else os.path.join(folder, path)


def _thumbnail(uri: str, config: ScoringConfig) -> Thumbnail:
    data = fetch_bytes(uri, config.max_image_bytes, config.image_root, min(_LONGEST_WAIT_S, config.image_timeout))
    pixels = data if isinstance(data, ImageFailure) else decode(data, Layout(_SIDE, _SIDE, fit="pad"), config.max_image_pixels)
    if isinstance(pixels, ImageFailure):
        return Thumbnail("", str(pixels.status))
    kinds = ("png", {"optimize": True}), ("jpeg", {"quality": 80})
    files = {}
    for kind, settings in kinds:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **settings)
        files[kind] = file.getvalue()
    smaller = min(files, key=lambda kind: len(files[kind]))
    return Thumbnail(f"data:image/{smaller};base64,{base64.b64encode(files[smaller]).decode()}", ImageStatus.OK)
