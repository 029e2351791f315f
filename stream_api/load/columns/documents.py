"""Fast path of json and jsonb."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_api.load.columns.base import Reader, Typed, as_bools

# msgspec checks the grammar, escapes and surrogates included. What it takes and jsonb refuses: the character U+0000,
# and numbers beyond numeric's 131,072 digits before the point and 16,383 after it. Four digits of an exponent or a
# run of a hundred digits are far below that and rare enough to ask about.
_SUSPECT: Final = r"\\u0000|[eE][+-]?[0-9]{4}|[0-9]{100}"
_SUSPECT_UNLESS_UTF8: Final = rf"{_SUSPECT}|\\u|[^\x00-\x7F]"

#: Documents turned into Python strings at a time: that holds the GIL (about 0.1 µs each).
_SLICE_ROWS: Final = 4096

_decode: Final = msgspec.json.Decoder(msgspec.Raw).decode


def json_reader(*, utf8: bool) -> Reader:
    """Types json and jsonb: the text itself; Postgres parses it on both paths.

    :param utf8: the database is encoded in UTF-8, so that it can store whatever an escape stands for.
    """
    pattern = _SUSPECT if utf8 else _SUSPECT_UNLESS_UTF8

    def read(values: pa.StringArray) -> Typed:
        suspect = pc.match_substring_regex(values, pattern)
        doubtful = as_bools(suspect.fill_null(False)).copy()
        for start in range(0, len(values), _SLICE_ROWS):
            for row, text in enumerate(values.slice(start, _SLICE_ROWS).to_pylist(), start):
                if text is None:
                    continue
                try:
                    _decode(text)
                except (msgspec.DecodeError, RecursionError):  # Postgres nests deeper than msgspec
                    doubtful[row] = True
        return Typed(values, doubtful if np.any(doubtful) else None)

    return read
