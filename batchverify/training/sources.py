"""Where training images come from: class folders, a manifest of pairs, or drawn by this package."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from batchverify.config import VerificationConfig
from batchverify.demo import characters
from batchverify.errors import PreflightError
from batchverify.images.decode import IMAGE_ENDINGS
from batchverify.images.failure import ImageFailure
from batchverify.images.reader import ImageReader
from batchverify.images.resize import Layout
from batchverify.manifest.columns import pair_uris, parse_labels
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.read import read_blocks
from batchverify.training.data import Group

_LOG = logging.getLogger(__name__)
_READERS = 8


def read_folders(folder: str, size: int) -> list[Group]:
    """Reads `folder/[…/]group/class/*`: a folder that holds images is a class, the folder above it its group.

    A group that lies below `folder` a second time, the same files under the same name, is read once.

    Args:
        folder: on this machine.
        size: height and width of the result in pixels.

    Raises:
        PreflightError: if there is no such folder, or no class with two readable images in it.
    """
    if not os.path.isdir(folder):
        raise PreflightError(f"--images {folder}: there is no such folder; check the path.")
    classes: dict[Path, list[Path]] = {}
    for where, _, names in os.walk(folder):
        if images := sorted(name for name in names if name.lower().endswith(IMAGE_ENDINGS)):
            classes[Path(where)] = [Path(where) / name for name in images]
    groups: dict[Path, dict[str, list[str]]] = defaultdict(dict)
    for path, files in sorted(classes.items()):
        groups[path.parent][path.name] = [str(file) for file in files]
    distinct = {_fingerprint(path, found): path for path, found in sorted(groups.items(), reverse=True)}
    chosen = sorted(distinct.values(), key=lambda path: (path.name, path))
    return _read({str(path): groups[path] for path in chosen}, size, f"--images {folder}")


def read_manifest(config: VerificationConfig, size: int) -> list[Group]:
    """Reads the classes that a manifest's genuine pairs join: whatever genuine pairs connect is one class.

    Args:
        config: which manifest, and its columns; its labels are needed.
        size: height and width of the result in pixels.

    Raises:
        PreflightError: if it has no labels, labels that contradict each other, or no class with two readable images.
    """
    manifest = plan_manifest(config)
    name = ", ".join(config.manifests)
    if manifest.label_column is None:
        raise PreflightError(
            f"--manifest {name}: it has no column 'genuine', which training needs; name it with --label-column."
        )
    joined = _Joined()
    impostors: list[tuple[str, str, int]] = []
    for shard in manifest.shards:
        for block in read_blocks(shard, manifest.schema, config):
            labels, _ = parse_labels(block[manifest.label_column])
            left, right = (column.to_pylist() for column in pair_uris(block, config))
            rows = block["manifest_row"].to_pylist()
            for label, one, other, row in zip(labels, left, right, rows, strict=True):
                if one and other and label == 1:
                    joined.join(one, other)
                elif one and other and label == 0:
                    impostors.append((one, other, row))
    for one, other, row in impostors:
        if joined.known(one) and joined.known(other) and joined.root(one) == joined.root(other):
            raise PreflightError(
                f"--manifest {name}: row {row} says impostor, and genuine rows join its images; correct the labels."
            )
    return _read({name: {str(n): files for n, files in enumerate(joined.classes())}}, size, f"--manifest {name}")


def draw_groups(count: int, classes: int, drawings: int, size: int, seed: int) -> list[Group]:
    """Draws `count` invented alphabets of `classes` characters, `drawings` times each; one channel."""
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
    files = sorted((name, os.path.basename(file), os.path.getsize(file)) for name, found in classes.items() for file in found)
    return (group.name, *files)


def _read(groups: Mapping[str, Mapping[str, Sequence[str]]], size: int, source: str) -> list[Group]:
    reader = ImageReader(Layout(size, size), max_pixels=64_000_000, max_bytes=64 * 2**20)
    failed: list[str] = []
    single = 0
    read: list[Group] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for name, classes in groups.items():
            kept = []
            for files in classes.values():
                found = list(pool.map(reader.read, files))
                failed += [file for file, (image, _) in zip(files, found, strict=True) if isinstance(image, ImageFailure)]
                images = [image for image, _ in found if not isinstance(image, ImageFailure)]
                if len(images) > 1:
                    kept.append(np.stack(images))
                single += len(images) == 1
            if kept:
                read.append(Group(Path(name).name, tuple(kept)))
    if failed:
        _LOG.warning("%d images could not be read and are left out, the first is %s.", len(failed), failed[0])
    if single:
        _LOG.warning("%d classes have one image, which makes no genuine pair; they are left out.", single)
    if not read:
        raise PreflightError(
            f"{source}: no class in it has two images that can be read; see docs/training.md for what it must look like."
        )
    return _without_needless_colour(read)


def _without_needless_colour(groups: list[Group]) -> list[Group]:
    """Keeps one channel where all are equal, in every image: a third of the memory and of the distorting."""
    if any((images[..., :1] != images).any() for group in groups for images in group.classes):
        return groups
    return [Group(group.name, tuple(images[..., :1].copy() for images in group.classes)) for group in groups]


class _Joined:
    """Disjoint sets of file names (union-find with path halving)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def known(self, name: str) -> bool:
        return name in self._parent

    def join(self, one: str, other: str) -> None:
        self._parent[self.root(one)] = self.root(other)

    def root(self, name: str) -> str:
        self._parent.setdefault(name, name)
        while self._parent[name] != name:
            self._parent[name] = name = self._parent[self._parent[name]]
        return name

    def classes(self) -> Iterable[list[str]]:
        members: dict[str, list[str]] = defaultdict(list)
        for name in self._parent:
            members[self.root(name)].append(name)
        return members.values()
