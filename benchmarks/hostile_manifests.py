"""Manifests as other programs write them and as they break, each with the exit codes that it may have and the rows it holds."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

DONE, REFUSED, NOTHING_SCORED = 0, 2, 3


class HostileManifest(NamedTuple):
    """A manifest of the corpus.

    Attributes:
        path: The file or folder.
        code: The exit code of a run.
        rows: The number of rows that the run must write; 0 where it is refused.
    """

    path: Path
    code: int
    rows: int


def write_manifests(folder: Path, image: str) -> Iterator[HostileManifest]:
    """Writes the corpus; all rows name `image` twice, unless the row itself is the fault."""
    folder.mkdir()
    row = f"{image},{image}"
    texts: dict[str, tuple[bytes, int, int]] = {
        "semicolons.csv": (f"left,right\n{row}\n".replace(",", ";").encode(), DONE, 1),
        "tabs.csv": (f"left,right\n{row}\n".replace(",", "\t").encode(), DONE, 1),
        "bom-and-crlf.csv": (f"\ufeffleft,right\r\n{row}\r\n".encode(), DONE, 1),
        "quoted-line-ends.csv": (f'left,right,note\n{row},"a\nb"\n'.encode(), DONE, 1),
        "labels.csv": (f"left,right,genuine\n{row},genuine\n{row},impostor\n".encode(), DONE, 2),
        "nan-labels.csv": (f"left,right,genuine\n{row},1\n{row},NaN\n".encode(), DONE, 2),
        "mixed-labels.csv": (f"left,right,genuine\n{row},yes\n{row},1\n".encode(), REFUSED, 0),
        "utf-16.csv": (f"left,right\n{row}\n".encode("utf-16"), REFUSED, 0),
        "latin-1.csv": (f"left,right,note\n{row},caf\xe9\n".encode("latin-1"), REFUSED, 0),
        "gzip.csv": (gzip.compress(f"left,right\n{row}\n".encode()), REFUSED, 0),
        "cut.csv.gz": (gzip.compress(f"left,right\n{row}\n".encode() * 999)[:-20], REFUSED, 0),
        "open-quote.csv": (f'left,right\n{row}\n"{row}\n'.encode(), REFUSED, 0),
        "reserved.csv": (f"left,right,Score\n{row},1\n".encode(), REFUSED, 0),
        "header.csv": (b"left,right\n", NOTHING_SCORED, 0),
        "windows.csv": (b"left,right\nC:\\a.png,C:\\b.png\n", NOTHING_SCORED, 1),
        "long-header.csv": (b"left,right," + b"a" * 2**21 + b"\n", REFUSED, 0),
        "long-row.csv.gz": (gzip.compress(b"left,right\na," + b"b" * 200 * 2**20 + b"\n"), REFUSED, 0),
        "bomb.csv.gz": (gzip.compress(b"left,right\n" + b"a,b\n" * 2**18) * 1200, REFUSED, 0),
        "noise.parquet": (b"PAR1" + bytes(500) + b"PAR1", REFUSED, 0),
    }
    for name, (data, code, rows) in texts.items():
        (folder / name).write_bytes(data)
        yield HostileManifest(folder / name, code, rows)
    yield HostileManifest(_write_views(folder / "views.parquet", image), DONE, 1)
    yield HostileManifest(_write_spark_folder(folder / "spark", image), DONE, 2)
    yield HostileManifest(Path("/proc/self/environ"), REFUSED, 0)


def _write_views(path: Path, image: str) -> Path:
    names = pa.array([image], pa.string_view())
    pq.write_table(pa.table({"left": names, "right": names, "bytes": pa.array([b"\0"], pa.binary_view())}), path)
    return path


def _write_spark_folder(folder: Path, image: str) -> Path:
    for day in ("2026-11-25", "2026-11-26"):
        (folder / f"dt={day}").mkdir(parents=True)
        pq.write_table(pa.table({"left": [image], "right": [image]}), folder / f"dt={day}" / "part-0.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.crc").write_bytes(b"crc")
    return folder
