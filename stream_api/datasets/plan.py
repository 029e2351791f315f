"""How one upload is loaded: the file's columns set against the table's. Fixed when the upload is first taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args
from uuid import UUID

import msgspec

from stream_api.datasets.catalogue import Column, Table, quote_identifier
from stream_api.datasets.dataset import Dataset
from stream_api.datasets.deciding import check_key, decide
from stream_api.datasets.matching import listed, match_header, mismatch, must_be_given
from stream_api.datasets.rules import NO_RULES, Rules, as_text
from stream_api.datasets.settling import settle
from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure
from stream_api.options import Conflict, Mode, Options

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What a column's values are read as. Those up to `other_number` have an exact binary form in COPY; the rest does not.
BinaryKind = Literal[
    "uuid", "int2", "int4", "int8", "numeric", "float4", "float8", "bool",
    "date", "time", "timestamp", "timestamptz", "text", "enum", "json", "jsonb",
]  # fmt: skip
Kind = BinaryKind | Literal["other_number", "other"]

#: What of a row's place can be a value.
Computed = Literal["line", "segment"]

#: The code of a rejection for a value that Postgres refuses, where its SQLSTATE does not say it better.
ValueCode = Literal[
    "invalid_uuid", "invalid_number", "invalid_date", "invalid_boolean", "invalid_json", "invalid_value"
]

#: What a value weighs beside its text, and the longest date with its zone.
_ADDED_VALUE_BYTES: Final = 28
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


class PlanColumn(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A column of the table, and where its values come from.

    :param name: the table's column.
    :param source: what a rejection names: the column as the file's header has it; without one, the table's.
    :param position: number of the file's column, from 0; `None` where the value is `constant` or `computed`.
    :param constant: the same value for every row, as text; `None` is NULL.
    :param computed: what of the row's place is the value: the line on which its record begins, or its segment.
    :param rules: what the dataset does to the values first, and asks of them.
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
    computed: Computed | None = None
    rules: Rules | None = None


class Plan(msgspec.Struct, frozen=True, rename="camel"):
    """Everything that a worker needs to know about an upload's table and columns.

    :param dataset: name of the dataset.
    :param table_schema: and `table_name`: the table's name, in its two parts, unquoted (asyncpg quotes them itself).
    :param fields: the columns of the file, as its header names them, or what is said in its place.
    :param columns: those of the table that are filled.
    :param copy_format: `binary` when every column has an exact binary form.
    :param encoding: of the database; other than UTF8 it may be unable to store a character.
    :param dialect: of the file.
    :param header: the first record is no row.
    :param max_record_bytes: where a record is cut off depends on it, so it stays what it was; `None` in plans of old.
    :param mode, conflict, key, dry_run: as decided, see `Options`; `key` is empty where `conflict` is `error`.
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
    header: bool = True
    mode: Mode = "append"
    conflict: Conflict = "error"
    key: tuple[str, ...] = ()
    dry_run: bool = False
    version: Literal[1] = 1

    @property
    def table(self) -> str:
        """The qualified name of the table, quoted for SQL."""
        return f"{quote_identifier(self.table_schema)}.{quote_identifier(self.table_name)}"

    @property
    def staged(self) -> bool:
        """Whether all rows are collected first, and go into the table together."""
        return self.mode != "append" or self.dry_run

    @property
    def column_names(self) -> tuple[str, ...]:
        """The table's columns that are filled, unquoted."""
        return tuple(column.name for column in self.columns)

    @property
    def added_bytes(self) -> int:
        """What rows may gain beside what the file has for them: constants, defaults, dates in PostgreSQL's form."""
        added = 0
        for column in self.columns:
            rules = column.rules or NO_RULES
            if column.position is None:
                added += len((column.constant or "").encode()) + _ADDED_VALUE_BYTES
            else:
                added += len((rules.default or "").encode()) + (_ADDED_VALUE_BYTES if rules.formats else 0)
        return added

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
_NOTHING_ASKED: Final = Options()
#: Stands in plans that are made to be looked at, before there is an upload.
_NO_UPLOAD: Final = UUID(int=0)
_CHANGE_BACK: Final = "Change it back and retry; or take out what was loaded and upload the file again."


def make_plan(
    table: Table,
    dataset: Dataset,
    header: Sequence[str],
    *,
    options: Options = _NOTHING_ASKED,
    dialect: Dialect = _PLAIN,
    max_record_bytes: int | None = None,
    upload_id: UUID = _NO_UPLOAD,
) -> Plan:
    """Set the file's header against the table, by the rules of the dataset and by what the upload asks.

    Columns that the file lacks get the dataset's constant or default, else the table's default or NULL.

    To check a header before there is an upload, leave its id out.

    :param header: the names in the file's first record; of no meaning where that is no header.
    :param options: win over the dataset.
    :param upload_id: what the constant `$uploadId` stands for.
    :raises Failure: `header_mismatch` and `option_invalid`, see `match_header`; `dataset_invalid`, see `settle`;
        `conflict_key_invalid`, see `decide`.
    """
    rules = settle(dataset, table)
    matched = match_header(table, dataset, header, options, delimiter=dialect.delimiter)
    filled = [
        _plan_column(column, table, source=source, position=position, rules=rules.get(column.name))
        for position, (source, column) in enumerate(zip(matched.fields, matched.columns, strict=True))
        if column is not None
    ]
    there = {column.name for column in filled}
    filled += [
        _plan_column(column, table, source=column.name, **given)
        for column in table.columns
        if column.name not in there and (given := _given(dataset, column.name, rules.get(column.name), upload_id))
    ]
    return Plan(
        dataset=dataset.name,
        table_schema=table.schema,
        table_name=table.name,
        fields=matched.fields,
        columns=tuple(filled),
        copy_format="binary" if all(column.kind in _BINARY for column in filled) else "csv",
        encoding=table.encoding,
        dialect=dialect,
        max_record_bytes=max_record_bytes,
        header=dataset.has_header(options),
        **decide(table, dataset, options, [column.name for column in filled]),
    )


def check_plan(plan: Plan, table: Table) -> None:
    """Check that a plan made earlier still fits the table as it is now, whatever has become of its dataset.

    A column added since is no matter if it may stay out of the file, nor is a label added to an enum (a value that
    the plan does not know is asked of Postgres).

    :raises Failure: `plan_changed`, naming what changed; `conflict_key_invalid`.
    """
    columns = {column.name: column for column in table.columns}
    unknown = [old.source for old in plan.columns if old.name not in columns]
    generated = [old.name for old in plan.columns if old.name in columns and columns[old.name].generated]
    missing = [c.name for c in table.columns if c.name not in plan.column_names and must_be_given(c, table)]
    if unknown or generated or missing:
        found = mismatch(
            table,
            known=columns,
            header=plan.fields,
            delimiter=plan.dialect.delimiter,
            missing=missing,
            unknown=unknown,
            repeated=[],
            generated=generated,
        )
        msg = f"Table {table.sql_name} has changed since this load began. {found.detail} {_CHANGE_BACK}"
        raise Failure("plan_changed", msg, **found.extra)
    now = [_as_now(old, columns[old.name], table) for old in plan.columns]
    changed = [
        f"{old.name} ({old.type} before, {new.type} now)" if old.type != new.type else old.name
        for old, new in zip(plan.columns, now, strict=True)
        # What a row must have stays as it was when the load began: Postgres watches over what the table wants now.
        if msgspec.structs.replace(_relabelled(old, new), required=new.required) != new
    ]
    if changed or (plan.table, plan.encoding) != (table.sql_name, table.encoding):
        what = f": {listed(changed)}" if changed else ""
        msg = f"Table {plan.table} has changed since this load began{what}. {_CHANGE_BACK}"
        raise Failure("plan_changed", msg, changed=changed)
    check_key(table, plan.conflict, plan.key, plan.column_names)


def _as_now(old: PlanColumn, column: Column, table: Table) -> PlanColumn:
    return _plan_column(
        column,
        table,
        source=old.source,
        position=old.position,
        constant=old.constant,
        computed=old.computed,
        rules=old.rules,
    )


def _given(dataset: Dataset, column: str, rules: Rules | None, upload_id: UUID) -> dict[str, Any]:
    """The value that every row gets in a column that the file lacks, if the dataset says one."""
    said = dataset.columns.get(column)
    if said is not None and said.constant is not None:
        text = as_text(said.constant)
        match text:
            case "$line" | "$segment":
                return {"computed": text.removeprefix("$")}
            case "$uploadId":
                return {"constant": str(upload_id)}
            case _:
                return {"constant": text.removeprefix("$") if text.startswith("$$") else text}
    if rules is not None and rules.default is not None:
        return {"constant": rules.default, "rules": rules}
    return {}


def _relabelled(old: PlanColumn, new: PlanColumn) -> PlanColumn:
    """The old column with the new one's labels, if none has gone."""
    if old.labels != new.labels and set(old.labels) <= set(new.labels):
        return msgspec.structs.replace(old, labels=new.labels)
    return old


def _plan_column(
    column: Column,
    table: Table,
    *,
    source: str,
    position: int | None = None,
    constant: str | None = None,
    computed: Computed | None = None,
    rules: Rules | None = None,
) -> PlanColumn:
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
        constant=constant,
        computed=computed,
        rules=rules,
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
