"""A dataset's rules set against the types of a table's columns: what comes of them stands in the plan."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Final

from stream_api.datasets.catalogue import Column, Table
from stream_api.datasets.dataset import Dataset
from stream_api.datasets.formats import day_first_formats, unfit
from stream_api.datasets.rules import NO_RULES, ColumnRules, Rules, Scalar, as_text, names
from stream_api.errors import Failure

_INTEGERS: Final = frozenset({"int2", "int4", "int8"})
NUMBERS: Final = _INTEGERS | {"numeric", "float4", "float8"}
TIMES: Final = frozenset({"date", "time", "timestamp", "timestamptz"})

_NOTHING_SAID: Final = ColumnRules()


def settle(dataset: Dataset, table: Table) -> dict[str, Rules]:
    """The rules of the table's columns, by their names; those without any are left out.

    :raises Failure: `dataset_invalid`, naming all rules that do not go with the table.
    """
    columns = {column.name: column for column in table.columns}
    problems: list[str] = []
    for name, said in dataset.columns.items():
        if name not in columns:
            problems.append(f"columns.{name}: the table has no such column")
        elif columns[name].generated:
            problems.append(f"columns.{name}: the database computes it")
        else:
            problems += [f"columns.{name}.{problem}" for problem in _problems(said, columns[name])]
    if problems:
        detail = f"Rules of dataset {dataset.name} do not go with table {table.sql_name}: {'; '.join(problems)}."
        raise Failure("dataset_invalid", detail, problems=problems)
    settled = {
        name: _settled(dataset, dataset.columns.get(name, _NOTHING_SAID), column) for name, column in columns.items()
    }
    return {name: rules for name, rules in settled.items() if rules != NO_RULES}


def bound(value: Scalar) -> Decimal | date | datetime | time:
    """What `min` or `max` is: a number, a date, a point in time (in UTC without a zone) or a time of day.

    :raises ValueError: none of them.
    """
    text = as_text(value)
    try:
        number = Decimal(text)
    except InvalidOperation:
        pass
    else:
        if number.is_finite() and not isinstance(value, bool):
            return number
    for read in (date.fromisoformat, time.fromisoformat, datetime.fromisoformat):
        try:
            found = read(text)
        except ValueError:
            continue
        return found.replace(tzinfo=found.tzinfo or UTC) if isinstance(found, datetime) else found
    msg = f"{text!r} is neither a number nor a date or time as 2026-01-31, 2026-01-31 10:00:00 or 10:00:00"
    raise ValueError(msg)


def _problems(said: ColumnRules, column: Column) -> Iterator[str]:
    base = None if column.array else column.base
    if said.formats or said.day_first:
        key = "formats" if said.formats else "day_first"
        if base not in TIMES or (base == "time" and said.day_first):
            yield f"{key}: the column is no date, and of type {column.type}"
        else:
            yield from (f"formats: {text}: {why}" for text in names(said.formats) if (why := unfit(text, base)))
    if (said.decimal != "." or said.thousands) and base not in NUMBERS:
        yield f"{'thousands' if said.thousands else 'decimal'}: the column is no number, and of type {column.type}"
    for key, value in (("min", said.min), ("max", said.max)):
        if value is not None and (why := _unfit_bound(value, base, column)):
            yield f"{key}: {why}"


def _unfit_bound(value: Scalar, base: str | None, column: Column) -> str | None:
    if base not in NUMBERS | TIMES:
        return f"values of type {column.type} have no order that a file could be held to; only numbers, dates and times"
    found = bound(value)
    if base in NUMBERS:
        fits = isinstance(found, Decimal)
    elif base == "time":
        fits = isinstance(found, time) and found.tzinfo is None
    elif base == "date":
        fits = isinstance(found, date) and not isinstance(found, datetime)
    else:
        fits = isinstance(found, date)
    return None if fits else f"{as_text(value)} is no value of type {column.type}"


def _settled(dataset: Dataset, said: ColumnRules, column: Column) -> Rules:
    base = column.base or ""
    needs_base = said.formats or said.day_first or said.min is not None or said.max is not None
    return Rules(
        base=base if needs_base else None,
        required=said.required,
        default=None if said.default is None else as_text(said.default),
        trim=dataset.trim if said.trim is None else said.trim,
        case=said.case,
        null=names(dataset.null if said.null is None else said.null),
        formats=day_first_formats(base) if said.day_first else names(said.formats),
        decimal=said.decimal,
        thousands=said.thousands,
        values=None if said.values is None else tuple(map(as_text, said.values)),
        min=None if said.min is None else _bound_text(said.min, base),
        max=None if said.max is None else _bound_text(said.max, base),
        pattern=said.pattern,
    )


def _bound_text(value: Scalar, base: str) -> str:
    """A bound in the form that both PostgreSQL and the fast paths read."""
    found = bound(value)
    if isinstance(found, Decimal):
        return f"{found:f}"
    if base not in {"timestamp", "timestamptz"}:
        return found.isoformat()
    moment = found if isinstance(found, datetime) else datetime.fromisoformat(f"{found.isoformat()}T00:00:00+00:00")
    moment = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{moment.isoformat()}Z" if base == "timestamptz" else moment.isoformat()
