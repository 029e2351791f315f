"""Batches of rows against a real table: what is loaded, what is rejected, and with which code."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

import pytest

from stream_api.errors import Failure
from stream_api.load.flaws import Flaw
from stream_api.load.judge import Judge, Question, Refusal
from stream_api.load.model import Encoded
from stream_api.load.validator import Validator
from tests.load.values import (
    connected,
    load,
    make_rows,
    make_validator,
    needs_binary,
    plan_for,
    validate,
    validate_and_load,
)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_EVENTS = """
CREATE TABLE events (
    id uuid PRIMARY KEY, event_type text NOT NULL, source text NOT NULL, payload jsonb NOT NULL,
    occurred_at timestamptz NOT NULL, amount numeric(12,2), status text)
"""
_GOOD = ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "paid", "shop", '{"n": 1}', "2026-11-23T10:00:00Z", "12.50", "ok"]


def event(number: int, **changes: str | None) -> list[str | None]:
    """A good row of events, or one with some columns changed."""
    names = ["id", "event_type", "source", "payload", "occurred_at", "amount", "status"]
    row = dict(zip(names, _GOOD, strict=True)) | {"id": str(uuid.UUID(int=number))} | changes
    return [row[name] for name in names]


def told(encoded: Encoded) -> list[tuple[int, str | None, str]]:
    return [(rejection.line, rejection.column, rejection.code) for rejection in encoded.rejections]


class NobodyAsked(Judge):
    def __init__(self) -> None:
        pass

    async def ask(self, questions: Any) -> dict[Question, Refusal]:
        raise AssertionError(list(questions))


@needs_binary
async def test_a_clean_batch_asks_nobody_and_is_all_binary(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute(_EVENTS)
        async with pool.acquire() as connection:
            plan = await plan_for(connection, "events")
    calls: list[object] = []

    async def run(function: Callable[[*Ts], T], /, *args: *Ts) -> T:
        calls.append(function)
        return function(*args)

    rows = make_rows(plan, [event(n, amount=None, status="") for n in range(100)])
    encoded = await Validator(plan, NobodyAsked(), run).validate(rows)
    assert len(calls) == 1
    assert (encoded.csv, list(encoded.rejections), encoded.read) == (b"", [], 100)
    assert encoded.binary_lines.tolist() == list(range(2, 102))
    assert encoded.span == rows.batch.span


@needs_binary
async def test_good_bad_and_odd_rows_of_one_batch(empty_database: str) -> None:
    rows = [
        event(0),
        event(1, id="nope"),
        event(2, amount="1.235"),
        event(3, event_type=None),
        event(4, payload='{"a":'),
        event(5, occurred_at="2026-11-23 10:00:00.1234567"),
        event(6, amount="1e20"),
        event(7),
        event(8, occurred_at="2026-02-30T00:00:00Z", amount="x"),
        event(9, source="", status=None),
    ]
    async with connected(empty_database) as pool:
        await pool.execute(_EVENTS)
        encoded = await validate_and_load(pool, "events", rows)
        stored = await pool.fetch("SELECT * FROM events ORDER BY id")
    assert told(encoded) == [
        (3, "id", "invalid_uuid"),
        (5, "event_type", "missing_value"),
        (6, "payload", "invalid_json"),
        (8, "amount", "number_out_of_range"),
        (10, "occurred_at", "date_out_of_range"),
    ]
    assert [rejection.offset for rejection in encoded.rejections] == [200, 400, 500, 700, 900]
    assert next(iter(encoded.rejections)).reason == 'invalid input syntax for type uuid: "nope"'
    assert list(encoded.rejections)[1].reason == 'null value in column "event_type" violates not-null constraint'
    assert encoded.binary_lines.tolist() == [2, 9, 11]
    assert encoded.csv_lines.tolist() == [4, 7]
    assert [row["id"].int for row in stored] == [0, 2, 5, 7, 9]
    assert [str(row["amount"]) for row in stored] == ["12.50", "1.24", "12.50", "12.50", "12.50"]
    assert stored[2]["occurred_at"].isoformat() == "2026-11-23T10:00:00.123457+00:00"
    assert (stored[4]["source"], stored[4]["status"]) == ("", None)


@needs_binary
async def test_without_pgpq_all_rows_go_as_csv_and_are_the_same(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [event(n, amount=None if n % 3 else "1.235", status="", source='é "x"') for n in range(20)]
    async with connected(empty_database) as pool:
        await pool.execute(_EVENTS)
        binary = await validate_and_load(pool, "events", rows)
        by_binary = await pool.fetch("SELECT * FROM events ORDER BY id")
        await pool.execute("TRUNCATE events")
        monkeypatch.setattr("stream_api.load.encoder.BINARY", False)
        csv = await validate_and_load(pool, "events", rows)
        by_csv = await pool.fetch("SELECT * FROM events ORDER BY id")
    assert len(binary.binary_lines) == 13
    assert (csv.binary, csv.csv_lines.tolist()) == ((), list(range(2, 22)))
    assert by_csv == by_binary


async def test_a_row_is_blamed_on_its_first_bad_column_and_asked_about_no_further(empty_database: str) -> None:
    asked: list[Question] = []

    class Listening(Judge):
        async def ask(self, questions: Any) -> dict[Question, Refusal]:
            asked.extend(questions := list(questions))
            return await super().ask(questions)

    rows = [
        event(0, event_type=None, payload="{", amount="x"),
        event(1, id="x", event_type=None),
        event(2, id="{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", event_type=None),
        event(3, payload="{", amount="x"),
    ]
    async with connected(empty_database) as pool:
        await pool.execute(_EVENTS)
        async with pool.acquire() as connection:
            plan = await plan_for(connection, "events")
        encoded = await make_validator(plan, pool).validate(make_rows(plan, rows))
        assert told(encoded) == [
            (2, "event_type", "missing_value"),
            (3, "id", "invalid_uuid"),
            (4, "event_type", "missing_value"),
            (5, "payload", "invalid_json"),
        ]
        validator = make_validator(plan, pool)
        validator._judge = Listening(pool)
        await validator.validate(make_rows(plan, rows[:1]))
    assert asked == []


@needs_binary
async def test_rejections_of_the_parser_keep_their_place(empty_database: str) -> None:
    early, late = Flaw(None, "wrong_field_count", "…"), Flaw(None, "invalid_utf8", "…")
    async with connected(empty_database) as pool:
        await pool.execute(_EVENTS)
        async with pool.acquire() as connection:
            plan = await plan_for(connection, "events")
        rows = make_rows(plan, [event(0), event(1, amount="x")], {0: early, 3: late})
        encoded = await make_validator(plan, pool).validate(rows)
    assert told(encoded) == [(2, None, "wrong_field_count"), (4, "amount", "invalid_number"), (5, None, "invalid_utf8")]
    assert [rejection.offset for rejection in encoded.rejections] == [100, 300, 400]
    assert encoded.read == 4 == len(encoded.binary_lines) + len(encoded.rejections)
    assert [rejection.offset for rejection in rows.rejections(rows.flaws)] == [100, 400]


async def test_batches_without_good_rows_or_without_rows(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute(_EVENTS)
        encoded = await validate(pool, "events", [])
        assert (encoded.binary, encoded.csv, list(encoded.rejections), encoded.size_bytes) == ((), b"", [], 0)
        encoded = await validate(pool, "events", [event(n, id="x") for n in range(3)])
        assert (encoded.binary, encoded.csv, len(encoded.rejections)) == ((), b"", 3)
        encoded = await validate_and_load(pool, "events", [event(0, amount="1e1")])
        assert (encoded.binary, encoded.csv_lines.tolist()) == ((), [2])


#: FACTS.md, "Arrow's casts are not Postgres' idea of a value": value, and what Postgres stores, `None` if nothing.
_FACTS: dict[str, list[tuple[str, str | None]]] = {
    "numeric(12,2)": [
        ("1.234", "1.23"),
        ("1.235", "1.24"),
        (" 5", "5.00"),
        ("NaN", "NaN"),
        ("0x10", "16.00"),
        ("1_000", "1000.00"),
    ],
    "timestamptz": [
        ("2026-11-23 10:00:00", "2026-11-23 10:00:00+00"),
        ("2026-11-23", "2026-11-23 00:00:00+00"),
        ("2026-11-23t10:00:00z", "2026-11-23 10:00:00+00"),
        ("2026-11-23T10:00:00.1234567Z", "2026-11-23 10:00:00.123457+00"),
        ("2026-11-23T10:00:00.123456789Z", "2026-11-23 10:00:00.123457+00"),
        ("2026-11-23T24:00:00Z", "2026-11-24 00:00:00+00"),
        ("2026-11-23T10:00:60Z", "2026-11-23 10:01:00+00"),
        ("infinity", "infinity"),
        ("2026-11-23T10Z", None),
        ("2026-11-23T10:00:00+23:59", None),
    ],
    "integer": [("+1", "1"), (" 1", "1")],
    "boolean": [("t", "true"), ("f", "false"), ("yes", "true"), ("on", "true")],
    "date": [("2026-1-3", "2026-01-03"), ("20261123", "2026-11-23")],
    "uuid": [
        (form, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
        for form in (
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        )
    ],
}


@pytest.mark.parametrize("type_name", _FACTS)
async def test_what_arrow_and_postgres_see_differently(empty_database: str, type_name: str) -> None:
    values = _FACTS[type_name]
    async with connected(empty_database) as pool:
        await pool.execute(f"CREATE TABLE t (n int, v {type_name})")
        encoded = await validate_and_load(pool, "t", [(str(n), value) for n, (value, _) in enumerate(values)])
        stored = {row["n"]: row["v"] for row in await pool.fetch("SELECT n, v::text FROM t")}
    assert [stored.get(n) for n in range(len(values))] == [expected for _, expected in values]
    assert {rejection.line - 2 for rejection in encoded.rejections} == {
        n for n, (_, expected) in enumerate(values) if expected is None
    }


_CODES = [
    ("uuid", "x", "invalid_uuid"),
    ("smallint", "x", "invalid_number"),
    ("smallint", "32768", "number_out_of_range"),
    ("bigint", "9" * 30, "number_out_of_range"),
    ("numeric(12,2)", "x", "invalid_number"),
    ("numeric(12,2)", "10000000000", "number_out_of_range"),
    ("numeric", "1e999999", "number_out_of_range"),
    ("real", "1e99", "number_out_of_range"),
    ("double precision", "1,5", "invalid_number"),
    ("money", "x", "invalid_number"),
    ("date", "x", "invalid_date"),
    ("date", "2026-02-30", "date_out_of_range"),
    ("time", "25:00", "date_out_of_range"),
    ("timestamp", "yesterdayish", "invalid_date"),
    ("timestamptz", "2026-13-01", "date_out_of_range"),
    ("boolean", "2", "invalid_boolean"),
    ("json", "{", "invalid_json"),
    ("jsonb", r'"\u0000"', "invalid_json"),
    ("jsonb", "1e200000", "invalid_json"),
    ("varchar(3)", "abcd", "too_long"),
    ("char(3)", "abcd", "too_long"),
    ("bit(3)", "1", "invalid_value"),
    ("mood", "happy", "invalid_value"),
    ("bytea", "\\x1", "invalid_value"),
    ("integer[]", "{x}", "invalid_value"),
    ("inet", "1.2.3", "invalid_value"),
    ("interval", "x", "invalid_value"),
    ("price", "x", "invalid_number"),
    ("price", "99999999", "number_out_of_range"),
    ("price", "-1", "invalid_value"),
    ("price", None, "missing_value"),
    ("checked", None, "invalid_value"),
]
_TYPES = """
CREATE TYPE mood AS ENUM ('sad');
CREATE DOMAIN price AS numeric(7,2) NOT NULL CHECK (VALUE > 0);
CREATE DOMAIN checked AS text CHECK (VALUE IS NOT NULL);
"""


@pytest.mark.parametrize(("type_name", "value", "code"), _CODES)
async def test_codes(empty_database: str, type_name: str, value: str | None, code: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute(f"{_TYPES} CREATE TABLE t (n int, v {type_name})")
        encoded = await validate(pool, "t", [("1", value)])
    assert told(encoded) == [(2, "v", code)]
    assert next(iter(encoded.rejections)).reason


async def test_a_table_of_types_without_a_binary_form_goes_by_csv(empty_database: str) -> None:
    records: Sequence[Sequence[str | None]] = [
        ("1", "{1,NULL}", "1.50", "2 days 00:00:05", "10.0.0.0/8", "\\x00ff", ""),
        ("2", None, None, None, None, None, None),
        ("3", "{x}", "1", "1 s", "::1", "a", "a"),
        ("4", "{}", "1.500", "-1 mon", "::1", "a", "\\."),
    ]
    async with connected(empty_database) as pool:
        await pool.execute("CREATE TABLE t (n int, a int[], b numeric, c interval, d inet, e bytea, f text)")
        encoded = await validate_and_load(pool, "t", records)
        stored = await pool.fetch("SELECT n::text, a::text, b::text, c::text, d::text, e::text, f FROM t ORDER BY n")
    assert (encoded.binary, encoded.csv_lines.tolist()) == ((), [2, 3, 5])
    assert told(encoded) == [(4, "a", "invalid_value")]
    assert [tuple(row) for row in stored] == [
        ("1", "{1,NULL}", "1.50", "2 days 00:00:05", "10.0.0.0/8", "\\x00ff", ""),
        ("2", None, None, None, None, None, None),
        ("4", "{}", "1.500", "-1 mons", "::1/128", "\\x61", "\\."),
    ]


async def test_empty_null_defaults_identity_and_generated(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute("""
            CREATE TABLE t (
                i bigint GENERATED ALWAYS AS IDENTITY, name text NOT NULL DEFAULT 'x', note text DEFAULT 'y',
                made date NOT NULL DEFAULT '2026-11-23', twice bigint GENERATED ALWAYS AS (i * 2) STORED)
        """)
        async with pool.acquire() as connection:
            plan = await plan_for(connection, "t", ["NOTE", "i", "name"])
            encoded = await make_validator(plan, pool).validate(
                make_rows(plan, [("", "7", ""), (None, "8", "b"), ("c", None, "c"), ("d", "9", None)])
            )
            # COPY takes a given identity even where it is GENERATED ALWAYS.
            assert await load(connection, plan, encoded) == 2
        stored = await pool.fetch("SELECT i, name, note, made::text, twice FROM t ORDER BY i")
    assert told(encoded) == [(4, "i", "missing_value"), (5, "name", "missing_value")]
    assert [tuple(row) for row in stored] == [(7, "", "", "2026-11-23", 14), (8, "b", None, "2026-11-23", 16)]


async def test_a_trigger_may_fill_what_is_missing(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute("""
            CREATE TABLE t (n int, name text NOT NULL);
            CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN new.name := coalesce(new.name, ''filled''); RETURN new; END';
            CREATE TRIGGER fill BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION fill();
        """)
        encoded = await validate_and_load(pool, "t", [("1", None)])
        assert list(encoded.rejections) == []
        assert await pool.fetchval("SELECT name FROM t") == "filled"


async def test_a_database_that_lacks_characters(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute("CREATE DATABASE latin1 TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'")
    try:
        async with connected(empty_database.rsplit("/", 1)[0] + "/latin1") as pool:
            await pool.execute("CREATE TABLE t (n int, v text, j jsonb)")
            encoded = await validate_and_load(
                pool, "t", [("1", "é", "1"), ("2", "€", "1"), ("3", "e", r'"\u00e9"'), ("4", "e", r'"\u20ac"')]
            )
            assert told(encoded) == [(3, "v", "invalid_value"), (5, "j", "invalid_json")]
            assert await pool.fetchval("SELECT string_agg(v || j, ' ' ORDER BY n) FROM t") == 'é1 e"é"'
    finally:
        async with connected(empty_database) as pool:
            await pool.execute("DROP DATABASE latin1 WITH (FORCE)")


@needs_binary
async def test_an_outage_while_asking_fails_the_batch_and_loses_nothing(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute(_EVENTS)
        async with pool.acquire() as connection:
            plan = await plan_for(connection, "events")
    rows = make_rows(plan, [event(0, amount="1.235"), event(1)])
    away = empty_database.rsplit("/", 1)[0] + "/no_such_database"
    async with connected(away) as pool:
        with pytest.raises(Failure):
            await make_validator(plan, pool).validate(rows)
    async with connected(empty_database) as pool:
        encoded = await make_validator(plan, pool).validate(rows)
    assert (encoded.binary_lines.tolist(), encoded.csv_lines.tolist()) == ([3], [2])


@needs_binary
async def test_a_large_batch_with_many_odd_rows(empty_database: str) -> None:
    odd = {n: event(n, amount="1.235") for n in range(0, 5000, 7)}
    bad = {n: event(n, id="x" * (n % 50)) for n in range(0, 5000, 11)}
    rows = [bad.get(n) or odd.get(n) or event(n) for n in range(5000)]
    async with connected(empty_database) as pool:
        await pool.execute(_EVENTS)
        encoded = await validate_and_load(pool, "events", rows)
        assert len(encoded.rejections) == len(bad)
        assert len(encoded.csv_lines) == len(odd.keys() - bad.keys())
        assert await pool.fetchval("SELECT count(*) FROM events") == 5000 - len(bad)
        assert await pool.fetchval("SELECT count(*) FROM events WHERE amount = 1.24") == len(encoded.csv_lines)
