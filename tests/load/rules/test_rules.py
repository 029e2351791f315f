"""Rules of columns against a real table: what is stored, and what is rejected with which code."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.datasets.catalogue import Column, Table, read_table
from stream_api.datasets.dataset import Dataset
from stream_api.datasets.plan import PlanColumn, make_plan
from stream_api.datasets.rules import ColumnRules
from stream_api.ledger.pool import Pool
from stream_api.load.columns.readers import column_reader
from stream_api.load.model import Encoded
from stream_api.load.rules.bounds import Range, outside
from tests.load.values import connected, load, make_rows, make_validator


async def load_with(pool: Pool, rules: dict[str, ColumnRules], records: Sequence[Sequence[str | None]]) -> Encoded:
    """Load records that have all columns of table `t` by these rules."""
    async with pool.acquire() as connection:
        table = await read_table(connection, "t")
        plan = make_plan(table, Dataset(name="t", table="t", columns=rules), [c.name for c in table.columns])
        encoded = await make_validator(plan, pool).validate(make_rows(plan, records))
        assert len(encoded.binary_lines) + len(encoded.csv_lines) + len(encoded.rejections) == encoded.read
        async with connection.transaction():
            assert await load(connection, plan, encoded) == len(encoded.binary_lines) + len(encoded.csv_lines)
    return encoded


def told(encoded: Encoded) -> list[tuple[int, str | None, str]]:
    return [(rejection.line - 2, rejection.column, rejection.code) for rejection in encoded.rejections]


async def test_each_rule_has_its_code_and_reason(empty_database: str) -> None:
    rules = {
        "n": ColumnRules(min=1, max=100),
        "state": ColumnRules(required=True, trim=True, case="lower", values=("new", "paid"), null="-"),
        "code": ColumnRules(pattern="[A-Z]{3}-[0-9]+"),
        "paid": ColumnRules(formats=("%d.%m.%Y", "epoch_s"), max="2026-12-31"),
        "amount": ColumnRules(decimal=",", thousands="."),
    }
    async with connected(empty_database) as pool:
        await pool.execute("CREATE TABLE t (n int, state text, code text, paid date, amount numeric(12,2))")
        encoded = await load_with(
            pool,
            rules,
            [
                ("1", " NEW ", "ABC-1", "3.2.2026", "1.234,50"),
                ("0", "new", None, None, None),
                ("101", "new", "x", None, None),
                ("2", "sold", None, None, None),
                ("3", " - ", None, None, None),
                ("4", "paid", "xABC-1", None, None),
                ("5", "paid", "ABC-1\n", None, None),
                ("6", "paid", None, "31.2.2026", "x"),
                ("7", "paid", None, "1.1.2027", None),
                ("8", "paid", None, None, "1.23"),
                ("100", "paid", None, "1769904000", "1,005"),
                ("nine", "x", "x", "x", "x"),
            ],
        )
        stored = [tuple(row) for row in await pool.fetch("SELECT n, state, code, paid::text, amount FROM t ORDER BY n")]
    assert told(encoded) == [
        (1, "n", "out_of_range"),
        (2, "n", "out_of_range"),
        (3, "state", "not_allowed"),
        (4, "state", "missing_value"),
        (5, "code", "pattern_mismatch"),
        (6, "code", "pattern_mismatch"),
        (7, "paid", "invalid_date"),
        (8, "paid", "out_of_range"),
        (9, "amount", "invalid_number"),
        (11, "n", "invalid_number"),
    ]
    reasons = [rejection.reason for rejection in encoded.rejections]
    assert reasons[:1] + reasons[2:5] + reasons[6:] == [
        "The value is out of range: min = 1 and max = 100",
        "The value is none of those allowed: new, paid",
        "The dataset requires a value here",
        "The value does not match the pattern [A-Z]{3}-[0-9]+",
        "The value fits none of the formats %d.%m.%Y, epoch_s",
        "The value is out of range: max = 2026-12-31",
        "The value is no number with decimal = ',' and thousands = '.'",
        'invalid input syntax for type integer: "nine"',
    ]
    assert stored == [
        (1, "new", "ABC-1", "2026-02-03", Decimal("1234.50")),
        (100, "paid", None, "2026-02-01", Decimal("1.01")),
    ]


async def test_the_type_speaks_before_the_rules_and_columns_in_their_order(empty_database: str) -> None:
    rules = {"a": ColumnRules(pattern="[0-9]"), "b": ColumnRules(values=("1",)), "c": ColumnRules(required=True)}
    async with connected(empty_database) as pool:
        await pool.execute("CREATE TABLE t (a int, b int NOT NULL, c text)")
        encoded = await load_with(
            pool, rules, [("x", "2", None), ("11", "x", None), (" 1", "1", "c"), ("1", None, None), ("1", "2", None)]
        )
    assert told(encoded) == [
        (0, "a", "invalid_number"),
        (1, "a", "pattern_mismatch"),
        (2, "a", "pattern_mismatch"),
        (3, "b", "missing_value"),
        (4, "b", "not_allowed"),
    ]


#: Type, min, max, and values with whether they are within; those that are odd only Postgres can read.
_RANGES: list[tuple[str, Any, Any, list[tuple[str, bool]]]] = [
    ("int", 2.5, 4, [("2", False), ("3", True), ("4", True), ("5", False), (" 2", False), ("+3", True)]),
    ("bigint", -(10**30), 10**30, [("9223372036854775807", True), ("-1", True)]),
    ("smallint", None, -70000, [("-32768", False), ("0", False)]),
    ("numeric(5,2)", 0, 100, [("0", True), ("-0.00", True), ("-0.01", False), ("100.00", True), ("100.004", True),
                             ("100.005", False), ("100.01", False), ("NaN", False), ("1e2", True), ("1e-1", True)]),
    ("numeric", "0.1", "1e30", [("0.1", True), ("0.09999999999999999999999", False), ("0.1000000000000000000001", True),
                                ("1" + "0" * 30, True), ("1" + "0" * 29 + "1", False), ("9" * 400, False),
                                ("NaN", False), ("1e-1", True), ("1e31", False)]),
    ("float8", 0.1, "1e10", [("0.1", True), ("0.09999999999999999", False), ("1e10", True), ("NaN", False),
                             ("Infinity", False), ("-Infinity", False)]),
    ("float4", 0.1, None, [("0.1", True), ("0.0999999", False), ("NaN", True)]),
    ("price", 1, 5, [("0.99", False), ("1", True), ("5.01", False)]),
    ("date", "2020-02-29", "2026-01-01", [("2020-02-28", False), ("2020-02-29", True), ("2026-01-01", True),
                                          ("2026-1-2", False), ("infinity", False), ("1800-01-01", False)]),
    ("timestamptz", "2026-01-01", "2026-01-01 12:00:00+02:00", [
        ("2025-12-31 23:59:59.999999Z", False), ("2026-01-01 00:00:00", True), ("2026-01-01T10:00:00Z", True),
        ("2026-01-01T10:00:00.000001Z", False), ("2026-01-01T11:00:00+01", True), ("Jan 1 2026 11:00 UTC", False)]),
    ("timestamp", "1500-01-01", "2026-01-01 10:00:00", [("1499-12-31", False), ("1500-01-01", True),
                                                        ("2026-01-01 10:00:00.000001", False)]),
    ("time", "08:00", "17:30:00.5", [("07:59:59", False), ("08:00", True), ("17:30:01", False), ("5:00 pm", True)]),
]  # fmt: skip


@pytest.mark.parametrize(("type_name", "least", "greatest", "values"), _RANGES)
async def test_ranges(
    empty_database: str, type_name: str, least: Any, greatest: Any, values: list[tuple[str, bool]]
) -> None:
    async with connected(empty_database) as pool:
        await pool.execute(f"CREATE DOMAIN price AS numeric(7,2); CREATE TABLE t (n int, v {type_name})")
        rules = {"v": ColumnRules(min=least, max=greatest)}
        records = [*[(str(n), value) for n, (value, _) in enumerate(values)], ("99", None)]
        encoded = await load_with(pool, rules, records)
        taken = {row["n"] for row in await pool.fetch("SELECT n FROM t")}
    assert taken == {n for n, (_, within) in enumerate(values) if within} | {99}
    assert {code for _, _, code in told(encoded)} <= {"out_of_range"}


def _column(type_name: str, base: str, least: Decimal, greatest: Decimal, **values: Any) -> PlanColumn:
    table = Table(1, "s", "t", (Column("v", type_name, base, **values),))
    rules = ColumnRules(min=str(least), max=str(greatest))
    return make_plan(table, Dataset(name="t", table="t", columns={"v": rules}), ["v"]).columns[0]


_PLAIN = st.decimals(-(10**9), 10**9, places=2)


@given(
    _PLAIN,
    _PLAIN,
    st.lists(st.none() | _PLAIN | st.sampled_from([Decimal("1.00"), Decimal(0)]), max_size=8),
    st.sampled_from(
        [("numeric(12,2)", "numeric", 12, 2), ("numeric", "numeric", None, None), ("bigint", "int8", None, None)]
    ),
)
def test_the_fast_path_of_ranges_is_exact(
    one: Decimal, other: Decimal, values: list[Decimal | None], of: tuple[str, str, int | None, int | None]
) -> None:
    least, greatest = sorted([one, other])
    column = _column(of[0], of[1], least, greatest, precision=of[2], scale=of[3])
    if of[1] == "int8":
        values = [None if value is None else value.to_integral_value() for value in values]
    values += [value.to_integral_value() if of[1] == "int8" else value for value in (least, greatest)]
    texts = pa.array([None if value is None else f"{value:f}" for value in values], pa.string())
    typed = column_reader(column, encoding="UTF8")(texts)
    wanted = Range.of(column)
    assert wanted is not None
    test = outside(column, wanted)
    assert test is not None
    assert test(texts, typed).tolist() == [value is not None and not least <= value <= greatest for value in values]


@given(st.lists(st.text("0123456789.-e", max_size=5), max_size=5))
def test_what_is_doubted_is_nobodys_to_compare_but_postgres(values: list[str]) -> None:
    column = _column("numeric", "numeric", Decimal(1), Decimal(5))
    texts = pa.array(values, pa.string())
    typed = column_reader(column, encoding="UTF8")(texts)
    wanted = Range.of(column)
    assert wanted is not None
    test = outside(column, wanted)
    assert test is not None
    for number, wrong in enumerate(test(texts, typed).tolist()):
        if wrong:
            try:
                assert not 1 <= Decimal(values[number]) <= 5
            except InvalidOperation:
                pytest.fail("what is no number was compared")
            assert typed.doubtful is None or not typed.doubtful[number]


async def test_postgres_stores_the_moments_that_python_reads(empty_database: str) -> None:
    random = Random(6)
    written = "%d.%m.%Y %H:%M:%S.%f %z"
    moments = [
        datetime.fromtimestamp(random.uniform(-6e10, 2.5e11), timezone(timedelta(minutes=random.randrange(-800, 800))))
        for _ in range(2000)
    ]
    rules = {name: ColumnRules(formats=("epoch_ms", written)) for name in ("zoned", "naive", "day")}
    records = []
    for moment in moments:
        text = f"{moment.day}.{moment.month:02}.{moment.year:04} {moment:%H:%M:%S.%f %z}"
        milliseconds = Decimal((moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)).scaleb(-3)
        records.append((text, f"{milliseconds:f}", text, f"{moment:%I/%M/%S%p}"))
    async with connected(empty_database) as pool:
        await pool.execute("CREATE TABLE t (zoned timestamptz, naive timestamp, day date, clock time)")
        encoded = await load_with(pool, rules | {"clock": ColumnRules(formats="%I/%M/%S%p")}, records)
        stored = await pool.fetch("SELECT * FROM t")
    assert not encoded.rejections
    in_utc = [moment.astimezone(UTC) for moment in moments]
    expected = {
        (utc, utc.replace(tzinfo=None), utc.date(), moment.time().replace(microsecond=0))
        for utc, moment in zip(in_utc, moments, strict=True)
    }
    assert {tuple(row) for row in stored} == expected


async def test_columns_of_every_kind_take_rules(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute("""
            CREATE TYPE mood AS ENUM ('sad', 'ok');
            CREATE DOMAIN birthday AS date CHECK (VALUE > '1900-01-01');
            CREATE TABLE t (m mood, b boolean, i int[], d birthday, j jsonb, u uuid, n numeric, r real)
        """)
        rules = {
            "m": ColumnRules(case="lower", trim=True),
            "b": ColumnRules(null="?", default=False),
            "i": ColumnRules(null=("none", "-")),
            "d": ColumnRules(formats="%d/%m/%Y", max="2026-01-01"),
            "j": ColumnRules(default="{}"),
            "u": ColumnRules(pattern="a0.*", trim=True),
            "n": ColumnRules(decimal=",", min=1),
            "r": ColumnRules(thousands=",", max=2000),
        }
        uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
        encoded = await load_with(
            pool,
            rules,
            [
                (" OK ", "?", "{1,2}", "1/2/1990", None, f" {uuid} ", "1,50", "1,000.5"),
                ("ok", "yes", "-", "1/2/1890", None, None, None, None),
                ("ok", "yes", "-", "2/1/2026", None, None, None, None),
                ("ok", "yes", "-", None, None, None, "NaN", "NaN"),
                ("ok", "yes", "-", None, None, None, "0,999", None),
            ],
        )
        stored = [tuple(row) for row in await pool.fetch("SELECT m::text, b, i, d, j, u::text, n::text, r FROM t")]
    assert stored == [("ok", False, [1, 2], date(1990, 2, 1), "{}", uuid, "1.50", 1000.5)]
    assert told(encoded) == [
        (1, "d", "invalid_value"),
        (2, "d", "out_of_range"),
        (3, "r", "out_of_range"),
        (4, "n", "out_of_range"),
    ]
