"""Numbers for the distinct URIs of a run, so that whoever looks up a URI pays the same however many there are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from batchverify.manifest.text_hashes import hash_in_process

# New URIs are looked for in one table of hashes, which is made again when this many have come, or half as many as it has.
_LEAST_RECENT = 2**18


class _LookedUp(NamedTuple):
    """What an index knows of some URIs.

    Attributes:
        positions: Their positions, int64 `(n,)`; -1 where they are not known.
        new_hashes: The hashes of the URIs that are new, uint64 `(m,)`.
        new_uris: These URIs, large text `(m,)`.
    """

    positions: np.ndarray
    new_hashes: np.ndarray
    new_uris: pa.Array


class UriIndex:
    """The distinct URIs of a run, each with its position: they are numbered as they come.

    URIs are found by their 64-bit hashes. As two URIs may have the same hash, by chance or on purpose, texts are compared, too,
    when URIs are added; and when they are found, if there are two of one hash.
    """

    def __init__(self) -> None:
        self._hashes = pd.Index(np.zeros(0, np.uint64))
        self._uris = pa.array([], pa.large_string())
        self._recent: list[tuple[np.ndarray, pa.Array]] = []
        self._recent_count = 0
        # The URIs whose hash an earlier one has, with positions that follow on those of `_hashes`.
        self._same_hash: dict[str, int] = {}

    def __len__(self) -> int:
        """Returns the number of distinct URIs that have been added."""
        self._merge_recent()
        return len(self._uris)

    @property
    def uris(self) -> pa.Array:
        """The distinct URIs by position, large text `(n,)`."""
        self._merge_recent()
        return self._uris

    def add(self, *columns: pa.Array) -> list[np.ndarray]:
        """Adds those URIs that are new. Each column is looked up in a thread of its own.

        Args:
            columns: Texts `(n,)` without nulls, in which URIs may occur again and again.

        Returns:
            For each column the positions that `find` will give, int64 `(n,)`; -1 where that is not known yet.
        """
        with ThreadPoolExecutor(len(columns), thread_name_prefix="index") as threads:
            looked_up = list(threads.map(self._look_up, columns))
        for column in looked_up:
            if len(column.new_hashes):
                self._recent.append((column.new_hashes, column.new_uris))
                self._recent_count += len(column.new_hashes)
        if self._recent_count > max(_LEAST_RECENT, len(self._uris) // 2):
            self._merge_recent()
        return [column.positions for column in looked_up]

    def _look_up(self, uris: pa.Array) -> _LookedUp:
        if not self._are_repeated(uris):
            return self._look_up_each(uris)
        encoded = uris.dictionary_encode()
        distinct = self._look_up_each(encoded.dictionary)
        return distinct._replace(positions=distinct.positions[encoded.indices.to_numpy()])

    def _look_up_each(self, uris: pa.Array) -> _LookedUp:
        hashes = hash_in_process(uris)
        positions: np.ndarray = self._hashes.get_indexer(hashes)
        is_new = positions < 0
        found = pa.array(positions, pa.int64(), mask=is_new)
        is_other = pc.not_equal(self._uris.take(found), uris.cast(pa.large_string()))
        if pc.any(is_other).as_py():
            is_new |= pc.fill_null(is_other, False).to_numpy(zero_copy_only=False)
        new_uris = uris.filter(pa.array(is_new)).cast(pa.large_string())
        return _LookedUp(np.where(is_new, -1, positions), hashes[is_new], new_uris)

    def find(self, uris: pa.Array) -> np.ndarray:
        """Returns the positions of `uris`, int64 `(n,)`; -1 for null.

        They must have been added. A URI that has not been gets -1, or the position of one that has the same hash.
        """
        self._merge_recent()
        if not self._are_repeated(uris):
            return self._find(uris)
        encoded = uris.dictionary_encode()
        positions = np.append(self._find(encoded.dictionary), -1)
        found: np.ndarray = positions[pc.fill_null(encoded.indices, -1).to_numpy()]
        return found

    def _find(self, uris: pa.Array) -> np.ndarray:
        texts = pc.fill_null(uris, "") if uris.null_count else uris
        positions: np.ndarray = self._hashes.get_indexer(hash_in_process(texts))
        if self._same_hash:
            positions = self._compare_texts(positions, texts)
        if uris.null_count:
            positions[uris.is_null().to_numpy(zero_copy_only=False)] = -1
        return positions

    def _compare_texts(self, positions: np.ndarray, texts: pa.Array) -> np.ndarray:
        """Returns the positions of texts, some of which are not those that stand at `positions`."""
        found = pa.array(positions, pa.int64(), mask=positions < 0)
        is_same = pc.equal(self._uris.take(found), texts.cast(pa.large_string()))
        is_found = pc.fill_null(is_same, False).to_numpy(zero_copy_only=False)
        positions = np.where(is_found, positions, -1)
        for row in np.flatnonzero(~is_found):
            positions[row] = self._same_hash.get(texts[int(row)].as_py(), -1)
        return positions

    def _are_repeated(self, uris: pa.Array) -> bool:
        """Returns whether the URIs surely occur again and again, because there are fewer distinct ones than these."""
        return 0 < len(self._uris) < len(uris) // 2

    def _merge_recent(self) -> None:
        """Makes the table of hashes again, with what has come since."""
        if not self._recent:
            return
        hashes = np.concatenate([hashes for hashes, _ in self._recent])
        uris = pa.concat_arrays([uris for _, uris in self._recent])
        self._recent, self._recent_count = [], 0
        kept, with_known_hash = self._first_of_each_hash(hashes, uris)
        for uri in with_known_hash:
            self._same_hash.setdefault(uri, -1)
        # Hashes must be distinct, so that those URIs stand behind all others, and move when others come.
        known = self._uris.slice(0, len(self._hashes))
        self._hashes = pd.Index(np.append(self._hashes.to_numpy(), hashes[kept]))
        self._hashes.get_indexer(hashes[:1])  # Makes the table of hashes now, and not in several threads at once.
        self._same_hash = {uri: len(self._hashes) + number for number, uri in enumerate(self._same_hash)}
        others = pa.array(self._same_hash, pa.large_string())
        self._uris = pa.concat_arrays([known, uris.take(pa.array(kept)), others])

    def _first_of_each_hash(self, hashes: np.ndarray, uris: pa.Array) -> tuple[np.ndarray, set[str]]:
        """Returns the positions of URIs with a new hash, ascending, and the URIs that have the hash of another one."""
        codes, distinct = pd.factorize(hashes)
        first = np.empty(len(distinct), np.int64)
        first[codes[::-1]] = np.arange(len(hashes))[::-1]
        is_other = pc.not_equal(uris.take(pa.array(first[codes])), uris).to_numpy(zero_copy_only=False)
        others = set(uris.filter(pa.array(is_other)).to_pylist())
        is_known = self._hashes.get_indexer(distinct) >= 0
        others |= set(uris.take(pa.array(first[is_known])).to_pylist())
        return first[~is_known], others
