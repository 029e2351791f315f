"""What Postgres' catalogue says about a table: its columns, their types, and what may stay out of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from stream_api.datasets.dataset import BUILT_IN
from stream_api.errors import Failure

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[Any] | PoolConnectionProxy[Any]

#: `pg_class.relkind` of what COPY FROM can fill by itself: table, partitioned table, foreign table.
_FILLABLE: Final = frozenset({"r", "p", "f"})
#: Bytes that a varlena length modifier counts beside the length itself (VARHDRSZ).
_MODIFIER_OFFSET: Final = 4
_NAMED_IN: Final = "as `table` of the dataset, or by STREAM_API_TARGET_TABLE for the built-in one"

_FIND: Final = """
SELECT c.oid, c.relkind::text AS kind, c.relname AS name, n.nspname AS schema,
       pg_catalog.current_setting('server_encoding') AS encoding
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = pg_catalog.to_regclass($1)
"""

# format_type() leaves the schema out of names that the search path finds: with only pg_catalog in the path a type's
# name means the same in every session that reads it.
_NARROW_PATH: Final = "SELECT pg_catalog.set_config('search_path', 'pg_catalog', true)"

# A BEFORE trigger of a partition runs after its row was routed there and still ahead of NOT NULL.
_TRIGGERS: Final = """
SELECT coalesce(bool_or(tgtype & 7 = 7), false) AS before_insert,  -- 1 FOR EACH ROW, 2 BEFORE, 4 INSERT
       coalesce(bool_or(tgtype & 4 = 4 AND (tgdeferrable OR NOT tgisinternal)), false) AS may_defer
  FROM pg_trigger
 WHERE (tgrelid = $1 OR tgrelid IN (SELECT relid FROM pg_partition_tree($1))) AND tgenabled IN ('O', 'A')
"""

# What ON CONFLICT can speak of; the primary key comes first. A constraint without overlaps is an exclusion.
_KEYS: Final = """
SELECT i.indisprimary AS is_primary,
       (SELECT array_agg(attname::text ORDER BY place)
          FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum) AS columns
  FROM pg_index i
 WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND NOT i.indisexclusion
   AND i.indpred IS NULL AND i.indexprs IS NULL
 ORDER BY i.indisprimary DESC, i.indexrelid
"""

_COLUMNS: Final = """
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.atttypmod AS modifier,
       t.typtype::text AS type_kind,
       t.typcategory = 'A' AS is_array,
       base.name AS base,
       a.attnotnull OR base.not_null AS not_null,
       a.atthasdef OR t.typdefault IS NOT NULL AS has_default,
       a.attidentity <> '' AS identity,
       a.attgenerated <> '' AS generated,
       ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder) AS labels
  FROM pg_attribute a
  JOIN pg_type t ON t.oid = a.atttypid
 CROSS JOIN LATERAL (
       WITH RECURSIVE chain AS (
           SELECT t.oid, t.typname, t.typnamespace, t.typtype, t.typbasetype, t.typnotnull
            UNION ALL
           SELECT b.oid, b.typname, b.typnamespace, b.typtype, b.typbasetype, b.typnotnull
             FROM chain JOIN pg_type b ON b.oid = chain.typbasetype
            WHERE chain.typtype = 'd')
       SELECT max(typname::text) FILTER (WHERE typtype <> 'd' AND typnamespace = 'pg_catalog'::regnamespace) AS name,
              bool_or(typnotnull) AS not_null
         FROM chain) base
 WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""

#: Everything of its columns that a plan rests on, and which table it is; `{table}` is where its name stands.
SHAPE: Final = """
SELECT md5(string_agg(concat_ws(' ', attrelid, attnum, quote_ident(attname), atttypid, atttypmod, attcollation,
                                attnotnull, atthasdef, attidentity, attgenerated), ';' ORDER BY attnum))
  FROM pg_catalog.pg_attribute
 WHERE attrelid = pg_catalog.to_regclass({table}) AND attnum > 0 AND NOT attisdropped
"""
_SHAPE: Final = SHAPE.format(table="$1")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    :param type: as Postgres writes it, with its modifier, qualified unless built in: `numeric(12,2)`, `public.mood`.
    :param base: name of the built-in type (`numeric`), under all domains; `None` when it is not built in.
    :param domain: the type is a domain.
    :param enum: the type is an enum; `labels` are its labels.
    :param array: the type is an array, or a domain over one.
    :param not_null: NULL is refused, by the column or by its domain.
    :param has_default: a column that the file lacks gets a value other than NULL (identity counts).
    :param generated: the database computes it; COPY refuses the column.
    :param length: characters, of varchar(n) and char(n).
    :param precision: digits, of numeric(p,s). :param scale: fraction digits, of numeric(p,s); may be negative.
    """

    name: str
    type: str
    base: str | None
    not_null: bool = False
    has_default: bool = False
    generated: bool = False
    domain: bool = False
    enum: bool = False
    array: bool = False
    length: int | None = None
    precision: int | None = None
    scale: int | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the catalogue shows it.

    :param before_insert: row triggers run before an INSERT; they may fill what is NOT NULL.
    :param may_defer: rows that went in may still be refused at the COMMIT: by a deferrable constraint or by a trigger.
    :param encoding: of the database, such as `UTF8`.
    :param primary_key: its columns, if there is one that is not deferrable.
    :param unique_keys: the columns of each plain unique index, that of the primary key included.
    :param shape: see `read_shape`.
    """

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    before_insert: bool = False
    may_defer: bool = False
    encoding: str = "UTF8"
    primary_key: tuple[str, ...] = ()
    unique_keys: tuple[tuple[str, ...], ...] = ()
    shape: str | None = None

    @property
    def sql_name(self) -> str:
        """The qualified name, quoted for use in SQL."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"


def quote_identifier(name: str) -> str:
    """Quote a name for use in SQL."""
    return '"' + name.replace('"', '""') + '"'


async def read_table(conn: Connection, table: str) -> Table:
    """Read a table's columns from the catalogue, in a transaction of its own.

    :param table: the name as SQL writes it: `events`, `audit.events`, `"Weird name"`.
    :raises Failure: `table_missing`. Errors of the connection pass through untranslated.
    """
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        try:
            found = await conn.fetchrow(_FIND, table)
        except (asyncpg.PostgresSyntaxError, asyncpg.FeatureNotSupportedError) as exc:
            msg = f"{table} is not the name of a table: {exc}"
            raise Failure("table_missing", msg, table=table) from exc
        if found is None:
            create = "create it (`stream-api migrate` does)" if table == BUILT_IN else "create it"
            msg = f"There is no table {table} in the database: {create}, or name another one, {_NAMED_IN}. Then retry."
            raise Failure("table_missing", msg, table=table)
        if found["kind"] not in _FILLABLE:
            msg = (
                f"{table} is not a table: rows can be copied into tables, partitioned tables and foreign tables. "
                f"Name one {_NAMED_IN}, and retry."
            )
            raise Failure("table_missing", msg, table=table)
        await conn.fetchval(_NARROW_PATH)
        (triggers,) = await conn.fetch(_TRIGGERS, found["oid"])
        columns = await conn.fetch(_COLUMNS, found["oid"])
        keys = await conn.fetch(_KEYS, found["oid"])
        shape = await conn.fetchval(_SHAPE, f"{quote_identifier(found['schema'])}.{quote_identifier(found['name'])}")
    return Table(
        oid=found["oid"],
        schema=found["schema"],
        name=found["name"],
        columns=tuple(_column(row) for row in columns),
        before_insert=triggers["before_insert"],
        may_defer=triggers["may_defer"],
        encoding=found["encoding"],
        primary_key=next((tuple(key["columns"]) for key in keys if key["is_primary"]), ()),
        unique_keys=tuple(tuple(key["columns"]) for key in keys),
        shape=shape,
    )


async def read_shape(conn: Connection, table: str) -> str | None:
    """What changes with the columns of a table, or when another has its name; `None` where there is none.

    :param table: as SQL names it.
    """
    shape: str | None = await conn.fetchval(_SHAPE, table)
    return shape


def _column(row: Any) -> Column:
    base: str | None = row["base"]
    domain: bool = row["type_kind"] == "d"
    length = precision = scale = None
    if row["modifier"] >= 0 and not domain:
        modifier = row["modifier"] - _MODIFIER_OFFSET
        if base in ("varchar", "bpchar"):
            length = modifier
        elif base == "numeric":
            # Postgres' make_numeric_typmod(): precision in the upper half, scale as 11 bits with a sign.
            precision = (modifier >> 16) & 0xFFFF
            scale = ((modifier & 0x7FF) ^ 1024) - 1024
    return Column(
        name=row["name"],
        type=row["type"],
        base=base,
        not_null=row["not_null"],
        has_default=row["has_default"] or row["identity"],
        generated=row["generated"],
        domain=domain,
        enum=row["type_kind"] == "e",
        array=row["is_array"],
        length=length,
        precision=precision,
        scale=scale,
        labels=tuple(row["labels"]),
    )
