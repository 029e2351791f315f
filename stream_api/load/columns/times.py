"""Fast paths of date, time and the timestamps: ISO 8601 as most programs write it, of the years 1900 to 2999.

The patterns are complete, months' lengths and leap years included, so that no cast of what they match can fail: a
cast that fails fails for its whole column.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from stream_api.load.columns.base import (
    Typed,
    all_between,
    as_bools,
    bytes_at,
    cast_whole,
    doubts,
    every,
    matching,
    only,
)

# Of the centuries in question only 2000, 2400 and 2800 are leap years.
_LEAP_YEAR: Final = "(?:(?:19|2[0-9])(?:0[48]|[2468][048]|[13579][26])|2[048]00)"
_DATE: Final = (
    "(?:(?:19|2[0-9])[0-9]{2}-(?:"
    "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME: Final = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,6})?)?"
# Postgres takes offsets below 16 hours; Arrow takes up to 23:59, and an hour without minutes, which Postgres refuses.
_ZONE: Final = "(?:Z|[+-](?:0[0-9]|1[0-5])(?::?[0-5][0-9])?)"

_NAIVE: Final = f"{_DATE}(?:[ T]{_TIME})?"
_ZONED: Final = f"{_DATE}[ T]{_TIME}{_ZONE}"

_FIRST_DAY: Final = (dt.date(1900, 1, 1) - dt.date(1970, 1, 1)).days
_LAST_DAY: Final = (dt.date(2999, 12, 31) - dt.date(1970, 1, 1)).days
_DAY_MICROSECONDS: Final = 24 * 60 * 60 * 1_000_000
#: Of the colon between hours and minutes.
_COLON_PLACE: Final = len("2026-11-23T10")

#: Of an offset, counted from the end: `+05:30`, `+05`, `+0530`.
_SIGN_PLACES: Final = (-6, -3, -5)

_EPOCH: Final = pa.scalar("1970-01-01")
_SPACE: Final = pa.scalar(" ")
_NAIVE_TYPE: Final = pa.timestamp("us")
_TIME_TYPE: Final = pa.time64("us")
_ZONED_TYPE: Final = pa.timestamp("us", "UTC")


def _moments(values: pa.StringArray, data_type: pa.DataType) -> pa.Array[Any] | None:
    """The quick way: the moments of a column in which all have hours and minutes, with a colon, else `None`.

    That excludes what Arrow takes and Postgres does not: an hour alone.
    """
    moments = cast_whole(values, data_type)
    if moments is None or not (bytes_at(values, _COLON_PLACE) == ord(":")).all():
        return None
    microseconds = moments.view(pa.int64())
    first, end = _FIRST_DAY * _DAY_MICROSECONDS, (_LAST_DAY + 1) * _DAY_MICROSECONDS
    return moments if all_between(microseconds, first, end - 1) else None


def _near(values: pa.StringArray) -> bool:
    """Whether all moments, zoned ones for Arrow, are less than ten hours from UTC; Postgres takes less than sixteen."""
    near = bytes_at(values, -1) == ord("Z")
    for sign in _SIGN_PLACES:
        if near.all():
            break
        signs = bytes_at(values, sign)
        near |= ((signs == ord("+")) | (signs == ord("-"))) & (bytes_at(values, sign + 1) == ord("0"))
    return bool(near.all())


def read_date(values: pa.StringArray) -> Typed:
    """Type date."""
    dates = cast_whole(values, pa.date32())
    if dates is not None and all_between(dates.view(pa.int32()), _FIRST_DAY, _LAST_DAY):
        return Typed(dates)
    mask = matching(values, _DATE)
    return Typed(pc.cast(only(values, mask), pa.date32()), doubts(mask))


def read_time(values: pa.StringArray) -> Typed:
    """Type time without time zone."""
    if (moments := _moments(_on_first_day(values), _NAIVE_TYPE)) is not None:
        return Typed(moments.view(_TIME_TYPE))
    mask = matching(values, _TIME)
    return Typed(pc.cast(_on_first_day(only(values, mask)), _NAIVE_TYPE).view(_TIME_TYPE), doubts(mask))


def _on_first_day(times: pa.Array[Any]) -> pa.StringArray:
    """Arrow casts no text to a time. On the first day of its era a timestamp and its time are the same number."""
    # The stubs want no mixture.
    return pc.binary_join_element_wise(_EPOCH, times, _SPACE)  # type: ignore[call-overload,no-any-return]


def read_timestamptz(values: pa.StringArray) -> Typed:
    """Type timestamptz. What names no zone is in that of the session, which is UTC in every session of ours."""
    if (moments := _moments(values, _ZONED_TYPE)) is not None and _near(values):
        return Typed(moments)
    zoned = matching(values, _ZONED)
    array = pc.cast(only(values, zoned), _ZONED_TYPE)
    others = doubts(zoned)
    if others is None:
        return Typed(array)
    # There are few of them, or it is all.
    places = pa.array(others)
    rest = values.filter(places)
    naive = matching(rest, _NAIVE)
    in_utc = pc.cast(only(rest, naive), _NAIVE_TYPE).view(_ZONED_TYPE)
    others[others] = ~as_bools(naive)
    return Typed(pc.replace_with_mask(array, places, in_utc), others if others.any() else None)


def read_timestamp(values: pa.StringArray) -> Typed:
    """Type timestamp without time zone. Postgres reads a zone and forgets it: so does this."""
    if (moments := _moments(values, _NAIVE_TYPE)) is not None:
        return Typed(moments)
    naive = matching(values, _NAIVE)
    array = pc.cast(only(values, naive), _NAIVE_TYPE)
    if every(naive):
        return Typed(array)
    zoned = matching(values, _ZONED)
    bare = pc.replace_substring_regex(only(values, zoned), rf"{_ZONE}\z", "")
    return Typed(pc.coalesce(array, pc.cast(bare, _NAIVE_TYPE)), doubts(pc.or_(naive, zoned)))
