"""The sources of training images: class folders, a manifest of pairs, or alphabets that this package draws."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from batchverify.config import VerificationConfig
from batchverify.demo import characters
from batchverify.errors import PreflightError
from batchverify.images.failure import ImageFailure
from batchverify.images.formats import IMAGE_ENDINGS
from batchverify.images.layout import Layout
from batchverify.images.reader import ImageReader
from batchverify.manifest.columns import pair_uris
from batchverify.manifest.labels import parse_labels
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.read import read_blocks
from batchverify.manifest.shard import Manifest
from batchverify.training.data import Group

_LOG = logging.getLogger(__name__)
_READER_THREADS = 8


def read_folders(folder: str, size: int) -> list[Group]:
    """Reads the images of `folder/[…/]group/class/*`: a folder with images is a class, and the folder above it is its group.

    If two groups have the same name and the same files, one of them is read.

    Args:
        folder: A folder on this machine.
        size: Height and width of the result in pixels.

    Raises:
        PreflightError: if there is no such folder, or no class with two readable images in it.
    """
    if not os.path.isdir(folder):
        raise PreflightError(f"--images {folder}: there is no such folder; check the path.")
    classes: dict[Path, list[Path]] = {}
    for path, _, names in os.walk(folder):
        if images := sorted(name for name in names if name.lower().endswith(IMAGE_ENDINGS)):
            classes[Path(path)] = [Path(path) / name for name in images]
    groups: dict[Path, dict[str, list[str]]] = defaultdict(dict)
    for class_path, files in sorted(classes.items()):
        groups[class_path.parent][class_path.name] = [str(file) for file in files]
    distinct = {_fingerprint(group, members): group for group, members in sorted(groups.items(), reverse=True)}
    chosen = sorted(distinct.values(), key=lambda group: (group.name, group))
    return _read_groups({str(group): groups[group] for group in chosen}, size, f"--images {folder}")


def read_manifest(config: VerificationConfig, size: int) -> list[Group]:
    """Reads the classes of a manifest: images that genuine pairs connect, directly or through others, are one class.

    Args:
        config: The manifest and its columns.
        size: Height and width of the result in pixels.

    Raises:
        PreflightError: if it has no labels, labels that contradict each other, or no class with two readable images.
    """
    manifest = plan_manifest(config)
    name = ", ".join(config.manifests)
    if manifest.label_column is None:
        raise PreflightError(
            f"--manifest {name}: it has no column 'genuine', which training needs; name it with --label-column."
        )
    classes = _ConnectedImages()
    impostors: list[tuple[str, str, int]] = []
    for left, right, label, row in _labelled_pairs(manifest, manifest.label_column, config):
        if label == 1:
            classes.connect(left, right)
        else:
            impostors.append((left, right, row))
    for left, right, row in impostors:
        if classes.are_connected(left, right):
            raise PreflightError(
                f"--manifest {name}: row {row} says impostor, and genuine rows join its images; correct the labels."
            )
    members = {str(number): files for number, files in enumerate(classes.classes())}
    return _read_groups({name: members}, size, f"--manifest {name}")


def _labelled_pairs(manifest: Manifest, label_column: str, config: VerificationConfig) -> Iterator[tuple[str, str, int, int]]:
    """Yields left URI, right URI, label (1 or 0) and row number of each row that has all of them."""
    for shard in manifest.shards:
        for block in read_blocks(shard, manifest.schema, config):
            labels, _ = parse_labels(block[label_column])
            left_uris, right_uris = (column.to_pylist() for column in pair_uris(block, config))
            rows = block["manifest_row"].to_pylist()
            for left, right, label, row in zip(left_uris, right_uris, labels, rows, strict=True):
                if left and right and label in (0, 1):
                    yield left, right, int(label), row


def draw_groups(count: int, classes: int, drawings: int, size: int, seed: int) -> list[Group]:
    """Returns `count` invented alphabets of `classes` characters, with `drawings` images of each and one channel."""
    rng = np.random.default_rng(seed)
    groups = []
    for number in range(count):
        drawn = [
            np.stack([
                np.asarray(characters.draw(character, rng).convert("L").resize((size, size), Image.Resampling.BILINEAR))
                for _ in range(drawings)
            ])[..., None]
            for character in characters.invent_alphabet(rng, classes)
        ]  # fmt: skip
        groups.append(Group(f"invented-{number}", tuple(drawn)))
    return groups


def _fingerprint(group: Path, classes: Mapping[str, Sequence[str]]) -> tuple[object, ...]:
    """Returns the name of a group with the names and sizes of its files."""
    files = [(name, os.path.basename(path), os.path.getsize(path)) for name, paths in classes.items() for path in paths]
    return (group.name, *sorted(files))


def _read_groups(paths: Mapping[str, Mapping[str, Sequence[str]]], size: int, source: str) -> list[Group]:
    """Reads the images of all classes; classes with fewer than two readable images are left out.

    Args:
        paths: Paths of images by class, by group.
        size: Height and width of the result in pixels.
        source: The option that named the images, for messages.
    """
    reader = ImageReader(Layout(size, size), max_pixels=64_000_000, max_bytes=64 * 2**20)
    failed: list[str] = []
    single_image_classes = 0
    groups: list[Group] = []
    with ThreadPoolExecutor(_READER_THREADS) as pool:
        for name, paths_by_class in paths.items():
            classes = []
            for files in paths_by_class.values():
                results = list(pool.map(reader.read, files))
                failed += [file for file, (image, _) in zip(files, results, strict=True) if isinstance(image, ImageFailure)]
                images = [image for image, _ in results if not isinstance(image, ImageFailure)]
                if len(images) > 1:
                    classes.append(np.stack(images))
                single_image_classes += len(images) == 1
            if classes:
                groups.append(Group(Path(name).name, tuple(classes)))
    _warn_of_omissions(failed, single_image_classes)
    if not groups:
        raise PreflightError(
            f"{source}: it has no class with two images that can be read; give two or more images of each class."
        )
    return _reduce_grey(groups)


def _warn_of_omissions(failed: Sequence[str], single_image_classes: int) -> None:
    if failed:
        _LOG.warning("%d images could not be read and are left out; the first is %s.", len(failed), failed[0])
    if single_image_classes:
        _LOG.warning("%d classes have one image, which makes no genuine pair; they are left out.", single_image_classes)


def _reduce_grey(groups: list[Group]) -> list[Group]:
    """Returns the groups with one channel if all images are grey, which saves two thirds of memory and distortion."""
    if any((images[..., :1] != images).any() for group in groups for images in group.classes):
        return groups
    return [Group(group.name, tuple(images[..., :1].copy() for images in group.classes)) for group in groups]


class _ConnectedImages:
    """Sets of image URIs that genuine pairs connect (union-find with path halving)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def connect(self, left: str, right: str) -> None:
        """Merges the sets of two images."""
        self._parent[self._root(left)] = self._root(right)

    def are_connected(self, left: str, right: str) -> bool:
        """Returns whether two images are in the same set; images that were never connected are in none."""
        return left in self._parent and right in self._parent and self._root(left) == self._root(right)

    def classes(self) -> Iterable[list[str]]:
        """Returns the sets."""
        members: dict[str, list[str]] = defaultdict(list)
        for uri in self._parent:
            members[self._root(uri)].append(uri)
        return members.values()

    def _root(self, uri: str) -> str:
        self._parent.setdefault(uri, uri)
        while self._parent[uri] != uri:
            self._parent[uri] = uri = self._parent[self._parent[uri]]
        return uri
