"""The fast paths by themselves: what they leave to Postgres, and what they make of the rest."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.datasets.plan import Kind, PlanColumn
from stream_api.load.columns.base import Typed
from stream_api.load.columns.readers import column_reader


def read(kind: Kind, values: list[str | None], *, encoding: str = "UTF8", **facts: Any) -> Typed:
    column = PlanColumn(name="c", source="c", kind=kind, type=kind, **facts)
    return column_reader(column, encoding=encoding)(pa.array(values, pa.string()))


def doubted(kind: Kind, values: list[str | None], **facts: Any) -> list[str | None]:
    typed = read(kind, values, **facts)
    return [] if typed.doubtful is None else [v for v, doubt in zip(values, typed.doubtful, strict=True) if doubt]


def result(kind: Kind, values: list[str | None], **facts: Any) -> list[Any]:
    typed = read(kind, values, **facts)
    assert typed.array is not None
    assert len(typed.array) == len(values)
    return typed.array.to_pylist()


ALL: list[tuple[Kind, dict[str, Any], str]] = [
    ("uuid", {}, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("int2", {}, "1"),
    ("int4", {}, "1"),
    ("int8", {}, "1"),
    ("numeric", {"precision": 12, "scale": 2}, "1.5"),
    ("float4", {}, "1.5"),
    ("float8", {}, "1.5"),
    ("bool", {}, "t"),
    ("date", {}, "2026-11-23"),
    ("time", {}, "10:00:00"),
    ("timestamp", {}, "2026-11-23 10:00:00"),
    ("timestamptz", {}, "2026-11-23T10:00:00Z"),
    ("text", {"length": 3}, "abc"),
    ("text", {}, "abc"),
    ("enum", {"labels": ("sad", "ok")}, "ok"),
    ("json", {}, "{}"),
    ("jsonb", {}, "{}"),
]


@pytest.mark.parametrize(("kind", "facts", "good"), ALL)
@pytest.mark.parametrize("offset", [0, 1, 9])
def test_nulls_doubts_and_slices(kind: Kind, facts: dict[str, Any], good: str, offset: int) -> None:
    doubt = "\x01 é \x01"
    values = [None, good, doubt, good, None, None, doubt, good, good, good, None, good]
    column = PlanColumn(name="c", source="c", kind=kind, type=kind, **facts)
    typed = column_reader(column, encoding="UTF8")(pa.array(values, pa.string()).slice(offset))
    values = values[offset:]
    assert typed.array is not None
    plain_text = kind == "text" and not facts
    expected = [value == doubt for value in values]
    assert (typed.doubtful.tolist() if typed.doubtful is not None else None) == (
        None if plain_text or not any(expected) else expected
    )
    whole = result(kind, [good], **facts)
    for got, value in zip(typed.array.to_pylist(), values, strict=True):
        if value is None:
            assert got is None
        elif value == good:
            assert [got] == whole


@pytest.mark.parametrize(("kind", "facts", "good"), ALL)
def test_empty_columns_and_columns_of_nulls(kind: Kind, facts: dict[str, Any], good: str) -> None:
    assert result(kind, [], **facts) == []
    assert result(kind, [None] * 3, **facts) == [None] * 3
    assert doubted(kind, [None] * 3, **facts) == []
    assert result(kind, [good] * 3, **facts) == result(kind, [good], **facts) * 3


def test_every_date_there_is() -> None:
    values: list[str | None] = []
    valid: set[str] = set()
    for year in range(1895, 3005):
        for month in range(14):
            for day in range(26, 33):
                text = f"{year:04}-{month:02}-{day:02}"
                values.append(text)
                try:
                    dt.date(year, month, day)
                except ValueError:
                    continue
                if 1900 <= year <= 2999:
                    valid.add(text)
    taken = set(values) - set(doubted("date", values))
    assert taken == valid
    dates: list[str | None] = sorted(valid, key=str)
    assert [str(date) for date in result("date", dates)] == dates
    stamps: list[str | None] = [f"{date} 00:00" for date in dates]
    assert [stamp.date().isoformat() for stamp in result("timestamp", stamps)] == dates
    assert doubted("timestamptz", stamps) == []


def test_timestamps_of_several_forms_in_one_column() -> None:
    values: list[str | None] = [
        "2026-11-23T10:00:00Z", "2026-11-23 10:00", None, "2026-11-23", "2026-11-23 10:00:00.5-02:30", "2026-02-29",
    ]  # fmt: skip
    utc = dt.timezone.utc  # noqa: UP017 - as pyarrow gives it
    day = dt.datetime(2026, 11, 23, tzinfo=utc)
    assert result("timestamptz", values)[:5] == [
        day.replace(hour=10), day.replace(hour=10), None, day, day.replace(hour=12, minute=30, microsecond=500_000),
    ]  # fmt: skip
    naive = day.replace(tzinfo=None)
    assert result("timestamp", values)[:5] == [
        naive.replace(hour=10), naive.replace(hour=10), None, naive, naive.replace(hour=10, microsecond=500_000),
    ]  # fmt: skip
    assert doubted("timestamp", values) == doubted("timestamptz", values) == ["2026-02-29"]


def test_integers_at_their_limits() -> None:
    for kind, bits in (("int2", 16), ("int4", 32)):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        values: list[str | None] = [str(low), str(low - 1), str(high), str(high + 1), "007", "-0"]
        assert doubted(kind, values) == [str(low - 1), str(high + 1)]  # type: ignore[arg-type]
        assert result(kind, values) == [low, None, high, None, 7, 0]  # type: ignore[arg-type]
    assert doubted("int8", ["8999999999999999999", "9223372036854775807", "9" * 30]) == [
        "9223372036854775807",
        "9" * 30,
    ]


@given(st.integers(1, 38).flatmap(lambda p: st.tuples(st.just(p), st.integers(0, p))), st.data())
def test_decimals_keep_every_digit(shape: tuple[int, int], data: st.DataObject) -> None:
    precision, scale = shape
    number = data.draw(st.integers(-(10**precision) + 1, 10**precision - 1))
    text = _scaled(number, scale) if scale else str(number)
    assert doubted("numeric", [text], precision=precision, scale=scale) == []
    assert str(result("numeric", [text], precision=precision, scale=scale)[0]) == str(Decimal(text))
    # A digit too many may be taken, but only a nought.
    rounded = text + ("5" if scale else ".5")
    assert doubted("numeric", [rounded], precision=precision, scale=scale) == [rounded]


def _scaled(number: int, scale: int) -> str:
    digits = f"{abs(number):0{scale + 1}}"
    return f"{'-' if number < 0 else ''}{digits[:-scale]}.{digits[-scale:]}"


@given(st.lists(st.one_of(st.none(), st.uuids().map(str), st.text(max_size=40)), max_size=20))
def test_uuids_are_those_of_the_standard_library(values: list[str | None]) -> None:
    taken = [v for v in values if v is not None and _is_uuid(v)]
    assert doubted("uuid", values) == [v for v in values if v is not None and v not in taken]
    assert [b for b in result("uuid", values) if b is not None] == [uuid.UUID(v).bytes for v in taken]


def _is_uuid(value: str) -> bool:
    try:
        return str(uuid.UUID(value)) == value.lower()
    except ValueError:
        return False


def test_texts_are_measured_in_characters() -> None:
    assert doubted("text", ["abc", "éé🎉", "abcd", ""], length=3) == ["abcd"]


def test_a_database_of_another_encoding_is_asked_about_what_it_may_lack() -> None:
    assert doubted("text", ["abc", "é"], encoding="LATIN1") == ["é"]
    assert doubted("jsonb", ['"abc"', '"é"', r'"\u00e9"'], encoding="LATIN1") == ['"é"', r'"\u00e9"']


def test_json_that_only_postgres_can_judge() -> None:
    deep = "[" * 5000 + "]" * 5000
    doubtful: list[str | None] = [
        r'"\u0000"',
        "1e1000",
        "[1E-9999]",
        "9" * 100,
        deep,
        "{",
        '"\t"',
        r'"\ud800"',
        "NaN",
        "",
    ]
    fine: list[str | None] = ["1e999", "9" * 99, r'"\ud83d\ude00"', "[" * 50 + "]" * 50, ' {"a" : [1, null]} ']
    for kind in ("json", "jsonb"):
        assert doubted(kind, doubtful + fine) == doubtful


def test_plain_numbers_need_no_judge_but_have_no_binary_form() -> None:
    typed = read("other_number", ["1.50", "-3", "1e5", "9" * 1001])
    assert typed.array is None
    assert doubted("other_number", ["1.50", "-3", "1e5", "9" * 1001, None]) == ["1e5", "9" * 1001]


def test_types_without_a_fast_path_are_all_doubt() -> None:
    assert doubted("other", ["a", None, "b"]) == ["a", "b"]
    assert read("other", [None]).doubtful is None
