"""Dates and times in a dataset's formats against what Python's strptime makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.datasets.formats import day_first_formats, parse_format
from stream_api.load.rules.moments import Moments

_DATES = ["%d.%m.%Y", "%Y-%m-%d", "%m/%d/%y", "%d %b %Y", "%B %d, %Y", "%Y%m%d", "%d/%m/%Y 100%%"]
_TIMES = ["", " %H:%M", "T%H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %H.%M.%S %z", " %I:%M:%S%p%z"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

formats = st.tuples(st.sampled_from(_DATES), st.sampled_from(_TIMES)).map("".join)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=zones)  # noqa: DTZ001 (they get one)


def read(values: Sequence[str | None], *texts: str, base: str = "timestamp") -> list[str | None]:
    return Moments(texts, base).read(pa.array(values, pa.string())).to_pylist()


def by_python(value: str, text: str, base: str) -> str | None:
    """What PostgreSQL reads, by Python's own reading."""
    try:
        found = datetime.strptime(value, text)  # noqa: DTZ007 (some have one)
        if found.tzinfo is not None:
            found = found.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    match base:
        case "date":
            return found.date().isoformat()
        case "time":
            return found.time().isoformat(timespec="microseconds")
        case _:
            zone = "Z" if base == "timestamptz" else ""
            return found.isoformat(" ", "microseconds") + zone


@given(st.lists(moments, min_size=1, max_size=5), formats, st.sampled_from(["date", "timestamp", "timestamptz"]))
def test_what_strftime_writes_is_read_as_strptime_reads_it(found: list[datetime], text: str, base: str) -> None:
    values = [each.strftime(text.replace("%Y", f"{each.year:04}")) for each in found]
    assert read(values, text, base=base) == [by_python(value, text, base) for value in values]


_PIECES = st.sampled_from([*"01234567890123/.- :", "00", "31", "29", "2024", "1900", "feb", "PM"])


@given(st.lists(_PIECES, max_size=8).map("".join), st.sampled_from(["%d.%m.%Y", "%Y-%m-%d %H:%M", "%d %b %y %I%p"]))
def test_any_text_is_read_as_strptime_reads_it(value: str, text: str) -> None:
    # Python lets other white space stand for a blank, and a blank stand for a zero.
    expected = None if "  " in value or value != value.strip() else by_python(value, text, "timestamp")
    assert read([value], text) == [expected]


@given(st.integers(0, 40), st.integers(0, 14), st.integers(1896, 1905) | st.integers(1996, 2005) | st.just(0))
def test_days_that_there_are_not_are_refused(day: int, month: int, year: int) -> None:
    value = f"{day}.{month}.{year:04}"
    assert read([value], "%d.%m.%Y", base="date") == [by_python(value, "%d.%m.%Y", "date")]


@given(st.integers(0, 30), st.integers(0, 70), st.integers(0, 70), st.sampled_from(["am", "PM"]))
def test_times_of_day(hour: int, minute: int, second: int, half: str) -> None:
    value = f"{hour}:{minute:02}:{second}"
    # Python knows leap seconds up to the point at which it makes a datetime.
    assert read([value], "%H:%M:%S", base="time") == [by_python(value, "%H:%M:%S", "time")]
    value += f" {half}"
    assert read([value], "%I:%M:%S %p", base="time") == [by_python(value, "%I:%M:%S %p", "time")]


@given(st.decimals(-(10**11), 10**11, places=7) | st.decimals(-10, 10, places=9), st.sampled_from(["", "+"]))
def test_seconds_and_milliseconds_since_1970(number: Decimal, sign: str) -> None:
    text = f"{number:f}"
    signed = text if text.startswith("-") else sign + text
    for name, unit in (("epoch_s", 10**6), ("epoch_ms", 1000)):
        microseconds = int((number * unit).quantize(Decimal(1), ROUND_HALF_UP))
        try:
            expected = (_EPOCH + timedelta(microseconds=microseconds)).replace(tzinfo=None)
        except OverflowError:
            assert read([signed], name) == [None]
        else:
            assert read([signed], name) == [expected.isoformat(" ", "microseconds")]


@pytest.mark.parametrize("value", ["", "1e9", "1 ", "0x1", "--1", ".5", "9" * 13, "-62135596801", "253402300800"])
def test_what_is_no_time_since_1970(value: str) -> None:
    assert read([value], "epoch_s") == [None]


@given(st.lists(st.sampled_from(["1.2.2026", "2026-02-03", "1769904000", "x", "31.2.2026", None]), max_size=12))
def test_the_first_format_that_fits_gives_the_meaning(values: list[str | None]) -> None:
    known = {"1.2.2026": "2026-02-01", "2026-02-03": "2026-02-03", "1769904000": "2026-02-01"}
    expected = [known.get(value or "") for value in values]
    assert read(values, "%d.%m.%Y", "iso", "epoch_s", base="date") == expected
    assert read(values, "epoch_s", "%Y-%m-%d", "%d.%m.%Y", base="date") == expected


def test_the_day_comes_first_where_that_is_said() -> None:
    values = ["3/4/2026", "03.04.2026", "3-4-2026", "2026-04-03", "13/13/2026", "3/4/26"]
    april = "2026-04-03"
    assert read(values, *day_first_formats("date"), base="date") == [april, april, april, april, None, None]
    values = ["3/4/2026 10:05", "3.4.2026 10:05:06", "3.4.2026 10:05:06.5", "2026-04-03T10:05Z", "3.4.2026"]
    assert read(values, *day_first_formats("timestamptz"), base="timestamptz") == [
        "2026-04-03 10:05:00.000000Z",
        "2026-04-03 10:05:06.000000Z",
        "2026-04-03 10:05:06.500000Z",
        "2026-04-03T10:05Z",
        "2026-04-03 00:00:00.000000Z",
    ]


def test_iso_leaves_values_to_their_type() -> None:
    values = ["2026-01-02", "2026-13-99", "2026-01-02 10:00+01", "tomorrow", "2026-01-02x", "2026-01-02 \n?"]
    assert read(values, "iso") == [values[0], values[1], values[2], None, None, values[5]]
    assert read(["10:00", "10:00:60+1", "10"], "iso", base="time") == ["10:00", "10:00:60+1", None]


def test_zones_are_of_the_day() -> None:
    values = ["1.1.2026 00:30 +0100", "1.1.2026 00:30 -01:00", "1.1.2026 00:30 Z", "1.1.2026 00:30 +2400"]
    assert read(values, "%d.%m.%Y %H:%M %z", base="date") == ["2025-12-31", "2026-01-01", "2026-01-01", None]
    assert read(values, "%d.%m.%Y %H:%M %z", base="timestamptz")[0] == "2025-12-31 23:30:00.000000Z"


def test_characters_of_a_format_stand_for_themselves() -> None:
    assert parse_format("%Y.(%m)").pattern == r"(?P<year>[0-9]{4})\.\((?P<month>[0-9]{1,2})\)"
    assert read(["2026.(1)+3", "2026x(1)+3"], "%Y.(%m)+%d", base="date") == ["2026-01-03", None]
