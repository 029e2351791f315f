"""How one upload is loaded: the file's columns set against the table's. Fixed when the upload is first taken."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from stream_api.datasets.catalogue import Column, Table, quote_identifier
from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: What a column's values are read as. Those up to `other_number` have an exact binary form in COPY; the rest does not.
BinaryKind = Literal[
    "uuid", "int2", "int4", "int8", "numeric", "float4", "float8", "bool",
    "date", "time", "timestamp", "timestamptz", "text", "enum", "json", "jsonb",
]  # fmt: skip
Kind = BinaryKind | Literal["other_number", "other"]

#: The code of a rejection for a value that Postgres refuses, where its SQLSTATE does not say it better.
ValueCode = Literal[
    "invalid_uuid", "invalid_number", "invalid_date", "invalid_boolean", "invalid_json", "invalid_value"
]

_BINARY: Final = frozenset(get_args(BinaryKind))
_KINDS: Final = _BINARY | {"other_number"}
_TEXTS: Final = frozenset({"text", "varchar", "bpchar"})
#: Digits of Arrow's decimal128.
_DECIMAL_DIGITS: Final = 38

_CODES: Final[dict[str, ValueCode]] = {
    "uuid": "invalid_uuid",
    "bool": "invalid_boolean",
    **dict.fromkeys(("json", "jsonb", "jsonpath"), "invalid_json"),
    **dict.fromkeys(("int2", "int4", "int8", "numeric", "float4", "float8", "money", "oid"), "invalid_number"),
    **dict.fromkeys(("date", "time", "timetz", "timestamp", "timestamptz"), "invalid_date"),
}

#: Names that one message shows, and characters of each: a header may be a megabyte of nonsense.
_SHOWN_NAMES: Final = 50
_SHOWN_CHARACTERS: Final = 80


class PlanColumn(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A column of the table, and where its values come from.

    :param name: the table's column.
    :param source: what a rejection names: the column as the file's header has it; without one, the table's.
    :param position: number of the file's column, from 0; `None` where the value is `constant` or `computed`.
    :param constant: the same value for every row, as text; `None` is NULL.
    :param computed: what of the row's place is the value: the line on which its record begins, or its segment.
    :param kind: what the values are read as.
    :param type: the column's type for SQL, with its modifier: `numeric(12,2)`.
    :param code: of a rejection, see `ValueCode`.
    :param required: a row without a value is rejected. Not set where a trigger may still fill a NOT NULL column.
    :param judge_null: the domain may refuse NULL: only Postgres knows.
    :param length: most characters. :param precision: digits. :param scale: fraction digits. :param labels: of an enum.
    """

    name: str
    source: str
    kind: Kind
    type: str
    code: ValueCode = "invalid_value"
    required: bool = False
    judge_null: bool = False
    length: int | None = None
    precision: int | None = None
    scale: int | None = None
    labels: tuple[str, ...] = ()
    position: int | None = None
    constant: str | None = None
    computed: Literal["line", "segment"] | None = None


class Plan(msgspec.Struct, frozen=True, rename="camel"):
    """Everything that a worker needs to know about an upload's table and columns.

    :param dataset: name of the dataset.
    :param table_schema: and `table_name`: the table's name, in its two parts, unquoted (asyncpg quotes them itself).
    :param fields: the columns of the file, as its header names them.
    :param columns: those of the table that are filled.
    :param copy_format: `binary` when every column has an exact binary form.
    :param encoding: of the database; other than UTF8 it may be unable to store a character.
    :param dialect: of the file.
    :param max_record_bytes: where a record is cut off depends on it, so it stays what it was; `None` in plans of old.
    """

    dataset: str
    table_schema: str
    table_name: str
    fields: tuple[str, ...]
    columns: tuple[PlanColumn, ...]
    copy_format: Literal["binary", "csv"]
    encoding: str = "UTF8"
    dialect: Dialect = Dialect()
    max_record_bytes: int | None = None
    version: Literal[1] = 1

    @property
    def table(self) -> str:
        """The qualified name of the table, quoted for SQL."""
        return f"{quote_identifier(self.table_schema)}.{quote_identifier(self.table_name)}"

    @property
    def column_names(self) -> tuple[str, ...]:
        """The table's columns that are filled, unquoted."""
        return tuple(column.name for column in self.columns)

    def encode(self) -> bytes:
        """As JSON, for the upload's row."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """From JSON.

        :raises msgspec.ValidationError: not a plan, or one of a later version.
        """
        return msgspec.json.decode(data, type=cls)


_PLAIN: Final = Dialect()
#: What may separate the fields of a file.
_DELIMITERS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_CHANGE_BACK: Final = "Change it back and retry; or take out what was loaded and upload the file again."


def make_plan(
    table: Table,
    dataset: str,
    header: Sequence[str],
    *,
    dialect: Dialect = _PLAIN,
    max_record_bytes: int | None = None,
) -> Plan:
    """Set the file's header against the table.

    A name matches a column exactly once surrounding white space is trimmed, else without regard to case if that
    finds a single column. Columns that the file lacks get their default or NULL.

    :raises Failure: `header_mismatch`, with all names at fault in `missing`, `unknown`, `repeated` and `generated`,
        and `nearest`: for an unknown name the columns that look like it.
    """
    found = _match(table, header)
    unknown = [name for name, column in zip(header, found, strict=True) if column is None]
    times = Counter(column.name for column in found if column is not None)
    repeated = [name for name, count in times.items() if count > 1]
    generated = [c.name for c in table.columns if c.name in times and c.generated]
    missing = [c.name for c in table.columns if c.name not in times and _must_be_given(c, table)]
    if unknown or repeated or generated or missing or not times:
        raise _mismatch(
            table,
            header,
            delimiter=dialect.delimiter,
            missing=missing,
            unknown=unknown,
            repeated=repeated,
            generated=generated,
        )
    columns = tuple(
        _plan_column(column, source, table, position)
        for position, (source, column) in enumerate(zip(header, found, strict=True))
        if column is not None
    )
    return Plan(
        dataset=dataset,
        table_schema=table.schema,
        table_name=table.name,
        fields=tuple(header),
        columns=columns,
        copy_format="binary" if all(column.kind in _BINARY for column in columns) else "csv",
        encoding=table.encoding,
        dialect=dialect,
        max_record_bytes=max_record_bytes,
    )


def check_plan(plan: Plan, table: Table) -> None:
    """Check that a plan made earlier still fits the table as it is now.

    A column added since is no matter if it may stay out of the file, nor is a label added to an enum (a value that
    the plan does not know is asked of Postgres).

    :raises Failure: `table_changed`, naming what changed.
    """
    try:
        now = make_plan(table, plan.dataset, plan.fields)
    except Failure as exc:
        msg = f"Table {table.sql_name} has changed since this load began. {exc.detail} {_CHANGE_BACK}"
        raise Failure("table_changed", msg, **exc.extra) from exc
    changed = [
        f"{old.name} ({old.type} before, {new.type} now)" if old.type != new.type else old.name
        for old, new in zip(plan.columns, now.columns, strict=True)
        # What a row must have stays as it was when the load began: Postgres watches over what the table wants now.
        if msgspec.structs.replace(_relabelled(old, new), required=new.required) != new
    ]
    if changed or (plan.table, plan.encoding) != (now.table, now.encoding):
        what = f": {_listed(changed)}" if changed else ""
        msg = f"Table {plan.table} has changed since this load began{what}. {_CHANGE_BACK}"
        raise Failure("table_changed", msg, changed=changed)


def _relabelled(old: PlanColumn, new: PlanColumn) -> PlanColumn:
    """The old column with the new one's labels, if none has gone."""
    if old.labels != new.labels and set(old.labels) <= set(new.labels):
        return msgspec.structs.replace(old, labels=new.labels)
    return old


def _match(table: Table, header: Sequence[str]) -> list[Column | None]:
    exact = {column.name: column for column in table.columns}
    folded: dict[str, Column | None] = {}
    for column in table.columns:
        key = column.name.casefold()
        folded[key] = None if key in folded else column
    trimmed = [name.strip() for name in header]
    return [exact.get(name) or folded.get(name.casefold()) for name in trimmed]


def _must_be_given(column: Column, table: Table) -> bool:
    return column.not_null and not (column.has_default or column.generated or table.before_insert)


def _plan_column(column: Column, source: str, table: Table, position: int) -> PlanColumn:
    return PlanColumn(
        name=column.name,
        source=source,
        kind=_kind(column),
        type=column.type,
        code="invalid_value" if column.array else _CODES.get(column.base or "", "invalid_value"),
        # Postgres asks a trigger before it looks at NOT NULL, so where there is one only Postgres can tell.
        required=column.not_null and not table.before_insert,
        judge_null=column.domain,
        length=column.length,
        precision=column.precision,
        scale=column.scale,
        labels=column.labels,
        position=position,
    )


def _kind(column: Column) -> Kind:
    kind: str | None = column.base
    if column.domain or column.array:
        kind = None
    elif column.enum:
        kind = "enum"
    elif kind in _TEXTS:
        kind = "text"
    elif kind == "numeric" and column.precision is None:
        kind = "other_number"
    elif kind == "numeric" and not _is_decimal(column):
        kind = None
    return msgspec.convert(kind, Kind) if kind in _KINDS else "other"


def _is_decimal(column: Column) -> bool:
    """Whether Arrow's decimal128 holds the column's values."""
    if column.precision is None or column.scale is None:
        return False
    return 0 <= column.scale <= column.precision <= _DECIMAL_DIGITS


def _mismatch(
    table: Table,
    header: Sequence[str],
    *,
    delimiter: str,
    missing: list[str],
    unknown: list[str],
    repeated: list[str],
    generated: list[str],
) -> Failure:
    nearest = {_shorten(name): close for name in unknown[:_SHOWN_NAMES] if (close := _nearest(table, name))}
    parts = []
    if missing:
        parts.append(f"missing: {_listed(missing)}")
    if unknown:
        parts.append(f"unknown: {_listed(_with_hint(name, nearest) for name in unknown)}")
    if repeated:
        parts.append(f"given more than once: {_listed(repeated)}")
    if generated:
        parts.append(f"computed by the database, so they cannot be loaded: {_listed(generated)}")
    if not parts:
        parts.append("it names no column")
    detail = f"The file's header does not fit table {table.sql_name}: {'; '.join(parts)}."
    if len(header) == 1 and (other := next((found for found in _DELIMITERS if found in header[0]), None)):
        taken = _DELIMITERS.get(delimiter, repr(delimiter))
        detail += f" Fields were taken to be separated by {taken}, and the header has {_DELIMITERS[other]}."
    extra: dict[str, Any] = {
        "missing": _bounded(missing),
        "unknown": _bounded(unknown),
        "repeated": _bounded(repeated),
        "generated": _bounded(generated),
        "nearest": nearest,
    }
    return Failure("header_mismatch", detail, **extra)


def _nearest(table: Table, name: str) -> list[str]:
    columns = {column.name.casefold(): column.name for column in table.columns if not column.generated}
    close = difflib.get_close_matches(_shorten(name).strip().casefold(), columns, n=3)
    return [columns[match] for match in close]


def _with_hint(name: str, nearest: dict[str, list[str]]) -> str:
    shown = _shorten(name)
    close = nearest.get(shown)
    return f"{shown or '(empty)'} (did you mean {' or '.join(close)}?)" if close else shown or "(empty)"


def _shorten(name: str) -> str:
    return name if len(name) <= _SHOWN_CHARACTERS else name[: _SHOWN_CHARACTERS - 1] + "…"


def _bounded(names: list[str]) -> list[str]:
    return [_shorten(name) for name in names[:_SHOWN_NAMES]]


def _listed(names: Iterable[str]) -> str:
    all_names = list(names)
    more = len(all_names) - _SHOWN_NAMES
    shown = ", ".join(all_names[:_SHOWN_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown
