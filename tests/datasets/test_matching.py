"""Names in files against a table's columns, where a dataset or the upload has a say."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from stream_api.datasets.catalogue import Column, Table
from stream_api.datasets.dataset import Dataset
from stream_api.datasets.plan import Plan, check_plan, make_plan
from stream_api.datasets.rules import ColumnRules
from stream_api.errors import Failure
from stream_api.options import Options

ORDERS = Table(
    oid=1,
    schema="sales",
    name="orders",
    columns=(
        Column("order_id", "integer", "int4", not_null=True),
        Column("state", "text", "text"),
        Column("amount", "numeric(12,2)", "numeric", precision=12, scale=2),
        Column("loaded_by", "uuid", "uuid"),
        Column("line", "bigint", "int8"),
        Column("doubled", "numeric", "numeric", has_default=True, generated=True),
    ),
)


def dataset(columns: dict[str, ColumnRules] | None = None, **values: Any) -> Dataset:
    return Dataset(name="orders", table="sales.orders", columns=columns or {}, **values)


def places(plan: Plan) -> dict[str, int | str | None]:
    """The columns that are filled, and from where."""
    return {c.name: c.constant or c.computed if c.position is None else c.position for c in plan.columns}


def refusal(of: Dataset, header: list[str], options: Options | None = None) -> Failure:
    with pytest.raises(Failure) as caught:
        make_plan(ORDERS, of, header, options=options or Options())
    return caught.value


def test_the_dataset_has_other_names_for_columns() -> None:
    of = dataset({"order_id": ColumnRules(source=("Order ID", "order no")), "state": ColumnRules(source="Status")})
    assert places(make_plan(ORDERS, of, ["Order ID", "status"])) == {"order_id": 0, "state": 1}
    assert places(make_plan(ORDERS, of, [" ORDER NO ", "STATE"])) == {"order_id": 0, "state": 1}
    failure = refusal(of, ["order nr", "Status"])
    assert failure.extra["missing"] == ["order_id"]
    assert failure.extra["nearest"] == {"order nr": ["order no", "Order ID", "order_id"]}
    assert refusal(of, ["Order ID", "order_id"]).extra["repeated"] == ["order_id"]


def test_what_the_dataset_calls_a_column_wins_over_the_columns_own_name() -> None:
    of = dataset({"order_id": ColumnRules(source="line")})
    assert places(make_plan(ORDERS, of, ["line", "state"])) == {"order_id": 0, "state": 1}


def test_columns_that_are_ignored_and_columns_that_nobody_knows() -> None:
    header = ["order_id", " Internal Note", "colour", ""]
    of = dataset(ignore=("internal note", ""))
    assert refusal(of, header).extra["unknown"] == ["colour"]
    of = dataset(ignore=("internal note",), unknown_columns="ignore")
    plan = make_plan(ORDERS, of, header)
    assert (places(plan), plan.fields) == ({"order_id": 0}, tuple(header))
    assert "it names no column" in refusal(dataset({"order_id": ColumnRules(default=1)}, ignore="x"), ["x"]).detail


def test_the_uploads_mapping_has_the_first_word() -> None:
    of = dataset({"order_id": ColumnRules(source="Order ID")}, ignore="note")
    mapping: dict[str, str | None] = {"note": "state", "Amount": None, "nr": "order_id"}
    options = Options(mapping=mapping)
    assert places(make_plan(ORDERS, of, ["Note", "amount", "nr"], options=options)) == {"state": 0, "order_id": 2}
    failure = refusal(of, ["a"], Options(mapping={"a": "nothing"}))
    assert (failure.code, failure.extra) == ("option_invalid", {"field": "mapping", "columns": ["nothing"]})
    # A mapping that is misspelled itself.
    failure = refusal(of, ["Number"], Options(mapping={"Nunber": "order_id"}))
    assert failure.extra["nearest"] == {"Number": ["Nunber"]}


def test_names_in_place_of_those_in_the_header() -> None:
    options = Options(columns=("order_id", "amount"))
    plan = make_plan(ORDERS, dataset(), ["Bestellung", "Betrag"], options=options)
    assert (places(plan), plan.fields, plan.header) == ({"order_id": 0, "amount": 1}, ("order_id", "amount"), True)
    failure = refusal(dataset(fields=("order_id",)), ["a", "b"])
    assert (failure.code, failure.detail) == (
        "header_mismatch",
        "The file's header has 2 columns, and 1 names are given in their place.",
    )


def test_files_without_a_header() -> None:
    plan = make_plan(ORDERS, dataset(), [], options=Options(header=False))
    assert plan.fields == ("order_id", "state", "amount", "loaded_by", "line")
    assert not plan.header
    of = dataset({"loaded_by": ColumnRules(constant="$uploadId"), "order_id": ColumnRules(source="line")}, header=False)
    assert make_plan(ORDERS, of, []).fields == ("order_id", "state", "amount", "line")
    of = dataset(header=False, fields=("state", "order_id"))
    assert places(make_plan(ORDERS, of, [])) == {"state": 0, "order_id": 1}
    assert places(make_plan(ORDERS, of, [], options=Options(columns=("order_id",)))) == {"order_id": 0}
    assert make_plan(ORDERS, of, ["state", "order_id"], options=Options(header=True)).header


def test_constants_and_places() -> None:
    of = dataset(
        {
            "loaded_by": ColumnRules(constant="$uploadId"),
            "line": ColumnRules(constant="$line"),
            "amount": ColumnRules(constant=12.5),
            "state": ColumnRules(constant="$$new"),
        }
    )
    plan = make_plan(ORDERS, of, ["order_id"], upload_id=UUID(int=7))
    assert places(plan) == {
        "order_id": 0,
        "state": "$new",
        "amount": "12.5",
        "loaded_by": "00000000-0000-0000-0000-000000000007",
        "line": "line",
    }
    assert Plan.decode(plan.encode()) == plan
    # The value is not the file's to give.
    failure = refusal(of, ["order_id", "line"])
    assert (failure.extra["unknown"], failure.extra["nearest"]) == (["line"], {})
    assert refusal(of, ["order_id"], Options(mapping={"x": "line"})).code == "option_invalid"


def test_a_default_fills_a_column_that_the_file_lacks_and_a_required_one_must_be_there() -> None:
    of = dataset({"order_id": ColumnRules(default=0), "state": ColumnRules(required=True)})
    assert places(make_plan(ORDERS, of, ["state"])) == {"state": 0, "order_id": "0"}
    assert refusal(of, ["order_id"]).extra["missing"] == ["state"]


def test_plans_without_rules_say_nothing_of_them() -> None:
    assert b"rules" not in make_plan(ORDERS, dataset(), ["order_id", "state"]).encode()
    plan = make_plan(ORDERS, dataset({"state": ColumnRules(case="upper")}, trim=True), ["order_id", "state"])
    assert plan.encode().count(b'"rules":{"trim":true') == 2


def test_rules_of_a_plan_stay_when_the_dataset_changes() -> None:
    of = dataset({"state": ColumnRules(case="upper"), "line": ColumnRules(constant="$line")})
    check_plan(make_plan(ORDERS, of, ["order_id", "state"]), ORDERS)


@pytest.mark.parametrize(
    ("column", "rules", "problem"),
    [
        ("colour", ColumnRules(), "columns.colour: the table has no such column"),
        ("doubled", ColumnRules(trim=True), "columns.doubled: the database computes it"),
        ("state", ColumnRules(min=1), "columns.state.min: values of type text have no order"),
        ("state", ColumnRules(formats="%Y"), "columns.state.formats: the column is no date, and of type text"),
        ("state", ColumnRules(decimal=","), "columns.state.decimal: the column is no number, and of type text"),
        ("amount", ColumnRules(max="2026-01-01"), "columns.amount.max: 2026-01-01 is no value of type numeric(12,2)"),
    ],
)
def test_rules_that_do_not_go_with_the_table(column: str, rules: ColumnRules, problem: str) -> None:
    failure = refusal(dataset({column: rules, "line": ColumnRules(day_first=True)}), ["order_id"])
    assert failure.code == "dataset_invalid"
    assert failure.extra["problems"][0].startswith(problem)
    assert failure.extra["problems"][1] == "columns.line.day_first: the column is no date, and of type bigint"
