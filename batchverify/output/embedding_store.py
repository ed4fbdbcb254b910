"""A store of embeddings, so that a nightly run encodes only images that are new or have changed since the run before.

A store is a directory with folders of Parquet files, `embeddings-*/part-*.parquet`, and `embeddings.json`. That file names each
file that counts, and the key: everything that decides an embedding, except the image. Each run writes to a folder of its own,
whose name begins with a digest of the key; the name of each file is the digest of its bytes. When the run has finished, it
replaces `embeddings.json` in one step. It either adds its files to those that count, or, now and then, has written the whole
store anew. So a reader always gets a complete store.

Files that `embeddings.json` does not name are what a run left that did not finish. The next run with the same key reads them,
too, and deletes them once it has published what they hold. A file that differs from the one that was written is never used.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems

from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.io.claimed_directory import ClaimedDirectory
from batchverify.io.filesystem import open_for_reading, write_whole
from batchverify.io.object_store import abort_uploads
from batchverify.output.embedding_rows import DATES_LAG_DAYS, stored_schema
from batchverify.uris import is_remote
from batchverify.version import VERSION

_LOG = logging.getLogger(__name__)
_POINTER, _FORMAT = "embeddings.json", 3
_FOLDER_NAME, _FILE_NAME = re.compile(r"embeddings-[0-9a-f]{32}"), re.compile(r"part-[0-9a-f]{32}\.parquet")
_OWN_NAMES = re.compile(rf"{re.escape(_POINTER)}|{_FOLDER_NAME.pattern}/{_FILE_NAME.pattern}")
_KEY_PREFIX_CHARACTERS = len("embeddings-") + 16
_MAX_POINTER_CHARACTERS = 256 * 2**20
_FOOTER_THREADS = 16
# Some object stores have no locks: files younger than this may belong to a run that is still under way.
_MIN_LEFTOVER_AGE_S = 14 * 86_400
# The store is written anew once this share of its rows was added since the last time, once it has many more files than then, or
# once the dates of its rows are this old.
_MAX_ADDED_SHARE, _MAX_FILES_RATIO, _MAX_FILES_MORE, _MAX_AGE_DAYS = 0.25, 2, 100, DATES_LAG_DAYS + 1
REBUILD_REMEDY = "or start afresh with --embeddings-rebuild"


class StoredFile(NamedTuple):
    """One file of a store.

    Attributes:
        folder: The name of its folder.
        name: The name within the folder, which holds the digest of its bytes.
        bytes: The size.
        rows: The number of rows.
        replaced: The number of rows in files before it that do not count any more, because this file has newer ones.
    """

    folder: str
    name: str
    bytes: int
    rows: int
    replaced: int = 0

    @property
    def path(self) -> str:
        """The path relative to the store."""
        return f"{self.folder}/{self.name}"


@dataclasses.dataclass(frozen=True)
class Published:
    """What `embeddings.json` says: the files that count. They have the sizes and footers that it states.

    Attributes:
        folder: The folder of the run that published it.
        base: The folder of the run that wrote the whole store anew, for the last time.
        since: The date of that run.
        key: The key of the embeddings.
        files: The files, older ones first. Of several rows for one image the last one counts.
    """

    folder: str
    base: str
    since: datetime.date
    key: dict[str, Any]
    files: tuple[StoredFile, ...]

    @property
    def rows(self) -> int:
        """The number of embeddings."""
        return sum(file.rows - file.replaced for file in self.files)

    def is_due(self, today: datetime.date) -> bool:
        """Returns whether the next run should write the whole store anew, instead of adding to it."""
        base = [file for file in self.files if file.folder == self.base]
        rows = sum(file.rows for file in self.files)
        return (
            rows - sum(file.rows for file in base) > _MAX_ADDED_SHARE * rows
            or len(self.files) > _MAX_FILES_RATIO * len(base) + _MAX_FILES_MORE
            or (today - self.since).days >= _MAX_AGE_DAYS
        )


class EmbeddingStore(ClaimedDirectory):
    """A directory in which embeddings are kept from one run to the next.

    Args:
        path: A directory on any file system that Beam opens.
    """

    OPTION = "--embeddings"

    def read_published(self) -> Published | None:
        """Returns what is published, after a check of its files' names, sizes and footers; None if nothing is.

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
            raise self._unread_error(error) from None

    def published_folder(self) -> str | None:
        """Returns the folder of the run that published the store, without a check of any file; None where nothing is.

        Raises:
            PreflightError: If the store cannot be read.
        """
        try:
            published = self._read_unchecked()
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise self._unread_error(error) from None
        return published.folder if published else None

    def unfinished_files(self, key: dict[str, Any], published: Published | None) -> tuple[StoredFile, ...]:
        """Returns the whole files with embeddings of a key that runs left which did not finish.

        Raises:
            PreflightError: If the store cannot be listed.
        """
        counting = {file.path for file in published.files} if published else set()
        try:
            found = [_stored_file(match) for match in self._match(f"{_key_prefix(key)}*/part-*.parquet")]
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise self._unread_error(error) from None
        left = [file for file in found if _is_of_a_store(file) and file.path not in counting]
        schema = stored_schema(int(key["embedding_size"]))
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            counts = list(threads.map(functools.partial(self._count_unfinished, schema), left))
        return tuple(file._replace(rows=rows) for file, rows in zip(left, counts, strict=True))

    def _count_unfinished(self, schema: pa.Schema, file: StoredFile) -> int:
        """Returns the number of rows of a file that no run has published; none if it is torn."""
        try:
            footer = self._read_footer(file)
        except PreflightError:
            return 0
        return int(footer.num_rows) if footer.schema.to_arrow_schema().equals(schema) else 0

    def refuse_taken(self) -> None:
        """Refuses a store that cannot be written to, or that another run writes to, where that can be known.

        Raises:
            PreflightError: With the remedy.
        """
        self.refuse_unwritable()
        self._refuse_held()

    def claimed(self, folder: str) -> AbstractContextManager[None]:
        """Holds the store for one run, and deletes what runs with other keys left that did not finish.

        What this run has written stays if the run does not finish: the next run with the same key goes on from there.

        Args:
            folder: The folder that this run writes to.

        Raises:
            PreflightError: If another run writes there, where that can be known.
            RunError: If it cannot be written to.
        """
        return self._claimed(folder, functools.partial(self._clean_up, folder))

    def discard(self, folder: str) -> None:
        """Deletes the folder of a run that has written nothing there; what it has written stays for the next run."""
        self._remove_folder_if_empty(folder)

    def publish(self, published: Published, before: str | None, unfinished: Iterable[StoredFile], run_id: str) -> None:
        """Replaces what is published in one step, and deletes the files that do not count any more. It may be called again.

        Args:
            published: What the store is from now on.
            before: The folder of the run that had published the files among `published` which are not this run's own; None if
                there are none.
            unfinished: The files of runs that did not finish, whose rows are in `published` now.
            run_id: The run.

        Raises:
            RunError: If another run has published meanwhile.
            PreflightError: If a file is missing.
        """
        replaced = self._read_unchecked()
        if replaced and replaced.folder == published.folder:
            return  # A worker died after it had published, and its bundle was tried again.
        if before is not None and (replaced is None or replaced.folder != before):
            raise RunError("another run has published meanwhile; the next run uses what this one has encoded")
        self._require_present(published.files)
        self._replace_pointer(_pointer_text(published, run_id))
        try:
            own = self._files_in(published.folder)  # Bundles that ran twice left files that nobody lists.
            self.delete({*(replaced.files if replaced else ()), *unfinished, *own}, except_for=published.files)
        except Exception as error:  # Beam wraps whatever the store's client raises.
            _LOG.warning(
                "--embeddings %s: the new embeddings are published; files that do not count any more stay until the next run "
                "(%s).", self.path, short_reason(error),
            )  # fmt: skip

    def delete(self, files: Iterable[StoredFile], except_for: Iterable[StoredFile] = ()) -> None:
        """Deletes files, and folders on this machine that are empty then."""
        doomed = {file.path for file in files} - {file.path for file in except_for}
        if doomed:
            present = {_relative(match.path) for match in self._match("embeddings-*/*")}
            if found := sorted(doomed & present):
                FileSystems.delete([self._join(path) for path in found])
        for folder in {path.split("/")[0] for path in doomed}:
            self._remove_folder_if_empty(folder)

    def _files_in(self, folder: str) -> list[StoredFile]:
        """Returns all files in a folder, also those that were not finished."""
        return [_stored_file(match) for match in self._match(f"{folder}/*")]

    def _remove_folder_if_empty(self, folder: str) -> None:
        """Removes an empty folder on this machine; an object store has none."""
        path = self._join(folder)
        if os.path.isdir(path) and not os.listdir(path):
            os.rmdir(path)

    def _replace_pointer(self, text: str) -> None:
        write_whole(self._join(_POINTER), text.encode())

    def _read_unchecked(self) -> Published | None:
        """Returns what `embeddings.json` says, without a check of any file; None where it is missing or says nothing."""
        if not FileSystems.exists(self._join(_POINTER)):
            return None
        try:
            published = self._parse_pointer(self._read(_POINTER))[0]
        except (PreflightError, ValueError):  # No store: --embeddings-rebuild replaces it, and all else is refused before.
            return None
        return published if all(map(_is_of_a_store, published.files)) else None

    def _verified(self, text: str) -> Published:
        """Returns what `embeddings.json` says, after a check of all files."""
        if len(text) > _MAX_POINTER_CHARACTERS:
            raise self._not_whole(f"{_POINTER} is too large")
        published, rows = self._parse_pointer(text)
        folders = published.folder, published.base
        if not all(map(_FOLDER_NAME.fullmatch, folders)) or not all(map(_is_of_a_store, published.files)):
            raise self._not_whole(f"{_POINTER} names files that no store has")
        if rows != published.rows:
            raise self._not_whole(f"{_POINTER} states {rows:,} rows, and its files have {published.rows:,}")
        self._require_present(published.files)
        self._require_readable(published)
        return published

    def _parse_pointer(self, text: str) -> tuple[Published, int]:
        """Returns what a text says, and the number of rows that it states."""
        try:
            pointer = json.loads(text)
            if pointer["format"] != _FORMAT:
                raise self._not_whole(f"it has the format {pointer['format']!r:.20}, and this program knows {_FORMAT}")
            files = tuple(
                StoredFile(str(one["folder"]), str(one["name"]), int(one["bytes"]), int(one["rows"]), int(one["replaced"]))
                for one in pointer["files"]
            )
            folders, since = (str(pointer["folder"]), str(pointer["base"])), datetime.date.fromisoformat(pointer["since"])
            return Published(*folders, since, dict(pointer["key"]), files), int(pointer["rows"])
        except PreflightError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._not_whole(f"{_POINTER} cannot be understood ({short_reason(error)})") from None

    def _require_present(self, files: Iterable[StoredFile]) -> None:
        sizes = {_relative(match.path): match.size_in_bytes for match in self._match("embeddings-*/part-*.parquet")}
        for file in files:
            if file.path not in sizes:
                raise self._not_whole(f"{file.path} is missing")
            if sizes[file.path] != file.bytes:
                raise self._not_whole(f"{file.path} has {sizes[file.path]:,} bytes and should have {file.bytes:,}")

    def _require_readable(self, published: Published) -> None:
        schema = stored_schema(int(published.key.get("embedding_size", 0)))
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            footers = list(threads.map(self._read_footer, published.files))
        for file, footer in zip(published.files, footers, strict=True):
            if not footer.schema.to_arrow_schema().equals(schema):
                raise self._not_whole(f"{file.path} has other columns than embeddings have")
            if footer.num_rows != file.rows:
                raise self._not_whole(f"{file.path} has {footer.num_rows:,} rows and should have {file.rows:,}")

    def _read_footer(self, file: StoredFile) -> pq.FileMetaData:
        try:
            with open_for_reading(self._join(file.folder, file.name)) as opened:
                return pq.read_metadata(opened)
        except (pa.ArrowException, OSError) as error:
            raise self._not_whole(f"{file.path} cannot be read ({short_reason(error)})") from None
        except Exception as error:  # Some stores' clients raise errors of their own.
            raise self._unread_error(error) from None

    def _refuse_other_contents(self) -> None:
        """Refuses a directory on this machine that holds other files, and so was probably named by mistake."""
        if not os.path.isdir(self.path):
            return
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not _FOLDER_NAME.fullmatch(entry.name) and not entry.name.startswith(f".{_POINTER}"):
                    raise PreflightError(
                        f"--embeddings {self.path} holds '{entry.name}' and no embeddings; name a folder of their own."
                    )

    def _not_whole(self, fault: str) -> PreflightError:
        return PreflightError(f"--embeddings {self.path}: the store is not whole: {fault}; restore it, {REBUILD_REMEDY}.")

    def _clean_up(self, current: str) -> None:
        """Deletes the folders of which no file counts, but those with the key of this run, whose folder is `current`.

        Uploads that were never finished are deleted too: all of them where this run holds the store's lock.
        """
        published, oldest_kept = self._read_unchecked(), time.time() - _MIN_LEFTOVER_AGE_S
        counting = {file.folder for file in published.files} if published else set()
        changed = self._last_changes()
        folders = set(changed)
        if not is_remote(self.path):
            for path in Path(self.path).glob(f".{_POINTER}.*"):
                path.unlink()
            folders |= {path.name for path in Path(self.path).glob("embeddings-*/")}
        for name in filter(_FOLDER_NAME.fullmatch, folders - counting):
            is_other = name[:_KEY_PREFIX_CHARACTERS] != current[:_KEY_PREFIX_CHARACTERS]
            if is_remote(self.path):
                doomed = self._files_in(name) if is_other and changed[name] < oldest_kept else []
            else:  # The files that begin with a dot were not finished.
                doomed = [file for file in self._files_in(name) if is_other or file.name.startswith(".")]
            self.delete(doomed)
            self._remove_folder_if_empty(name)
        abort_uploads(self.path, _OWN_NAMES, math.inf if self._is_locked(current) else oldest_kept)

    def _last_changes(self) -> dict[str, float]:
        """Returns the time at which the youngest file of each folder was written, by the folder's name."""
        changed: dict[str, float] = {}
        for match in self._match("embeddings-*/part-*.parquet"):
            name = match.path.rsplit("/", 2)[-2]
            changed[name] = max(changed.get(name, 0), match.last_updated_in_seconds or time.time())
        return changed


def open_store(path: str, rebuild: bool) -> Published | None:
    """Returns what a store has published, if anything; nothing is looked at where the store is to be rebuilt.

    Raises:
        PreflightError: If another run writes to the store, or if it is not whole and is not to be rebuilt.
    """
    store = EmbeddingStore(path)
    store.refuse_taken()
    return None if rebuild else store.read_published()


def file_name(data: bytes) -> str:
    """Returns the name of the file with some bytes; it holds their BLAKE2b of 16 bytes in hexadecimal digits."""
    return f"part-{hashlib.blake2b(data, digest_size=16).hexdigest()}.parquet"


def new_folder(key: dict[str, Any]) -> str:
    """Returns the name of a new folder for embeddings of a key."""
    return f"{_key_prefix(key)}{uuid.uuid4().hex[:16]}"


def _key_prefix(key: dict[str, Any]) -> str:
    """Returns what the names of all folders with embeddings of a key begin with."""
    return f"embeddings-{hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()}"


def _is_of_a_store(file: StoredFile) -> bool:
    return bool(_FOLDER_NAME.fullmatch(file.folder) and _FILE_NAME.fullmatch(file.name))


def _stored_file(match: FileMetadata) -> StoredFile:
    """Returns a file whose number of rows is not known yet."""
    folder, name = match.path.rsplit("/", 2)[-2:]
    return StoredFile(folder, name, match.size_in_bytes, 0)


def _relative(path: str) -> str:
    """Returns the path of a file relative to the store."""
    return "/".join(path.rsplit("/", 2)[-2:])


def _pointer_text(published: Published, run_id: str) -> str:
    """Returns the content of `embeddings.json`."""
    pointer = {
        "format": _FORMAT,
        "program": VERSION,
        "run_id": run_id,
        "folder": published.folder,
        "base": published.base,
        "since": published.since.isoformat(),
        "key": published.key,
        "rows": published.rows,
        "files": [file._asdict() for file in published.files],
    }
    return json.dumps(pointer, indent=1) + "\n"
