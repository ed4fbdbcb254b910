"""The values of a column as names of groups, subjects and folds: a value has one name, in CSV as in Parquet."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

_BOOLEAN = "(?i)^(true|false)$"
# Numbers as programs print them. `1.10` and `007` may be more than numbers, and stay as they are.
_NUMBER = r"^(-?(0|[1-9]\d*)\.0|-?\d(\.\d+)?e[-+]\d{1,3}|-0)$"
_MIDNIGHT, _WHOLE_SECOND = r"^(\d{4}-\d\d-\d\d) 00:00:00(\.0+)?$", r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.0+$"


def column_names(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the name that each value of a column is, text `(n,)`; null where there is none: null, empty text or NaN.

    A number is `7`, be it an integer, a float, or the text `7` or `7.0`; exponents are written out. Booleans, and such texts
    in any case, are `true` and `false`. A time at midnight is its date. All other texts are names as they are.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    texts = pa.chunked_array(column.cast(pa.string()).chunks, pa.string()).combine_chunks().dictionary_encode()
    return pa.chunked_array([_names_of(texts.dictionary).take(texts.indices)])


def _names_of(texts: pa.Array) -> pa.Array:
    """Returns the names that distinct texts stand for."""
    texts = pc.if_else(pc.equal(texts, ""), None, texts)
    for pattern in (_MIDNIGHT, _WHOLE_SECOND):
        texts = pc.replace_substring_regex(texts, pattern, r"\1")
    texts = pc.if_else(pc.match_substring_regex(texts, _BOOLEAN), pc.utf8_lower(texts), texts)
    is_number = pc.fill_null(pc.match_substring_regex(texts, _NUMBER), False)
    plain = map(_plain_number, texts.filter(is_number).to_pylist())
    return pc.replace_with_mask(texts, is_number, pa.array(plain, pa.string()))


def _plain_number(text: str) -> str:
    """Returns a number without an exponent, and without zeros at its end: 0.00001 for 1e-05, 7 for 7.0, 0 for -0."""
    return f"{(Decimal(text) or Decimal(0)).normalize():f}"
