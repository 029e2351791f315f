"""The header against the table, and the plan that comes of it."""

from __future__ import annotations

import string
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.datasets.catalogue import Column, Table
from stream_api.datasets.dataset import Dataset
from stream_api.datasets.plan import Plan, check_plan, make_plan
from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure

EVENTS = Table(
    oid=16384,
    schema="public",
    name="events",
    columns=(
        Column("id", "uuid", "uuid", not_null=True),
        Column("kind", "text", "text", not_null=True),
        Column("amount", "numeric(12,2)", "numeric", precision=12, scale=2),
        Column("created_at", "timestamp with time zone", "timestamptz", not_null=True, has_default=True),
        Column("doubled", "numeric", "numeric", has_default=True, generated=True),
        Column("mood", "public.mood", None, enum=True, labels=("sad", "ok")),
    ),
)


DATASET = Dataset(name="events", table="events")


def mismatch(table: Table, header: list[str]) -> Failure:
    with pytest.raises(Failure) as caught:
        make_plan(table, DATASET, header)
    assert caught.value.code == "header_mismatch"
    return caught.value


def changed(plan: Plan, table: Table) -> Failure:
    with pytest.raises(Failure) as caught:
        check_plan(plan, table)
    assert caught.value.code == "plan_changed"
    return caught.value


def with_column(name: str, **values: object) -> Table:
    """The table with a column changed."""
    columns = tuple(replace(c, **values) if c.name == name else c for c in EVENTS.columns)  # type: ignore[arg-type]
    return replace(EVENTS, columns=columns)


def test_columns_stand_in_the_files_order() -> None:
    plan = make_plan(EVENTS, DATASET, ["mood", "kind", "id"])
    assert plan.column_names == ("mood", "kind", "id")
    assert [(c.kind, c.required, c.code) for c in plan.columns] == [
        ("enum", False, "invalid_value"),
        ("text", True, "invalid_value"),
        ("uuid", True, "invalid_uuid"),
    ]
    assert (plan.table, plan.copy_format, plan.dataset) == ('"public"."events"', "binary", "events")


def test_names_match_after_trimming_and_then_without_regard_to_case() -> None:
    plan = make_plan(EVENTS, DATASET, [" id\t", "KIND", "Created_At"])
    assert plan.column_names == ("id", "kind", "created_at")
    assert [column.source for column in plan.columns] == [" id\t", "KIND", "Created_At"]


def test_an_exact_name_wins_and_an_ambiguous_one_is_unknown() -> None:
    table = Table(1, "s", "t", (Column("a", "text", "text"), Column("A", "text", "text"), Column("b", "text", "text")))
    assert make_plan(table, DATASET, ["A", "a"]).column_names == ("A", "a")
    ambiguous = replace(table, columns=(Column("ab", "text", "text"), Column("AB", "text", "text")))
    assert mismatch(ambiguous, ["Ab"]).extra["unknown"] == ["Ab"]


def test_a_misfit_names_everything_at_once() -> None:
    failure = mismatch(EVENTS, ["knd", "amount", "Amount", "doubled", "colour", "", "amount"])
    assert failure.extra == {
        "missing": ["id", "kind"],
        "unknown": ["knd", "colour", ""],
        "repeated": ["amount"],
        "generated": ["doubled"],
        "nearest": {"knd": ["kind"]},
    }
    assert failure.detail == (
        'The file\'s header does not fit table "public"."events": missing: id, kind; unknown: knd (did you mean '
        "kind?), colour, (empty); given more than once: amount; "
        "computed by the database, so they cannot be loaded: doubled."
    )
    assert failure.status == 422


def test_an_empty_header_fits_nothing_even_if_all_may_be_missing() -> None:
    table = replace(EVENTS, columns=(Column("a", "text", "text"),))
    assert "names no column" in mismatch(table, []).detail


def test_a_header_of_nonsense_gives_a_short_answer() -> None:
    failure = mismatch(EVENTS, ["x" * 1_000_000, *["k"] * 100_000, *["Id"] * 100_000])
    assert len(failure.detail) < 10_000
    assert len(msgspec.json.encode(failure.extra)) < 20_000


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (Column("c", "numeric", "numeric"), "other_number"),
        (Column("c", "numeric(38,38)", "numeric", precision=38, scale=38), "numeric"),
        (Column("c", "numeric(39,2)", "numeric", precision=39, scale=2), "other"),
        (Column("c", "numeric(3,-2)", "numeric", precision=3, scale=-2), "other"),
        (Column("c", "numeric(2,4)", "numeric", precision=2, scale=4), "other"),
        (Column("c", "character(3)", "bpchar", length=3), "text"),
        (Column("c", "integer[]", "_int4", array=True), "other"),
        (Column("c", "public.positive", "int4", domain=True), "other"),
        (Column("c", "inet", "inet"), "other"),
        (Column("c", "public.hstore", None), "other"),
    ],
)
def test_kinds(column: Column, kind: str) -> None:
    plan = make_plan(Table(1, "s", "t", (column,)), DATASET, ["c"])
    assert plan.columns[0].kind == kind
    assert plan.copy_format == ("binary" if kind in ("numeric", "text") else "csv")
    assert plan.columns[0].judge_null == column.domain


def test_with_triggers_before_insert_only_postgres_knows_what_is_missing() -> None:
    plan = make_plan(replace(EVENTS, before_insert=True), DATASET, ["amount"])
    assert not any(column.required for column in plan.columns)


@given(
    st.lists(st.text(string.printable, min_size=1), min_size=1, unique_by=lambda name: name.strip().casefold()),
    st.sampled_from([",", ";", "\t"]),
)
def test_a_plan_survives_being_stored(names: list[str], delimiter: str) -> None:
    columns = tuple(Column(name.strip(), "text", "text", length=len(name)) for name in names)
    plan = make_plan(Table(1, 'a"b', 'c"d', columns), DATASET, names, dialect=Dialect(delimiter=delimiter))
    assert Plan.decode(plan.encode()) == plan
    assert plan.table == '"a""b"."c""d"'
    check_plan(plan, Table(2, 'a"b', 'c"d', columns))


def test_a_plan_of_a_later_version_is_refused() -> None:
    data = make_plan(EVENTS, DATASET, ["id", "kind"]).encode().replace(b'"version":1', b'"version":2')
    with pytest.raises(msgspec.ValidationError):
        Plan.decode(data)


def test_what_may_change_in_the_table() -> None:
    plan = make_plan(EVENTS, DATASET, ["id", "kind", "mood"])
    check_plan(plan, replace(EVENTS, oid=2, columns=(*EVENTS.columns, Column("new", "text", "text"))))
    check_plan(plan, with_column("mood", labels=("sad", "so so", "ok")))
    check_plan(plan, with_column("kind", not_null=False))
    check_plan(plan, with_column("amount", type="numeric(20,2)", precision=20))


def test_what_may_not_change_in_the_table() -> None:
    plan = make_plan(EVENTS, DATASET, ["id", "kind", "mood", "amount"])
    wider = with_column("amount", type="numeric(20,2)", precision=20)
    failure = changed(plan, wider)
    assert failure.extra == {"changed": ["amount (numeric(12,2) before, numeric(20,2) now)"]}
    assert "numeric(20,2)" in failure.detail
    assert changed(plan, with_column("mood", labels=("sad",))).extra == {"changed": ["mood"]}
    gone = replace(EVENTS, columns=EVENTS.columns[1:])
    assert changed(plan, gone).extra["unknown"] == ["id"]
    more = replace(EVENTS, columns=(*EVENTS.columns, Column("new", "text", "text", not_null=True)))
    assert changed(plan, more).extra["missing"] == ["new"]
    assert changed(plan, replace(EVENTS, name="other")).extra == {"changed": []}
