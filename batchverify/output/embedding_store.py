"""A store of embeddings, so that a nightly run encodes only images that are new or have changed since the run before.

A store is a directory with one generation of Parquet files, `embeddings-*/part-*.parquet`, and `embeddings.json`. That file
names the generation, each of its files with size and digest, and the key: everything that decides an embedding, except the
image. A run reads the generation, writes a new one beside it, and replaces `embeddings.json` in one step after it has finished.
So a reader always gets a complete store. A file that differs from the one that was written is never used.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from batchverify.errors import PreflightError, short_reason
from batchverify.io.claimed_directory import ClaimedDirectory
from batchverify.io.filesystem import open_for_reading
from batchverify.output.embedding_rows import stored_schema
from batchverify.uris import is_remote
from batchverify.version import VERSION

_LOG = logging.getLogger(__name__)
_POINTER, _FORMAT = "embeddings.json", 2
_GENERATION_NAME, _FILE_NAME = re.compile(r"embeddings-[0-9a-f]{32}"), re.compile(r"part-[0-9a-f]{32}\.parquet")
_MAX_POINTER_CHARACTERS = 256 * 2**20
_FOOTER_THREADS = 16
# Some object stores have no locks: files younger than this may belong to a run that is still under way.
_MIN_LEFTOVER_AGE_S = 14 * 86_400
REBUILD_REMEDY = "or start afresh with --embeddings-rebuild"


class StoredFile(NamedTuple):
    """One file of a generation.

    Attributes:
        name: The name within the generation's folder.
        bytes: The size.
        rows: The number of rows.
        digest: BLAKE2b of its bytes, 16 bytes in hexadecimal digits.
    """

    name: str
    bytes: int
    rows: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Generation:
    """A published generation whose files have the sizes and footers that `embeddings.json` states.

    Attributes:
        name: The name of its folder.
        key: The key of its embeddings.
        files: Its files.
    """

    name: str
    key: dict[str, Any]
    files: tuple[StoredFile, ...]

    @property
    def rows(self) -> int:
        """The number of embeddings."""
        return sum(file.rows for file in self.files)


class EmbeddingStore(ClaimedDirectory):
    """A directory in which embeddings are kept from one run to the next.

    Args:
        path: A directory on any file system that Beam opens.
    """

    OPTION = "--embeddings"

    def read_published(self) -> Generation | None:
        """Returns the published generation after a check of its files' names, sizes and footers; None if there is none.

        Raises:
            PreflightError: If the directory is something else, or the store is not whole; with the remedy.
        """
        try:
            exists = FileSystems.exists(self._join(_POINTER))
            if not exists:
                self._refuse_other_contents()
            return self._verified(self._read(_POINTER)) if exists else None
        except PreflightError:
            raise
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise PreflightError(f"--embeddings {self.path} cannot be read ({short_reason(error)}); check the path.") from None

    def published_name(self) -> str | None:
        """Returns the name of the published generation, without a check of its files; None where there is none."""
        if not FileSystems.exists(self._join(_POINTER)):
            return None
        try:
            name = str(json.loads(self._read(_POINTER))["generation"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return name if _GENERATION_NAME.fullmatch(name) else None

    def refuse_taken(self) -> None:
        """Refuses a store that another run writes to, where that can be known, or a path that is no directory.

        Raises:
            PreflightError: With the remedy.
        """
        self._refuse_held()
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise PreflightError(f"--embeddings {self.path} is no directory; name another one.")

    def claimed(self, generation: str) -> AbstractContextManager[None]:
        """Holds the store for one run, and deletes what crashed runs left.

        At the end it deletes this run's generation if that was not published.

        Raises:
            PreflightError: If another run writes there, where that can be known.
            RunError: If it cannot be written to.
        """
        return self._claimed(generation, functools.partial(self._clean_up, generation))

    def discard(self, generation: str) -> None:
        """Deletes a generation, unless it was published."""
        try:
            if self.published_name() != generation:
                self._delete(generation)
        except Exception as error:  # Beam wraps whatever the store's client raises; a later run deletes what stays.
            _LOG.warning("--embeddings %s cannot be cleaned up (%s).", self.path, short_reason(error))

    def publish(self, generation: str, key: dict[str, Any], files: tuple[StoredFile, ...], run_id: str) -> None:
        """Makes a generation the store's own in one step, and deletes the one before. It may be called again."""
        before = self.published_name()
        if before == generation:
            return  # A worker died after it had published, and its bundle was tried again.
        self._require_present(generation, files)
        self._replace_pointer(_pointer_text(generation, key, files, run_id))
        if before is not None:
            self._delete(before)
        self._delete(generation, except_names={file.name for file in files})  # Bundles that ran twice left unlisted files.

    def _replace_pointer(self, text: str) -> None:
        if is_remote(self.path):
            self._write(_POINTER, text)  # An object store shows a new object only once it is complete.
            return
        unfinished = f".{_POINTER}"
        self._write(unfinished, text)
        os.replace(self._join(unfinished), self._join(_POINTER))

    def _verified(self, text: str) -> Generation:
        """Returns the generation that `embeddings.json` describes, after a check of all its files."""
        if len(text) > _MAX_POINTER_CHARACTERS:
            raise self._not_whole(f"{_POINTER} is too large")
        generation, rows = self._parse_pointer(text)
        if not _GENERATION_NAME.fullmatch(generation.name) or not all(map(_FILE_NAME.fullmatch, _names(generation))):
            raise self._not_whole(f"{_POINTER} names files that no store has")
        if rows != generation.rows:
            raise self._not_whole(f"{_POINTER} states {rows:,} rows, and its files have {generation.rows:,}")
        self._require_present(generation.name, generation.files)
        self._require_readable(generation)
        return generation

    def _parse_pointer(self, text: str) -> tuple[Generation, int]:
        """Returns the generation that a text describes, and the number of rows that the text states."""
        try:
            pointer = json.loads(text)
            if pointer["format"] != _FORMAT:
                raise self._not_whole(f"it has the format {pointer['format']!r:.20}, and this program knows {_FORMAT}")
            files = tuple(
                StoredFile(str(file["name"]), int(file["bytes"]), int(file["rows"]), str(file["digest"]))
                for file in pointer["files"]
            )
            return Generation(str(pointer["generation"]), dict(pointer["key"]), files), int(pointer["rows"])
        except PreflightError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._not_whole(f"{_POINTER} cannot be understood ({short_reason(error)})") from None

    def _require_present(self, generation: str, files: tuple[StoredFile, ...]) -> None:
        sizes = {match.path.rsplit("/", 1)[-1]: match.size_in_bytes for match in self._match(f"{generation}/part-*.parquet")}
        for file in files:
            if file.name not in sizes:
                raise self._not_whole(f"{generation}/{file.name} is missing")
            if sizes[file.name] != file.bytes:
                raise self._not_whole(f"{file.name} has {sizes[file.name]:,} bytes and should have {file.bytes:,}")

    def _require_readable(self, generation: Generation) -> None:
        schema = stored_schema(int(generation.key.get("embedding_size", 0)))
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            footers = list(threads.map(lambda file: self._read_footer(generation.name, file), generation.files))
        for file, footer in zip(generation.files, footers, strict=True):
            if not footer.schema.to_arrow_schema().equals(schema):
                raise self._not_whole(f"{file.name} has other columns than embeddings have")
            if footer.num_rows != file.rows:
                raise self._not_whole(f"{file.name} has {footer.num_rows:,} rows and should have {file.rows:,}")

    def _read_footer(self, generation: str, file: StoredFile) -> pq.FileMetaData:
        try:
            with open_for_reading(self._join(generation, file.name)) as opened:
                return pq.read_metadata(opened)
        except (pa.ArrowException, OSError) as error:
            raise self._not_whole(f"{file.name} cannot be read ({short_reason(error)})") from None

    def _refuse_other_contents(self) -> None:
        """Refuses a directory on this machine that holds other files, and so was probably named by mistake."""
        if not os.path.isdir(self.path):
            return
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not _GENERATION_NAME.fullmatch(entry.name) and entry.name != f".{_POINTER}":
                    raise PreflightError(
                        f"--embeddings {self.path} holds '{entry.name}' and no embeddings; name a folder of their own."
                    )

    def _not_whole(self, fault: str) -> PreflightError:
        return PreflightError(f"--embeddings {self.path}: the store is not whole: {fault}; restore it, {REBUILD_REMEDY}.")

    def _clean_up(self, current: str) -> None:
        """Deletes the generations that crashed runs left; `current` is this run's own."""
        published, oldest_kept = self.published_name(), time.time() - _MIN_LEFTOVER_AGE_S
        changed = self._last_changes()
        folders = set(changed)
        if not is_remote(self.path):
            folders |= {path.name for path in Path(self.path).glob("embeddings-*/")}
        for name in folders - {published, current}:
            if _GENERATION_NAME.fullmatch(name) and (not is_remote(self.path) or changed[name] < oldest_kept):
                self._delete(name)

    def _last_changes(self) -> dict[str, float]:
        """Returns the time at which the youngest file of each generation was written, by the generation's name."""
        changed: dict[str, float] = {}
        for match in self._match("embeddings-*/part-*.parquet"):
            name = match.path.rsplit("/", 2)[-2]
            changed[name] = max(changed.get(name, 0), match.last_updated_in_seconds or time.time())
        return changed

    def _delete(self, generation: str, except_names: Iterable[str] = ()) -> None:
        kept = set(except_names)
        paths = [match.path for match in self._match(f"{generation}/*")]
        if doomed := [path for path in paths if path.rsplit("/", 1)[-1] not in kept]:
            FileSystems.delete(doomed)
        if not kept and os.path.isdir(self._join(generation)):
            os.rmdir(self._join(generation))


def open_store(path: str, rebuild: bool) -> tuple[Generation | None, str | None]:
    """Returns the generation that a run may read, if there is one, and the reason why it is ignored, if it is.

    Raises:
        PreflightError: If another run writes to the store, or if it is not whole and is not to be rebuilt.
    """
    store = EmbeddingStore(path)
    store.refuse_taken()
    store.refuse_unwritable()
    if not rebuild:
        return store.read_published(), None
    return None, "--embeddings-rebuild"


def _names(generation: Generation) -> list[str]:
    return [file.name for file in generation.files]


def _pointer_text(generation: str, key: dict[str, Any], files: tuple[StoredFile, ...], run_id: str) -> str:
    """Returns the content of `embeddings.json`."""
    pointer = {
        "format": _FORMAT,
        "program": VERSION,
        "run_id": run_id,
        "generation": generation,
        "key": key,
        "rows": sum(file.rows for file in files),
        "files": [{"name": file.name, "bytes": file.bytes, "rows": file.rows, "digest": file.digest} for file in files],
    }
    return json.dumps(pointer, indent=1) + "\n"
