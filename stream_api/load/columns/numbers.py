"""Fast paths of the number types."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from stream_api.load.columns.base import Reader, Typed, cast_whole, contents, doubts, longest, matching, only

#: Type, pattern and range. The patterns keep to what Arrow's int64 holds; the range does the rest.
_INTEGERS: Final[dict[str, tuple[pa.DataType, str, int]]] = {
    "int2": (pa.int16(), "-?[0-9]{1,5}", 2**15),
    "int4": (pa.int32(), "-?[0-9]{1,10}", 2**31),
    # 8,999,999,999,999,999,999 is the largest that this lets through, below 2**63.
    "int8": (pa.int64(), "-?(?:[0-9]{1,18}|[0-8][0-9]{18})", 2**63),
}

# Both round the decimal digits correctly (fast_float in Arrow, strtod and strtof in Postgres). The bounds on the
# digits keep far from overflow and from denormals, where Postgres refuses and Arrow does not: at most 1e17 times
# 1e99 for a double (limit 1e308) and 1e17 times 1e9 for a float (limit 3e38).
_FLOATS: Final[dict[str, tuple[pa.DataType, str]]] = {
    "float4": (pa.float32(), r"-?[0-9]{1,17}(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9])?"),
    "float8": (pa.float64(), r"-?[0-9]{1,17}(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?"),
}

# Of texts without a byte beyond `9` (letters: so no exponents, no words, no other bases) Arrow takes those that have a
# minus or none, digits, and for decimals a plus and a point anywhere, if there is a digit: so does Postgres. Arrow
# refuses what would be rounded or does not fit. `tests/load/test_columns_quick.py` tries all short ones.
_LAST_DIGIT: Final = ord("9")
#: Far from overflow of a float and from its denormals: see above.
_PLAIN_LENGTH: Final = 32
#: Digits of any number that a decimal of 128 bits holds. Arrow brings what it has read to the column's scale, and of
#: what is more than that by then it keeps the lower bits: of the 7 that a numeric(38,38) refuses it makes 0.194….
_DECIMAL_DIGITS: Final = 38

_PLAIN_NUMBER: Final = r"-?[0-9]+(?:\.[0-9]+)?"
#: Far below the 131,072 digits before the point and 16,383 after it that numeric holds.
_PLAIN_DIGITS: Final = 1000


def _plain(values: pa.StringArray, data_type: pa.DataType, length: int = _PLAIN_LENGTH) -> pa.Array[Any] | None:
    """The quick way: the numbers of a column that is all plain ones of this length at most, else `None`."""
    text, places = contents(values)
    if text.max(initial=0) > _LAST_DIGIT or longest(places) > length:
        return None
    return cast_whole(values, data_type)


def integer_reader(kind: str) -> Reader:
    """int2, int4 and int8: decimal digits with or without a minus, in range."""
    data_type, pattern, limit = _INTEGERS[kind]

    def read(values: pa.StringArray) -> Typed:
        if (plain := _plain(values, data_type)) is not None:
            return Typed(plain)
        mask = matching(values, pattern)
        wide = pc.cast(only(values, mask), pa.int64())
        if data_type == pa.int64():
            return Typed(wide, doubts(mask))
        # A null of `wide` is a null of `values`, or one that the pattern did not match.
        in_range = pc.and_(pc.greater_equal(wide, pa.scalar(-limit)), pc.less(wide, pa.scalar(limit)))
        mask = pc.and_kleene(mask, in_range)
        return Typed(pc.cast(only(wide, mask), data_type), doubts(mask))

    return read


def decimal_reader(precision: int, scale: int) -> Reader:
    """numeric(p,s) with 0 <= s <= p <= 38: no more digits than it holds, so that nothing is rounded.

    Postgres rounds what has more fraction digits, and takes NaN, exponents, other bases and underscores: it is asked.
    """
    whole = f"[0-9]{{1,{precision - scale}}}" if precision > scale else "0"
    pattern = rf"-?{whole}(?:\.[0-9]{{1,{scale}}})?" if scale else rf"-?{whole}"
    data_type = pa.decimal128(precision, scale)
    plain_length = min(_PLAIN_LENGTH, _DECIMAL_DIGITS - scale)

    def read(values: pa.StringArray) -> Typed:
        if (plain := _plain(values, data_type, plain_length)) is not None:
            return Typed(plain)
        mask = matching(values, pattern)
        return Typed(pc.cast(only(values, mask), data_type), doubts(mask))

    return read


def float_reader(kind: str) -> Reader:
    """float4 and float8: decimal digits, with a small exponent or none."""
    data_type, pattern = _FLOATS[kind]

    def read(values: pa.StringArray) -> Typed:
        if (plain := _plain(values, data_type)) is not None:
            return Typed(plain)
        mask = matching(values, pattern)
        return Typed(pc.cast(only(values, mask), data_type), doubts(mask))

    return read


def read_plain_number(values: pa.StringArray) -> Typed:
    """Type numeric without a modifier: no binary form of Arrow's keeps each value's scale, but most need no judge."""
    # A float has not its digits, but what is one is a number.
    if _plain(values, pa.float64()) is not None:
        return Typed(None)
    short = pc.less_equal(pc.binary_length(values), pa.scalar(_PLAIN_DIGITS))
    return Typed(None, doubts(pc.and_(matching(values, _PLAIN_NUMBER), short)))
