"""Dates and times in the formats of a dataset, read by whole columns and written as PostgreSQL reads them.

A moment is a number of microseconds since 1970 in UTC; without a zone a format's moments are in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from stream_api.datasets.formats import EPOCHS, ISO, parse_format
from stream_api.load.columns.base import Bools, as_bools, matching

#: The stubs of Arrow's functions know neither texts for scalars nor what an array of texts gives.
pc: Final[Any] = pyarrow.compute

Int64s = npt.NDArray[np.int64]

_SECOND: Final = 1_000_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
#: The years 1 to 9999: those that all parties write in the same way.
_FIRST: Final = int(np.datetime64("0001-01-01", "us").astype(np.int64))
_LAST: Final = int(np.datetime64("9999-12-31T23:59:59.999999", "us").astype(np.int64))
_UNIX_YEAR: Final = 1970
#: Of two digits of a year: from here on they are of the last century (POSIX).
_LAST_CENTURY: Final = 69
_MONTHS: Final = pa.array(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])

_NULL: Final = pa.scalar(None, pa.string())
#: Looks like ISO 8601; whether it is a value the column's type says.
_ISO_BEGINS: Final = "[0-9]{4}-[0-9]{2}-[0-9]{2}(?s:[ T].*)?"
_ISO_TIME_BEGINS: Final = "[0-9]{2}:[0-9]{2}(?s:.*)"

_GROUP: Final = re.compile(r"\(\?P<\w+>")
_QUICK_GROUPS: Final = 4
_REST: Final = "rest"

#: Gives the values that are in a format as text for PostgreSQL, and null for the others.
Read = Callable[[pa.StringArray], pa.StringArray]


class Moments:
    """Reads a column of dates or times by several formats: the first that fits a value gives its meaning.

    :param formats: see `datasets.formats`.
    :param base: `date`, `time`, `timestamp` or `timestamptz`.
    """

    def __init__(self, formats: tuple[str, ...], base: str) -> None:
        self._readers = [_reader(text, base) for text in formats]

    def read(self, values: pa.StringArray) -> pa.StringArray:
        """The values as text for PostgreSQL; null where no format fits, or where there is no such day."""
        found: pa.StringArray = pa.nulls(len(values), pa.string())
        open_places = as_bools(values.is_valid())
        for reader in self._readers:
            if not open_places.any():
                break
            whole = bool(open_places.all())
            texts = reader(values if whole else values.filter(pa.array(open_places)))
            found = texts if whole else pc.replace_with_mask(found, pa.array(open_places), texts)
            open_places &= as_bools(found.is_null())
        return found


def _reader(text: str, base: str) -> Read:
    if text == ISO:
        return _iso_reader(base)
    if text in EPOCHS:
        return _epoch_reader(EPOCHS[text], base)
    return _strptime_reader(text, base)


def _iso_reader(base: str) -> Read:
    pattern = _ISO_TIME_BEGINS if base == "time" else _ISO_BEGINS
    return lambda values: pc.if_else(matching(values, pattern), values, _NULL)


def _epoch_reader(unit: int, base: str) -> Read:
    """Seconds or milliseconds with sign and fraction; a half of a microsecond is rounded away from zero."""
    whole_digits, fraction_digits = (12, 6) if unit == _SECOND else (15, 3)
    pattern = rf"(?P<sign>[+-]?)(?P<whole>[0-9]{{1,{whole_digits}}})(?:\.(?P<fraction>[0-9]*))?"

    def read(values: pa.StringArray) -> pa.StringArray:
        parts = _Parts(values, pattern)
        fraction = pc.utf8_rpad(parts.text("fraction"), fraction_digits + 1, "0")
        part = _numbers(pc.utf8_slice_codeunits(fraction, 0, fraction_digits + 1))
        moments = parts.number("whole") * unit + (part + 5) // 10
        negative = as_bools(pc.fill_null(pc.equal(parts.text("sign"), "-"), fill_value=False))
        return _written(np.where(negative, -moments, moments), parts.matched, base)

    return read


def _strptime_reader(text: str, base: str) -> Read:
    known = parse_format(text)
    pattern, says = known.pattern, known.says

    def read(values: pa.StringArray) -> pa.StringArray:
        parts = _Parts(values, pattern)
        good = parts.matched
        moments = np.zeros(len(values), np.int64)
        if base != "time":
            days, exist = _days(parts, says)
            moments += days * _DAY
            good = good & exist
        for name, size, limit in (("hour", _HOUR, 24), ("minute", _MINUTE, 60), ("second", _SECOND, 60)):
            if name in says:
                number = parts.number(name)
                moments += number * size
                good = good & (number < limit)
        if "hour12" in says:
            hour = parts.number("hour12")
            good = good & (hour >= 1) & (hour <= 12)  # noqa: PLR2004
            afternoon = pc.equal(pc.ascii_lower(parts.text("half")), "pm")
            moments += (hour % 12 + 12 * as_bools(pc.fill_null(afternoon, fill_value=False))) * _HOUR
        if "fraction" in says:
            moments += _numbers(pc.utf8_rpad(parts.text("fraction"), 6, "0"))
        if "zone" in says:
            offset, exist = _offset(parts)
            moments -= offset
            good = good & exist
        return _written(moments, good, base)

    return read


class _Parts:
    """What a pattern's groups have found in the values, which it must match as a whole.

    RE2 is quick with `_QUICK_GROUPS` groups at most, and takes five times as long with more: then the last of them is
    all that follows, to be looked at by itself.
    """

    def __init__(self, values: pa.StringArray, pattern: str) -> None:
        self._texts: dict[str, pa.StringArray] = {}
        rest: pa.StringArray = values
        while pattern:
            begin, pattern = _split(pattern)
            following = f"(?P<{_REST}>{_GROUP.sub('(?:', pattern)})" if pattern else ""
            found: Any = pc.extract_regex(rest, pattern=rf"\A{begin}{following}\z")
            if not self._texts:
                self.matched: Bools = as_bools(found.is_valid())
            self._texts |= {field.name: pc.struct_field(found, field.name) for field in found.type}
            rest = self._texts.pop(_REST, rest)

    def text(self, name: str) -> pa.StringArray:
        """The texts of a group; null where the pattern does not match."""
        return self._texts[name]

    def number(self, name: str) -> Int64s:
        """The numbers that a group of digits has found; 0 where the pattern does not match."""
        return _numbers(self.text(name))


def _split(pattern: str) -> tuple[str, str]:
    """A pattern in two, if it has too many groups: those that are quick beside a group for the rest, and the others."""
    groups = list(_GROUP.finditer(pattern))
    if len(groups) <= _QUICK_GROUPS:
        return pattern, ""
    middle = groups[_QUICK_GROUPS - 1].start()
    return pattern[:middle], pattern[middle:]


def _numbers(texts: pa.StringArray) -> Int64s:
    numbers: Int64s = pc.fill_null(pc.cast(texts, pa.int64()), 0).to_numpy()
    return numbers


def _days(parts: _Parts, says: frozenset[str]) -> tuple[Int64s, Bools]:
    """Days since 1970, and which of them there are."""
    if "year" in says:
        year = parts.number("year")
    else:
        short = parts.number("short_year")
        year = short + np.where(short >= _LAST_CENTURY, 1900, 2000)
    if "month" in says:
        month = parts.number("month")
    else:
        names = pc.ascii_lower(pc.utf8_slice_codeunits(parts.text("month_name"), 0, 3))
        month = pc.fill_null(pc.index_in(names, value_set=_MONTHS), 0).to_numpy().astype(np.int64) + 1
    day = parts.number("day")
    good = (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1)  # noqa: PLR2004
    months = ((year - _UNIX_YEAR) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    good &= days.astype("datetime64[M]") == months
    return days.astype(np.int64), good


def _offset(parts: _Parts) -> tuple[Int64s, Bools]:
    """How far zones are ahead of UTC, and which of them there can be."""
    zone = parts.text("zone")
    digits = pc.replace_substring_regex(zone, r"[^0-9]", "")
    number = _numbers(pc.if_else(pc.equal(digits, ""), "0", digits))
    hours, minutes = number // 100, number % 100
    behind = as_bools(pc.fill_null(pc.starts_with(zone, "-"), fill_value=False))
    offset = hours * _HOUR + minutes * _MINUTE
    return np.where(behind, -offset, offset), (hours < 24) & (minutes < 60)  # noqa: PLR2004


def _written(moments: Int64s, good: Bools, base: str) -> pa.StringArray:
    """The good ones of the moments as PostgreSQL reads them."""
    good = good & (moments >= _FIRST) & (moments <= _LAST)
    nulls = None if good.all() else ~good
    match base:
        case "date":
            typed: Any = pa.array((moments // _DAY).astype(np.int32), mask=nulls).cast(pa.date32())
        case "time":
            typed = pa.array(np.where(good, moments, 0), pa.int64(), mask=nulls).cast(pa.time64("us"))
        case _:
            typed = pa.array(moments, pa.int64(), mask=nulls).cast(pa.timestamp("us"))
    texts: pa.StringArray = typed.cast(pa.string())
    # Arrow itself would look the zone up for every value, which takes it ten times as long.
    return pc.binary_join_element_wise(texts, "Z", "") if base == "timestamptz" else texts
