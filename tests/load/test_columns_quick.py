"""The quick ways of the fast paths, against Postgres: all short numbers, and moments of every make."""

from __future__ import annotations

import asyncio
import itertools
import re
import struct
import uuid
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.datasets.plan import Kind, PlanColumn
from stream_api.load.columns import documents, numbers, times, uuids
from stream_api.load.columns.base import Reader, Typed
from stream_api.load.columns.readers import column_reader
from tests.load.values import connected

NUMBERS: list[tuple[Kind, dict[str, int], str]] = [
    ("int2", {}, "int2"),
    ("int4", {}, "int4"),
    ("int8", {}, "int8"),
    ("numeric", {"precision": 5, "scale": 2}, "numeric(5,2)"),
    ("numeric", {"precision": 3, "scale": 0}, "numeric(3,0)"),
    ("numeric", {"precision": 2, "scale": 2}, "numeric(2,2)"),
    ("numeric", {"precision": 38, "scale": 10}, "numeric(38,10)"),
    # What Arrow brings to these scales may be more than 128 bits.
    ("numeric", {"precision": 38, "scale": 20}, "numeric(38,20)"),
    ("numeric", {"precision": 38, "scale": 38}, "numeric(38,38)"),
    ("float4", {}, "float4"),
    ("float8", {}, "float8"),
]

#: Of digits: what a width holds, and one more.
_COUNTS = (1, 2, 3, 4, 5, 10, 19, 28, 29, 31, 32, 33)

#: For each kind a value that the quick way takes, and one that it leaves to the exact one.
USUAL: list[tuple[Kind, dict[str, Any], list[str], str]] = [
    ("uuid", {}, ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"], "a0eebc99"),
    ("int2", {}, ["-32768", "32767", "007"], "32768"),
    ("int4", {}, ["-2147483648", "2147483647", "0"], "2147483648"),
    ("int8", {}, ["1", "-9223372036854775808", "9223372036854775807"], "1e1"),
    ("numeric", {"precision": 12, "scale": 2}, ["1.5", "-9999999999.99", "+.50", "1.2300"], "1.234"),
    ("float4", {}, ["1.5", "-0", "99999999999999999999999999999999"], "1e5"),
    ("float8", {}, ["1.5", "-.1", "0.0000000000000000000000000001"], "Infinity"),
    ("other_number", {}, ["1.50", "-3", "+.5"], "1e5"),
    ("date", {}, ["1900-01-01", "2999-12-31", "2024-02-29"], "3000-01-01"),
    ("time", {}, ["00:00", "23:59:59.999999"], "24:00:00"),
    ("timestamp", {}, ["1900-01-01 00:00", "2999-12-31T23:59:59.999999"], "2026-11-23"),
    ("timestamptz", {}, ["2026-11-23T10:00:00Z", "2026-11-23 10:00-05", "2026-11-23 10:00+05:30"], "2026-11-23 10:00"),
    ("timestamptz", {}, ["2026-11-23T10:00:00.5-0930", "2026-11-23 10:00-09"], "2026-11-23 10:00+10"),
]  # fmt: skip


def reader(kind: Kind, facts: dict[str, Any]) -> Reader:
    return column_reader(PlanColumn(name="c", source="c", kind=kind, type=kind, **facts), encoding="UTF8")


def short_numbers() -> Iterator[str]:
    """All texts of a few signs, digits, points and spaces, and all of two bytes that are not beyond the digits."""
    for length in range(5):
        yield from map("".join, itertools.product("+-. 015", repeat=length))
    yield from map("".join, itertools.product(map(chr, range(1, ord("9") + 1)), repeat=2))
    for sign, digits, point in itertools.product(("", "-", "+"), _COUNTS, (-1, 0, *_COUNTS)):
        text = "9" * digits
        yield sign + (text if point < 0 else f"{text[:point]}.{text[point:]}")
        yield f"{sign}{'0' * digits}{'' if point < 0 else '.' + '0' * point}1"
    for limit in (2**15, 2**31, 2**63):
        yield from (f"{sign}{limit + off}" for sign in ("", "-", "00", "-00") for off in (-1, 0, 1))


def moments() -> Iterator[str]:
    """Dates, times and zones of many makes, good and bad, in all combinations."""
    dates = ("1899-12-31", "1900-01-01", "2026-02-29", "2026-11-23", "2999-12-31", "3000-01-01")
    hours = (
        "", "10", "1000", "10:00", "10:0", "10:00:00", "100000", "10:00:60", "24:00", "24:00:00", "23:59:59.999999",
        "10:00:00.", "10:00:00.1", "10:00:00.1234567", "10:00.5", "1:00", "10:60",
    )  # fmt: skip
    zones = (
        "", "Z", "z", " Z", "+00", "+0000", "+00:00", "+09:59", "-09:59", "-10", "+15:59", "-16:00", "+1600", "+16",
        "+23:59", "-00:60", "+5", "+05:00:00", "-05 ", "+-5", "-0",
    )  # fmt: skip
    yield from (day + end for day in (*dates, "2026-1-3", "20261123", "26-11-23") for end in ("", " ", "Z", "T", "-"))
    for parts in itertools.product(dates, ("T", " ", "t"), hours, zones):
        yield "".join(parts)


def hours() -> Iterator[str]:
    """What may stand after the date."""
    yield from {moment[11:] for moment in moments()}


def taken(read: Reader, values: Iterable[str]) -> dict[str, Any]:
    """The values that are not doubted, each in a column of its own, and what is made of it."""
    found = {}
    for value in values:
        typed = read(pa.array([value], pa.string()))
        if typed.doubtful is None:
            found[value] = None if typed.array is None else typed.array[0].as_py()
    return found


def compare(dsn: str, sql_type: str, found: dict[str, Any]) -> None:
    """Postgres takes all that was found, and makes the same of it."""

    async def ask() -> list[Any]:
        async with connected(dsn) as pool:
            return await pool.fetch(
                f"SELECT v, CASE WHEN pg_input_is_valid(v, '{sql_type}') THEN v::{sql_type} END AS stored"
                " FROM unnest($1::text[]) AS v",
                list(found),
            )

    rows = asyncio.run(ask())
    assert len(rows) == len(found) >= 3
    assert [row["v"] for row in rows if row["stored"] is None] == []
    assert [row["v"] for row in rows if found[row["v"]] is not None and not same(found[row["v"]], row["stored"])] == []


def same(got: Any, stored: Any) -> bool:
    """Whether two values are the same to the bit: the sign of a nought and the scale of a decimal too."""
    match stored:
        case float():
            return struct.pack("d", got) == struct.pack("d", stored)
        case Decimal():
            return str(got) == str(stored)
        case uuid.UUID():
            return bool(got == stored.bytes)
        case _:
            return bool(got == stored)


@pytest.mark.parametrize(("kind", "facts", "sql_type"), NUMBERS, ids=[each[2] for each in NUMBERS])
def test_all_short_numbers(empty_database: str, kind: Kind, facts: dict[str, int], sql_type: str) -> None:
    compare(empty_database, sql_type, taken(reader(kind, facts), short_numbers()))


def test_plain_numbers(empty_database: str) -> None:
    compare(empty_database, "numeric", taken(reader("other_number", {}), short_numbers()))


@pytest.mark.parametrize("kind", ["date", "timestamp", "timestamptz"])
def test_moments_of_every_make(empty_database: str, kind: Kind) -> None:
    compare(empty_database, kind, taken(reader(kind, {}), moments()))


def test_times_of_every_make(empty_database: str) -> None:
    compare(empty_database, "time", taken(reader("time", {}), hours()))


@pytest.mark.parametrize(("kind", "facts", "usual", "odd"), USUAL)
def test_the_usual_needs_no_pattern(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, facts: dict[str, Any], usual: list[str], odd: str
) -> None:
    exact: list[int] = []
    read = reader(kind, facts)
    for module, name in ((numbers, "matching"), (times, "matching"), (uuids, "_read_each")):
        monkeypatch.setattr(module, name, _noted(getattr(module, name), exact))
    with_nulls = [usual[0], None, *usual, None]
    typed = read(pa.array([odd, *with_nulls, odd], pa.string()).slice(1, len(with_nulls)))
    assert not exact
    assert typed.doubtful is None
    same_as_exact(read, typed, with_nulls, odd)
    assert exact


def _noted(function: Any, calls: list[int]) -> Any:
    def noted(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return noted


def same_as_exact(read: Reader, quick: Typed, values: list[str | None], odd: str) -> None:
    """The exact way, which one odd value brings about, makes the same of those values that it does not doubt."""
    exact = read(pa.array([*values, odd], pa.string()))
    if quick.array is None or exact.array is None:
        assert quick.array is exact.array
        return
    quick.array.validate(full=True)
    assert len(quick.array) == len(values)
    assert quick.array.is_null().to_pylist() == [value is None for value in values]
    for got, want in zip(quick.array.to_pylist(), exact.array.to_pylist()[:-1], strict=True):
        assert want is None or got == want


@pytest.mark.parametrize(("kind", "facts", "usual", "odd"), USUAL)
def test_bytes_beneath_a_null_are_nobodys(kind: Kind, facts: dict[str, Any], usual: list[str], odd: str) -> None:
    places, data = pa.array([usual[0], odd, usual[0]], pa.string()).buffers()[1:]
    assert places is not None
    assert data is not None
    valid = pa.py_buffer(np.packbits([True, False, True], bitorder="little").tobytes())
    typed = reader(kind, facts)(pa.StringArray.from_buffers(3, places, data, valid, 1))
    assert typed.doubtful is None
    assert typed.array == reader(kind, facts)(pa.array([usual[0], None, usual[0]], pa.string())).array


SUSPECT = re.compile(r"\\u0000|[eE][+-]?[0-9]{4}|[0-9]{100}")


@given(st.lists(st.text("eE+-09u\\", max_size=12)), st.integers(1, 20), st.integers(0, 3))
def test_suspects_in_documents_are_found_across_pieces(values: list[str], piece_bytes: int, offset: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_PIECE_BYTES", piece_bytes)
        suspects = documents._suspects(pa.array(["9" * 40, *values, None], pa.string()).slice(offset))
    expected = [False, *(SUSPECT.search(value) is not None for value in values), False]
    assert suspects.tolist() == expected[offset:]


@pytest.mark.parametrize("piece_bytes", [1, 64, 1000])
def test_long_runs_of_digits_are_found_wherever_they_lie(monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(documents, "_PIECE_BYTES", piece_bytes)
    values = [" " * before + "9" * run + " " * after for before in range(9) for run in (99, 100) for after in (0, 5)]
    suspects = documents._suspects(pa.array(values, pa.string()))
    assert suspects.tolist() == ["9" * 100 in value for value in values]
