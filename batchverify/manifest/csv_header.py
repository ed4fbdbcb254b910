"""The header of a CSV manifest: the names of its columns, and the character between them."""

from __future__ import annotations

import csv
import io
import re
from typing import Any, NamedTuple

from batchverify.config import VerificationConfig
from batchverify.errors import PreflightError, short_reason
from batchverify.io.filesystem import open_input
from batchverify.manifest.columns import SEPARATORS
from batchverify.manifest.decompress import DecompressedFile, compression_of

# First bytes, the compression that they are right for, and what to say.
_FOREIGN = (
    (b"\xff\xfe", None, "it is not UTF-8 but UTF-16; save the file as UTF-8"),
    (b"\xfe\xff", None, "it is not UTF-8 but UTF-16; save the file as UTF-8"),
    (b"\x1f\x8b", "gzip", "it is compressed with gzip; give its name the ending .gz"),
    (b"BZh", "bz2", "it is compressed with bzip2; give its name the ending .bz2"),
    (b"\x28\xb5\x2f\xfd", "zstd", "it is compressed with Zstandard; give its name the ending .zst"),
    (b"PK\x03\x04", None, "it is a ZIP archive or an Excel workbook; unpack it, or save the sheet as CSV in UTF-8"),
)
_MAX_HEADER_BYTES = 2**20
# Excel takes the separator from such a first line, which programs write for it.
_EXCEL_SEPARATOR = re.compile(r"sep=([^\r\n\"])\r?\n", re.IGNORECASE)


class CsvHeader(NamedTuple):
    """The header of a CSV file.

    Attributes:
        names: The names of the columns.
        separator: The character between the columns.
        first_line: The number of lines before the header that are not empty: Excel's `sep=;`, or none.
    """

    names: list[str]
    separator: str
    first_line: int = 0


def read_header(path: str, config: VerificationConfig) -> CsvHeader | None:
    """Returns the header of a CSV file, or None if the file is empty.

    Without `config.separator` the columns are separated by commas, or else by the separator with which the header names both
    the left and the right column.

    Raises:
        PreflightError: If the file is no CSV file, or the header cannot be read.
    """
    try:
        text = _start_of(path)
        if said := _EXCEL_SEPARATOR.match(text):
            header = _parse(path, text[said.end() :], config.separator or said[1])
            return header and header._replace(first_line=1)
        header = _parse(path, text, config.separator or ",")
        if header is None or config.separator or _names_pairs(header, config):
            return header
        others = (_parse(path, text, separator) for separator in SEPARATORS)
        return next((other for other in others if other and _names_pairs(other, config)), header)
    except UnicodeEncodeError:
        raise PreflightError(f"{path}, header: it is not UTF-8; save the file as UTF-8.") from None
    except (csv.Error, OSError) as error:
        raise PreflightError(f"{path}, header: it cannot be read ({short_reason(error)}); save the file again.") from None


def _start_of(path: str) -> str:
    """Returns the text with which a file begins; one character more than a header may have shows that there is more."""
    with open_input(path) as file:
        if description := _find_foreign_content(file.read(4), compression_of(path)):
            raise PreflightError(f"{path}, header: {description}.")
        file.seek(0)
        start = _read_at_most(DecompressedFile(path, file), _MAX_HEADER_BYTES + 1)
    # Whatever follows the header is decoded too; `read_csv_batches` reports mistakes there with their row numbers.
    return start.decode("utf-8-sig", "surrogateescape")


def _read_at_most(file: Any, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _parse(path: str, text: str, separator: str) -> CsvHeader | None:
    lines = io.StringIO(text, newline="")
    # Arrow's reader leaves out empty lines, too.
    names = next(filter(None, csv.reader(lines, delimiter=separator)), None)
    if len(text.encode("utf-8", "surrogateescape")) > _MAX_HEADER_BYTES and not lines.read(1):
        raise PreflightError(
            f"{path}, header: it is longer than {_MAX_HEADER_BYTES // 2**20} MiB; check that this is a CSV file with a header."
        )
    if names is None:
        return None
    "".join(names).encode("utf-8")  # Bytes that are not UTF-8 were decoded as surrogates, which cannot be encoded.
    return CsvHeader(names, separator)


def _names_pairs(header: CsvHeader, config: VerificationConfig) -> bool:
    return {config.left_column, config.right_column} <= set(header.names)


def _find_foreign_content(start: bytes, compression: str | None) -> str | None:
    """Returns what a file is that is no CSV file, by its first bytes, and what to do; None if they show nothing."""
    for beginning, name, description in _FOREIGN:
        if start.startswith(beginning) and (name is None or name != compression):
            return description
    return None
