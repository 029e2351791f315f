"""What a fast path over a column of text gives, and the small steps that all of them are made of.

A fast path is *sound*: of a value that it does not doubt, Postgres stores exactly what the typed form says. It need not
be complete: what it doubts, Postgres itself is asked about.

Most readers have two ways. The quick one proves a whole column sound at once, by Arrow's cast and by tests of bytes;
that takes a fifth of the time, and a column without odd values needs no more. Where it gives up, the exact one goes
value by value, by patterns: RE2's, matched by Arrow without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Typed:
    """A column as read.

    :param array: in the form that pgpq encodes exactly; null where the text is null or doubtful. `None` when the
        column's type has no binary form.
    :param doubtful: the values that only Postgres can judge; never set for a null. `None` when there are none.
    """

    array: pa.Array[Any] | None
    doubtful: Bools | None = None


#: Reads a string column. Called in worker threads, several at once.
Reader = Callable[[pa.StringArray], Typed]


def contents(values: pa.StringArray) -> tuple[Bytes, Places]:
    """The bytes of a column, one value behind another, and the places where each begins; the last is the end of all.

    Where a value is null there may be bytes too.
    """
    _, offsets, data = values.buffers()
    if offsets is None or data is None:  # an empty array has no buffers, one of nulls alone need have no data
        return np.zeros(0, np.uint8), np.zeros(len(values) + 1, np.int32)
    places = np.frombuffer(memoryview(offsets), np.int32)[values.offset : values.offset + len(values) + 1]
    return np.frombuffer(memoryview(data), np.uint8)[places[0] : places[-1]], places - places[0]


def longest(places: Places) -> int:
    """Bytes of the longest value."""
    return int((places[1:] - places[:-1]).max(initial=0))


def bytes_at(values: pa.StringArray, place: int) -> Bytes:
    """The byte at a place of every value but the nulls, counted from the end where negative; 0 if it is not so long."""
    text, places = contents(values)
    starts, ends = places[:-1], places[1:]
    if values.null_count:
        valid = as_bools(values.is_valid())
        starts, ends = starts[valid], ends[valid]
    at = starts + place if place >= 0 else ends + place
    inside = (at >= starts) & (at < ends)
    return text[at] if inside.all() else np.where(inside, text.take(at, mode="clip"), np.uint8(0))


def cast_whole(values: pa.StringArray, data_type: pa.DataType) -> pa.Array[Any] | None:
    """All values by Arrow's cast, which knows more than Postgres and less; `None` when it refuses one."""
    try:
        return pc.cast(values, data_type)
    except pa.ArrowInvalid:
        return None


def all_between(numbers: pa.Array[Any], least: int, most: int) -> bool:
    """Whether all numbers but the nulls are in a range, both ends included."""
    ends = pc.min_max(numbers)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    return low is None or (least <= low and high <= most)


def lost(values: pa.StringArray, array: pa.Array[Any]) -> Bools | None:
    """The values for which there is nothing in the array: doubts."""
    if array.null_count == values.null_count:
        return None
    return as_bools(pc.and_(values.is_valid(), array.is_null()))


def matching(values: pa.StringArray, pattern: str) -> pa.BooleanArray:
    """Which values match the pattern as a whole; null for null."""
    return pc.match_substring_regex(values, rf"\A(?:{pattern})\z")


def every(mask: pa.BooleanArray) -> bool:
    """Whether the mask is true for every value but the nulls."""
    return bool(pc.all(mask, skip_nulls=True, min_count=0).as_py())


def only(values: pa.Array[Any], mask: pa.BooleanArray) -> pa.Array[Any]:
    """The values where the mask is true, null elsewhere."""
    return values if every(mask) else pc.if_else(mask, values, pa.scalar(None, values.type))


def doubts(mask: pa.BooleanArray) -> Bools | None:
    """The values for which the mask is false; a null is no doubt."""
    if every(mask):
        return None
    return ~as_bools(mask.fill_null(True))


def as_bools(mask: pa.Array[Any]) -> Bools:
    """A mask without nulls, for numpy."""
    bools: Bools = mask.to_numpy(zero_copy_only=False)
    return bools


def read_nothing(values: pa.StringArray) -> Typed:
    """Types without a fast path: every value is doubtful."""
    if values.null_count == len(values):
        return Typed(None)
    return Typed(None, as_bools(values.is_valid()))
