"""A store of embeddings, so that a night encodes only what is new or changed since the one before.

A store is a folder with one generation of Parquet files, `embeddings-*/part-*.parquet`, and `embeddings.json`, which names that
generation, each of its files with size and digest, and the key: all that decides an embedding, but the image. A run reads the
generation, writes a new one beside it, and replaces `embeddings.json` when it has finished, in one step. So whoever reads finds
a whole store. A file that is not the very one that was written is never used.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from batchverify.config import ModelConfig, ScoringConfig
from batchverify.errors import PreflightError, RunError, short_reason
from batchverify.io.claimed_directory import ClaimedDirectory
from batchverify.io.filesystem import open_for_reading, read_bytes, write_bytes
from batchverify.model.facts import ModelFacts
from batchverify.schema import STATUSES, ImageStatus
from batchverify.uris import is_remote
from batchverify.version import VERSION

_LOG = logging.getLogger(__name__)
_POINTER, _FORMAT = "embeddings.json", 1
_GENERATION, _PART = re.compile(r"embeddings-[0-9a-f]{32}"), re.compile(r"part-[0-9a-f]{32}\.parquet")
_MOST_BYTES = 256 * 2**20
_PART_BYTES = 64 * 2**20
_FOOTERS_AT_ONCE = 16
# In an object store nothing can be locked: what is younger than this may be a run's that is still under way.
_LEFT_BEHIND_S = 14 * 86_400
_OK = STATUSES.index(ImageStatus.OK)
# Of a model's configuration, what the key has in another form, and what changes no embedding but in its last bits.
_NOT_IN_KEY = {"model", "threshold", "batch_size", "pixels", "color", "resize", "fit", "image_size"}
_LIBRARIES = ("keras", "pillow", "tensorflow")
_AFRESH = "or start afresh with --embeddings-rebuild"


class StoredFile(NamedTuple):
    """One file of a generation.

    Attributes:
        name: within the generation's folder.
        bytes: its size.
        rows: that it has.
        digest: BLAKE2b of its bytes, 16 bytes in hex.
    """

    name: str
    bytes: int
    rows: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Generation:
    """A published generation, found to be whole by its files' sizes and footers.

    Attributes:
        name: of its folder.
        key: what its embeddings were made with.
        parts: its files.
    """

    name: str
    key: dict[str, Any]
    parts: tuple[StoredFile, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


@dataclasses.dataclass(frozen=True)
class EmbeddingStoreSession:
    """What one run does with a store.

    Attributes:
        path: of the store.
        version: of `config.EMBEDDING_VERSIONS`: what tells that an image is unchanged.
        key: what this run's embeddings are made with.
        stored: the generation to read, or None.
        ignored: why what lies there is not read, in words; None if it is, or if nothing does.
        today: date of the run.
        days: embeddings that no run has asked for in so many days are dropped; None to keep them.
        generation: folder of what the run writes.
    """

    path: str
    version: str
    key: dict[str, Any]
    stored: Generation | None
    ignored: str | None
    today: datetime.date
    days: int | None = None
    generation: str = dataclasses.field(default_factory=lambda: f"embeddings-{uuid.uuid4().hex}")

    @property
    def rows(self) -> int:
        """How many embeddings are read."""
        return self.stored.rows if self.stored else 0

    def parts(self) -> tuple[StoredFile, ...]:
        """Returns the files to read, with `read` and `read_columns`."""
        return self.stored.parts if self.stored else ()

    def read(self, part: StoredFile) -> pa.Table:
        """Returns the rows of one file: the columns of `stored_schema`.

        Raises:
            RunError: if it is not the file that was written.
        """
        data = self._bytes(part)
        if len(data) != part.bytes or hashlib.blake2b(data, digest_size=16).hexdigest() != part.digest:
            raise RunError(f"--embeddings {self.path}: {part.name} is damaged; restore it, {_AFRESH}.")
        return pq.read_table(io.BytesIO(data))

    def write(self, rows: pa.Table) -> Iterator[StoredFile]:
        """Writes rows of the next generation, and yields the files. What is written twice is listed once: where it counts.

        Raises:
            RunError: if that cannot be done.
        """
        most = max(1, _PART_BYTES * max(1, rows.num_rows) // max(1, rows.nbytes))
        for start in range(0, rows.num_rows, most):
            part = rows.slice(start, most)
            sink = io.BytesIO()
            pq.write_table(
                part, sink, compression="zstd", use_dictionary=False, use_byte_stream_split=["embedding.list.element"]
            )
            data, name = sink.getvalue(), f"part-{uuid.uuid4().hex}.parquet"
            try:
                path = FileSystems.join(self.path, self.generation, name)
                write_bytes(path, data)
            except Exception as error:  # Beam wraps whatever the store's client raises.
                raise RunError(f"--embeddings {self.path} cannot be written ({short_reason(error)}); check the path.") from None
            yield StoredFile(name, len(data), part.num_rows, hashlib.blake2b(data, digest_size=16).hexdigest())

    def publish(self, parts: Iterable[StoredFile], run_id: str) -> None:
        """Makes what was written the store, and deletes the generation before. A failure is told, and fails no run."""
        store = EmbeddingStore(self.path)
        try:
            store.publish(self.generation, self.key, tuple(parts), run_id)
        except Exception as error:  # Beam wraps whatever the store's client raises.
            _LOG.error(
                "--embeddings %s: the scores are whole, but the new embeddings could not be published (%s); "
                "the store is as it was.", self.path, short_reason(error),
            )  # fmt: skip

    def _bytes(self, part: StoredFile) -> bytes:
        assert self.stored is not None
        path = FileSystems.join(self.path, self.stored.name, part.name)
        try:
            return read_bytes(path)
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise RunError(
                f"--embeddings {self.path}: {part.name} cannot be read ({short_reason(error)}); another run may have replaced it: "
                f"run again, {_AFRESH}."
            ) from None


class EmbeddingStore(ClaimedDirectory):
    """Where embeddings are kept from one run to the next.

    Args:
        path: a directory on any file system that Beam opens.
    """

    OPTION = "--embeddings"

    def read_published(self) -> Generation | None:
        """Returns what was published last, its files checked by name, size and footer; None if nothing was. Changes nothing.

        Raises:
            PreflightError: with the remedy, if the directory is in use or something else, or the store is not whole.
        """
        try:
            present = FileSystems.exists(self._join(_POINTER))
            self._refuse_strange(present)
            return self._believed(self._read(_POINTER)) if present else None
        except PreflightError:
            raise
        except Exception as error:  # Beam wraps whatever the store's client raises.
            raise PreflightError(f"--embeddings {self.path} cannot be read ({short_reason(error)}); check the path.") from None

    def refuse_taken(self) -> None:
        """Refuses a store that another run on this machine writes to, or what cannot be one; changes nothing.

        Raises:
            PreflightError: with the remedy.
        """
        if os.path.isdir(self.path):
            os.close(self._lock())
        elif os.path.lexists(self.path):
            raise PreflightError(f"--embeddings {self.path} is no directory; name another one.")

    def claimed(self, generation: str) -> AbstractContextManager[None]:
        """Holds the store for one run, and sweeps what crashed runs left, and at the end this run's, if it did not publish.

        Raises:
            PreflightError: if another run on this machine writes there.
            RunError: if it cannot be written to.
        """
        return self._claimed(generation, functools.partial(self._sweep, generation))

    def discard(self, generation: str) -> None:
        """Deletes what a run has written, unless that was published."""
        try:
            if self._published() != generation:
                self._delete(generation)
        except Exception as error:  # Beam wraps whatever the store's client raises; what stays, a later run sweeps.
            _LOG.warning("--embeddings %s cannot be swept (%s).", self.path, short_reason(error))

    def publish(self, generation: str, key: dict[str, Any], parts: tuple[StoredFile, ...], run_id: str) -> None:
        """Makes a generation the store's own, in one step, and deletes the one before. May be called again."""
        before = self._published()
        if before == generation:
            return  # A worker died after it had published, and its bundle was tried again.
        self._require_present(generation, parts)
        files = [{"name": part.name, "bytes": part.bytes, "rows": part.rows, "digest": part.digest} for part in parts]
        said = {"format": _FORMAT, "program": VERSION, "run_id": run_id, "generation": generation, "key": key}
        text = json.dumps({**said, "rows": sum(part.rows for part in parts), "files": files}, indent=1) + "\n"
        self._replace(text)
        if before is not None:
            self._delete(before)
        self._delete(generation, spared={part.name for part in parts})  # what bundles wrote that were run twice

    def _replace(self, text: str) -> None:
        if is_remote(self.path):
            self._write(_POINTER, text)  # Stores of objects show a new object once it is whole.
            return
        unfinished = f".{_POINTER}"
        self._write(unfinished, text)
        os.replace(self._join(unfinished), self._join(_POINTER))

    def _believed(self, text: str) -> Generation:
        if len(text) > _MOST_BYTES:
            raise self._not_whole(f"{_POINTER} is too large")
        try:
            said = json.loads(text)
            if said["format"] != _FORMAT:
                raise self._not_whole(f"it has the format {said['format']!r:.20}, and this program knows {_FORMAT}")
            parts = tuple(
                StoredFile(str(one["name"]), int(one["bytes"]), int(one["rows"]), str(one["digest"])) for one in said["files"]
            )
            generation = Generation(str(said["generation"]), dict(said["key"]), parts)
            rows = int(said["rows"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, PreflightError):
                raise
            raise self._not_whole(f"{_POINTER} says nothing of use ({short_reason(error)})") from None
        if not _GENERATION.fullmatch(generation.name) or not all(_PART.fullmatch(part.name) for part in parts):
            raise self._not_whole(f"{_POINTER} names files that are none of a store")
        if rows != generation.rows:
            raise self._not_whole(f"{_POINTER} speaks of {rows:,} rows, and its files of {generation.rows:,}")
        self._require_present(generation.name, parts)
        self._require_readable(generation)
        return generation

    def _require_present(self, generation: str, parts: tuple[StoredFile, ...]) -> None:
        found = {one.path.rsplit("/", 1)[-1]: one.size_in_bytes for one in self._match(f"{generation}/part-*.parquet")}
        for part in parts:
            if part.name not in found:
                raise self._not_whole(f"{generation}/{part.name} is missing")
            if found[part.name] != part.bytes:
                raise self._not_whole(f"{part.name} has {found[part.name]:,} bytes and should have {part.bytes:,}")

    def _require_readable(self, generation: Generation) -> None:
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
            footers = list(threads.map(lambda part: self._footer(generation.name, part), generation.parts))
        for part, footer in zip(generation.parts, footers, strict=True):
            if not footer.schema.to_arrow_schema().equals(stored_schema(int(generation.key.get("embedding_size", 0)))):
                raise self._not_whole(f"{part.name} has other columns than embeddings have")
            if footer.num_rows != part.rows:
                raise self._not_whole(f"{part.name} has {footer.num_rows:,} rows and should have {part.rows:,}")

    def _footer(self, generation: str, part: StoredFile) -> pq.FileMetaData:
        try:
            path = self._join(generation, part.name)
            with open_for_reading(path) as file:
                return pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise self._not_whole(f"{part.name} cannot be read ({short_reason(error)})") from None

    def _refuse_strange(self, is_store: bool) -> None:
        """Refuses a folder on this machine that holds other things, and so was hardly meant."""
        if is_store or not os.path.isdir(self.path):
            return
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not _GENERATION.fullmatch(entry.name) and entry.name != f".{_POINTER}":
                    raise PreflightError(
                        f"--embeddings {self.path} holds '{entry.name}' and no embeddings; name a folder of their own."
                    )

    def _not_whole(self, fault: str) -> PreflightError:
        return PreflightError(f"--embeddings {self.path}: the store is not whole: {fault}; restore it, {_AFRESH}.")

    def _published(self) -> str | None:
        """Returns the generation that is named, believed or not; None where there is none."""
        if not FileSystems.exists(self._join(_POINTER)):
            return None
        try:
            named = str(json.loads(self._read(_POINTER))["generation"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return named if _GENERATION.fullmatch(named) else None

    def _sweep(self, ours: str) -> None:
        """Deletes what crashed runs left."""
        published, in_store = self._published(), is_remote(self.path)
        youngest: dict[str, float] = {}
        for found in self._match("embeddings-*/part-*.parquet"):
            name = found.path.rsplit("/", 2)[-2]
            youngest[name] = max(youngest.get(name, 0), found.last_updated_in_seconds or time.time())
        folders = set(youngest) | ({path.name for path in Path(self.path).glob("embeddings-*/")} if not in_store else set())
        for name in folders - {published, ours}:
            if _GENERATION.fullmatch(name) and (not in_store or youngest[name] < time.time() - _LEFT_BEHIND_S):
                self._delete(name)

    def _delete(self, generation: str, spared: Iterable[str] = ()) -> None:
        files = [found.path for found in self._match(f"{generation}/*")]
        if doomed := [path for path in files if path.rsplit("/", 1)[-1] not in set(spared)]:
            FileSystems.delete(doomed)
        if not spared and os.path.isdir(self._join(generation)):
            os.rmdir(self._join(generation))


def open_store(path: str, rebuild: bool) -> tuple[Generation | None, str | None]:
    """Returns the generation that a run may read, if there is one, and why it is ignored, if it is.

    Raises:
        PreflightError: if the store is in use, or not whole and not to be rebuilt.
    """
    store = EmbeddingStore(path)
    store.refuse_taken()
    if not rebuild:
        return store.read_published(), None
    return None, "--embeddings-rebuild"


def embedding_key(config: ScoringConfig, facts: ModelFacts, preprocessing: Any) -> dict[str, Any]:
    """Returns all that decides an embedding, but the image, as JSON has it.

    That is the model, what is done to an image before it, each option that says how the model runs or what is an image, and the
    libraries that decode and compute. The batch size is not in it, and changes scores by rounding alone.

    Args:
        config: of the run, with what the model's sidecar says.
        facts: of the model.
        preprocessing: a dataclass, of which `source` says who decided it, and no more.
    """
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(ModelConfig)}
    pixels = {name: value for name, value in dataclasses.asdict(preprocessing).items() if name != "source"}
    libraries = (*_LIBRARIES, *([config.runtime] if config.runtime == "openvino" else []))
    key = {
        "model_digest": facts.digest,
        "embedding_size": facts.embedding_size,
        "preprocessing": pixels,
        **{name: value for name, value in options.items() if name not in _NOT_IN_KEY},
        "custom_code": [_code_digest(option) for option in config.custom_objects],
        "max_image_pixels": config.max_image_pixels,
        "max_image_bytes": config.max_image_bytes,
        "version of batchverify": VERSION,
        **{f"version of {name}": importlib.metadata.version(name) for name in libraries},
    }
    return json.loads(json.dumps(key))


def differing_settings(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns the names of what two keys do not agree on."""
    return [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]


def _code_digest(option: str) -> str | None:
    """Returns the digest of the file that `CLASS=module:attribute` takes its class from; None of a `CLASS=KIND`."""
    module = option.partition("=")[2].partition(":")[0]
    if ":" not in option:
        return None
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return None
    return hashlib.blake2b(Path(spec.origin).read_bytes(), digest_size=16).hexdigest()


def stored_schema(size: int) -> pa.Schema:
    """Returns the columns of a store whose embeddings have `size` numbers.

    `uri`; `version`, of the file as its file system tells, null where it could not be told for sure; `digest`, BLAKE2b of its
    content; `identity`, its score against itself; `embedding`; `last_used`, the date of the last run that asked for it.
    """
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("version", pa.string()),
            pa.field("digest", pa.binary(16), nullable=False),
            pa.field("identity", pa.float32(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), size), nullable=False),
            pa.field("last_used", pa.date32(), nullable=False),
        ]
    )


def is_unchanged(stored: pa.Table, now: pa.Table) -> np.ndarray:
    """Returns bool `(n,)`: which images are what they were when they were encoded.

    Args:
        stored: rows of a store.
        now: the same images, looked up: columns `version` and `digest`, of which one is all null.
    """
    equal = [pc.fill_null(pc.equal(stored[name], now[name]), False) for name in ("version", "digest")]
    return pc.or_(*equal).to_numpy(zero_copy_only=False)


def current_rows(images: pa.Table, today: datetime.date) -> pa.Table:
    """Returns what the next generation has of images that could be read.

    Args:
        images: with `uri`, `status`, `version`, `digest`, `identity` and `embedding`.
        today: becomes their `last_used`.
    """
    ok = images.filter(pc.equal(images["status"], _OK))
    schema = stored_schema(ok.schema.field("embedding").type.list_size)
    dated = ok.append_column("last_used", pa.array([today] * ok.num_rows, pa.date32()))
    return dated.select(schema.names).cast(schema)


def retained_rows(stored: pa.Table, today: datetime.date, days: int | None) -> pa.Table:
    """Returns what the next generation has of rows that tonight did not name or could not read.

    Args:
        stored: these rows.
        today: that `days` count from.
        days: rows that nobody has asked for in more days are left out; None for no limit.
    """
    if days is None:
        return stored
    return stored.filter(pc.greater_equal(stored["last_used"], pa.scalar(today - datetime.timedelta(days), pa.date32())))
