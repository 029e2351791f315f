"""Fast path of json and jsonb."""

from __future__ import annotations

import string
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stream_api.load.columns.base import Bools, Bytes, Reader, Typed, as_bools, contents

# msgspec checks the grammar, escapes and surrogates included. What it takes and jsonb refuses: the character U+0000,
# and numbers beyond numeric's 131,072 digits before the point and 16,383 after it. Four digits of an exponent or a
# run of a hundred digits are far below that and rare enough to ask about.
_SUSPECT: Final = r"\\u0000|[eE][+-]?[0-9]{4}|[0-9]{100}"
_SUSPECT_UNLESS_UTF8: Final = rf"{_SUSPECT}|\\u|[^\x00-\x7F]"

#: Documents turned into Python's bytes at a time: that holds the GIL (about 0.02 µs each).
_SLICE_ROWS: Final = 4096
#: Bytes looked at at a time, so that what is made of them stays in the processor's cache.
_PIECE_BYTES: Final = 128 * 1024
#: Bytes of the next piece that are looked at with one, so that what begins in it is seen whole.
_OVERLAP_BYTES: Final = 100
#: Eight digits, as bytes that are true.
_EIGHT: Final = np.frombuffer(b"\1" * 8, np.uint64)[0]

_decode: Final = msgspec.json.Decoder(msgspec.Raw).decode


def json_reader(*, utf8: bool) -> Reader:
    """Types json and jsonb: the text itself; Postgres parses it on both paths.

    :param utf8: the database is encoded in UTF-8, so that it can store whatever an escape stands for.
    """

    def read(values: pa.StringArray) -> Typed:
        doubtful = _suspects(values) if utf8 else _matches(values, _SUSPECT_UNLESS_UTF8).copy()
        for start in range(0, len(values), _SLICE_ROWS):
            # As bytes, which is what msgspec reads; of a string it would have to make them first.
            for row, text in enumerate(values.slice(start, _SLICE_ROWS).view(pa.binary()).to_pylist(), start):
                if text is None:
                    continue
                try:
                    _decode(text)
                except (msgspec.DecodeError, RecursionError):  # Postgres nests deeper than msgspec
                    doubtful[row] = True
        return Typed(values, doubtful if doubtful.any() else None)

    return read


def _matches(values: pa.StringArray, pattern: str) -> Bools:
    return as_bools(pc.match_substring_regex(values, pattern).fill_null(False))


def _suspects(values: pa.StringArray) -> Bools:
    """The values that match `_SUSPECT`."""
    suspect = np.zeros(len(values), np.bool_)
    rows = _rows_to_search(values)
    if rows.size:
        suspect[rows] = _matches(values.take(rows), _SUSPECT)
    return suspect


def _rows_to_search(values: pa.StringArray) -> npt.NDArray[np.intp]:
    """The rows in which `_SUSPECT` may be, and few others: bytes are compared by the dozen, a pattern takes each."""
    text, places = contents(values)
    found = [
        start + hits
        for start in range(0, text.size, _PIECE_BYTES)
        for hits in _hits(text[start : start + _PIECE_BYTES + _OVERLAP_BYTES])
        if hits.size
    ]
    if not found:
        return np.zeros(0, np.intp)
    return np.unique(np.searchsorted(places, np.concatenate(found), side="right") - 1)


def _hits(text: Bytes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places in a text where a suspect may begin."""
    digit = (text - np.uint8(ord("0"))) < len(string.digits)  # what is below wraps around
    lead = ((text | 0x20) == ord("e")) | (text == ord("\\"))
    # Of `e1234`, `e+1234` and `\u0000`: the first, and digits two to four places on.
    short = lead[:-4] & digit[2:-2] & digit[3:-1] & digit[4:]
    # Of a hundred digits in a run at least 88 are in whole words of eight, eleven of them; four are enough to tell.
    word = digit[: digit.size & ~7].view(np.uint64) == _EIGHT
    run = word[:-3] & word[1:-2] & word[2:-1] & word[3:]
    return np.flatnonzero(short), np.flatnonzero(run) * 8
