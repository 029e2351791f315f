"""Fast paths of date, time and the timestamps: ISO 8601 as most programs write it, of the years 1900 to 2999.

The patterns are complete, months' lengths and leap years included, so that no cast of what they match can fail: a
cast that fails fails for its whole column.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from stream_api.load.columns.base import Typed, as_bools, doubts, every, matching, only

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

_EPOCH: Final = pa.scalar("1970-01-01")
_SPACE: Final = pa.scalar(" ")
_NAIVE_TYPE: Final = pa.timestamp("us")
_ZONED_TYPE: Final = pa.timestamp("us", "UTC")


def read_date(values: pa.StringArray) -> Typed:
    """Type date."""
    mask = matching(values, _DATE)
    return Typed(pc.cast(only(values, mask), pa.date32()), doubts(mask))


def read_time(values: pa.StringArray) -> Typed:
    """Type time without time zone."""
    mask = matching(values, _TIME)
    # Arrow casts no text to a time. On the first day of its era a timestamp and its time are the same number.
    stamped: pa.StringArray = pc.binary_join_element_wise(  # type: ignore[call-overload]  # the stubs want no mixture
        _EPOCH, only(values, mask), _SPACE
    )
    return Typed(pc.cast(stamped, _NAIVE_TYPE).view(pa.time64("us")), doubts(mask))


def read_timestamptz(values: pa.StringArray) -> Typed:
    """Type timestamptz. What names no zone is in that of the session, which is UTC in every session of ours."""
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
    naive = matching(values, _NAIVE)
    array = pc.cast(only(values, naive), _NAIVE_TYPE)
    if every(naive):
        return Typed(array)
    zoned = matching(values, _ZONED)
    bare = pc.replace_substring_regex(only(values, zoned), rf"{_ZONE}\z", "")
    return Typed(pc.coalesce(array, pc.cast(bare, _NAIVE_TYPE)), doubts(pc.or_(naive, zoned)))
