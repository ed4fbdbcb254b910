"""Thumbnails of the most extreme pairs. Images are fetched again for the report; one that cannot be read becomes a status."""

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
from batchverify.images.layout import Layout
from batchverify.images.pixel_budget import PixelBudget
from batchverify.images.prefetch import Prefetcher
from batchverify.manifest.columns import pair_uris
from batchverify.schema import MANIFEST_FILE, ImageStatus
from batchverify.uris import is_remote

_SIDE_PIXELS = 128
_THREADS = 8
# The run is still in this process, with what its own threads hold; larger images wait for one another.
_PIXELS_AT_ONCE = 32_000_000
_LONGEST_WAIT_S = 5.0
_FORMATS: dict[str, dict[str, Any]] = {"png": {"optimize": True}, "jpeg": {"quality": 80}}
_SETTINGS = (
    "left_column", "right_column", "image_root", "max_image_pixels", "max_image_bytes", "image_timeout", "fetch_threads",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picture, or the reason why there is none.

    Attributes:
        data: The picture as a `data:` URI; empty if there is none.
        status: The status of the image when it was fetched for the report; `ok` if there is a picture.
    """

    data: str
    status: str


def pair_thumbnails(pairs: Sequence[dict[str, Any]], run: dict[str, Any]) -> list[tuple[Thumbnail, Thumbnail]]:
    """Fetches and decodes the images of `pairs`, each distinct image once, within the limits that the run had.

    Args:
        pairs: Pairs from the section `extremes` of `_summary.json`.
        run: The section `run` of `_summary.json`.

    Returns:
        The thumbnails of the left and the right image of each pair.
    """
    folder = run.get("working_directory", "")
    config = _image_settings(run.get("options", {}), folder)
    uris = [_resolve_pair(pair, config, folder) for pair in pairs]
    distinct = sorted({uri for pair in uris for uri in pair if uri is not None and not is_cut(uri)})
    thumbnails = _fetch_thumbnails(distinct, config)
    return [(_thumbnail_or_status(left, thumbnails), _thumbnail_or_status(right, thumbnails)) for left, right in uris]


def _image_settings(options: dict[str, Any], folder: str) -> ScoringConfig:
    """Returns the run's settings for images; a relative image root is resolved from the folder that the run started in."""
    settings = {name: options[name] for name in _SETTINGS if name in options}
    if settings.get("image_root"):
        settings["image_root"] = _resolve_path(folder, settings["image_root"])
    return ScoringConfig(**settings)


def _fetch_thumbnails(uris: list[str], config: ScoringConfig) -> dict[str, Thumbnail]:
    budget = PixelBudget(_PIXELS_AT_ONCE)
    prefetcher = Prefetcher(
        lambda uri: _thumbnail(uri, config, budget),
        lambda _: Thumbnail("", ImageStatus.UNAVAILABLE),
        min(_THREADS, config.fetch_threads or _THREADS),
        min(_LONGEST_WAIT_S, config.image_timeout),
    )
    batches = prefetcher.batches(uris, max(1, len(uris)), 0)
    return dict(zip(uris, (thumbnail for batch in batches for thumbnail in batch), strict=True))


def _thumbnail_or_status(uri: str | None, thumbnails: dict[str, Thumbnail]) -> Thumbnail:
    if uri is None:
        return Thumbnail("", ImageStatus.NO_URI)
    return thumbnails.get(uri, Thumbnail("", "name too long"))


def _resolve_pair(pair: dict[str, Any], config: ScoringConfig, folder: str) -> tuple[str | None, str | None]:
    """Returns the URIs of a pair, as the run resolved the names in its manifest."""
    manifest = _resolve_path(folder, pair["manifest_file"])
    row = {config.left_column: pair["left"], config.right_column: pair["right"], MANIFEST_FILE: manifest}
    left, right = pair_uris(pa.table({name: pa.array([value], pa.string()) for name, value in row.items()}), config)
    return left[0].as_py(), right[0].as_py()


def _resolve_path(folder: str, path: str) -> str:
    """Returns `path` as seen from `folder`. A URI or an absolute path is returned as it is."""
    return path if is_remote(path) else os.path.join(folder, path)


def _thumbnail(uri: str, config: ScoringConfig, budget: PixelBudget) -> Thumbnail:
    data = fetch_bytes(uri, config.max_image_bytes, config.image_root, min(_LONGEST_WAIT_S, config.image_timeout))
    pixels = (
        data
        if isinstance(data, ImageFailure)
        else decode(data, Layout(_SIDE_PIXELS, _SIDE_PIXELS, fit="pad"), config.max_image_pixels, budget)
    )
    if isinstance(pixels, ImageFailure):
        return Thumbnail("", str(pixels.status))
    return Thumbnail(_data_uri(Image.fromarray(pixels)), ImageStatus.OK)


def _data_uri(picture: Image.Image) -> str:
    """Returns the picture as a PNG or a JPEG, whichever is smaller."""
    files = {}
    for kind, settings in _FORMATS.items():
        file = io.BytesIO()
        picture.save(file, kind, **settings)
        files[kind] = file.getvalue()
    smallest = min(files, key=lambda kind: len(files[kind]))
    return f"data:image/{smallest};base64,{base64.b64encode(files[smallest]).decode()}"
