"""Fast paths of text, booleans and enums."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from stream_api.load.columns.base import Reader, Typed, contents, doubts, longest, lost

# Postgres takes every unique prefix of the words, in any case, within white space; these are the ones in use.
_TRUE: Final = ("t", "true", "y", "yes", "on", "1")
_FALSE: Final = ("f", "false", "n", "no", "off", "0")


def _in_every_case(words: tuple[str, ...]) -> pa.StringArray:
    return pa.array(sorted({form for word in words for form in (word, word.upper(), word.title())}), pa.string())


_TRUE_WORDS: Final = _in_every_case(_TRUE)
_WORDS: Final = pa.array([*_TRUE_WORDS, *_in_every_case(_FALSE)], pa.string())


def text_reader(length: int | None, *, utf8: bool) -> Reader:
    """text, varchar and char: any text that is not too long.

    :param length: most characters; what is longer may still be taken, if the rest is spaces.
    :param utf8: the database is encoded in UTF-8, so that it can store every character and counts them as we do.
    """

    def read(values: pa.StringArray) -> Typed:
        if utf8 and (length is None or longest(contents(values)[1]) <= length):  # no character is less than a byte
            return Typed(values)
        mask = values.is_valid() if utf8 else pc.string_is_ascii(values)
        if length is not None:
            mask = pc.and_(mask, pc.less_equal(pc.utf8_length(values), pa.scalar(length)))
        return Typed(values, doubts(mask))

    return read


def enum_reader(labels: tuple[str, ...]) -> Reader:
    """An enum: its labels, letter by letter."""
    known = pa.array(labels, pa.string())

    def read(values: pa.StringArray) -> Typed:
        return Typed(values, lost(values, pc.index_in(values, value_set=known)))

    return read


def read_bool(values: pa.StringArray) -> Typed:
    """Type boolean."""
    word = pc.index_in(values, value_set=_WORDS)
    return Typed(pc.less(word, pa.scalar(len(_TRUE_WORDS), word.type)), lost(values, word))
