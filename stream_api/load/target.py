"""What of the target table matters to whoever puts rows into it by INSERT, looked at in the transaction of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from stream_api.datasets.catalogue import SHAPE, read_shape
from stream_api.datasets.plan import Plan
from stream_api.errors import Failure
from stream_api.ledger.literals import Sql, literal
from stream_api.ledger.pool import Connection

# `key_name` and `key`: of the only index that can refuse a row, where an INSERT into the table does nothing but insert,
# the index compares plain columns, and it is of the table itself (a partition's has another name).
# `only_keys`: nothing can refuse a row that is there already under its key, in this form or another, but that key; no
# trigger sees it, and no expression is computed of it; and keys that are equal are the same to the byte, which is what
# an index can rest on when it puts duplicates together (support function 4: not so of numeric, citext or interval).
# NOT NULL (contype n, since 18) is looked after by the plan.
_LOOK: Final = """
WITH tree AS (SELECT to_regclass($1)::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree(to_regclass($1)))
SELECT EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid AND ev_type = '3') AS has_rules,
       EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND conrelid = c.oid AND confrelid = c.oid)
           AS refers_to_itself,
       EXISTS (SELECT FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM tree) AND tgenabled <> 'D'
                AND tgtype & 3 = 3 AND tgtype & 20 > 0) AS before_row,
       NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid IN (SELECT oid FROM tree) AND contype IN ('c', 'f', 'x'))
           AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM tree) AND NOT tgisinternal
                            AND tgtype & 1 = 1)
           AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attgenerated <> '')
           AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid IN (SELECT oid FROM tree)
                            AND (indexprs IS NOT NULL OR indpred IS NOT NULL OR indisexclusion
                                 OR indnullsnotdistinct))
           AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid IN (SELECT oid FROM tree) AND indisunique
                            GROUP BY indrelid HAVING count(*) > 1)
           AND NOT EXISTS (
               SELECT FROM pg_index AS i CROSS JOIN generate_series(0, indnkeyatts - 1) AS k
                      LEFT JOIN pg_attribute AS a ON a.attrelid = indrelid AND a.attnum = indkey[k]
                      LEFT JOIN pg_opclass AS o ON o.oid = indclass[k]
                      LEFT JOIN pg_collation AS n ON n.oid = indcollation[k]
                WHERE indrelid IN (SELECT oid FROM tree) AND indisunique
                  AND (indcollation[k] <> attcollation OR NOT coalesce(collisdeterministic, true)
                       OR NOT EXISTS (SELECT FROM pg_amproc WHERE amprocfamily = opcfamily
                                         AND amproclefttype = opcintype AND amprocnum = 4))) AS only_keys,
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attidentity = 'a') AS unsettable,
       ARRAY(SELECT ARRAY[attname::text, format('%I.%I', nspname, collname)]
               FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = atttypid AND typcollation <> attcollation
               JOIN pg_collation AS o ON o.oid = attcollation JOIN pg_namespace AS s ON s.oid = collnamespace
              WHERE attrelid = c.oid AND attnum > 0) AS collations,
       key.name AS key_name, key.columns AS key
  FROM pg_class AS c
  LEFT JOIN LATERAL (
       SELECT min(index.relname::text) AS name, min(i.plain) AS columns
         FROM (SELECT indexrelid,
                      CASE WHEN indisunique AND NOT indisexclusion AND indimmediate AND indexprs IS NULL
                                AND NOT indnullsnotdistinct
                           THEN (SELECT array_agg(ARRAY[attname::text, quote_ident(attname)] ORDER BY place)
                                   FROM unnest(indkey[0:indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
                                   JOIN pg_attribute AS a ON a.attrelid = indrelid AND a.attnum = k.attnum) END AS plain
                 FROM pg_index WHERE indrelid = c.oid AND (indisunique OR indisexclusion)) AS i
         JOIN pg_class AS index ON index.oid = i.indexrelid
       HAVING count(*) = 1) AS key
    ON c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgtype & 7 = 7)
 WHERE c.oid = to_regclass($1)
"""


class CannotSift(Exception):
    """The rows at fault cannot be told from the others here; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Target:
    """What matters of the target table.

    :param refers_to_itself: by a foreign key.
    :param before_row: triggers run for each row before it goes in or is changed, and may drop it.
    :param only_keys: of several rows of one key the last is all that anybody can tell afterwards.
    :param unsettable: columns that an UPDATE may not set.
    :param collations: for SQL, of the columns that have another one than their type.
    :param key: columns of the only key that can refuse a row, each as it is and as Postgres quotes it in its messages;
        empty where it is not as simple.
    """

    refers_to_itself: bool
    before_row: bool
    only_keys: bool
    unsettable: frozenset[str]
    collations: Mapping[str, str]
    key_name: str | None
    key: Mapping[str, str]


async def look_at(connection: Connection, plan: Plan) -> Target:
    """Look at the plan's table.

    :raises CannotSift: it is gone, or an INSERT into it does what a COPY would not.
    """
    found = await connection.fetchrow(_LOOK, plan.table)
    if found is None:
        msg = "The table is no longer there."
        raise CannotSift(msg)
    if found["has_rules"]:
        msg = "The table has rules on INSERT, which COPY passes over; so its rows cannot be tried one by one."
        raise CannotSift(msg)
    key = dict(found["key"] or ())
    return Target(
        refers_to_itself=found["refers_to_itself"],
        before_row=found["before_row"],
        only_keys=found["only_keys"],
        unsettable=frozenset(found["unsettable"]),
        collations=dict(found["collations"]),
        key_name=found["key_name"],
        key=key if key.keys() <= set(plan.column_names) else {},
    )


def has_shape(plan: Plan, shape: str | None) -> Sql:
    """A condition in SQL: see `check_shape`."""
    found = SHAPE.format(table=literal(plan.table))
    return Sql(f"({found}) IS NOT DISTINCT FROM {literal(shape)}")


async def check_shape(connection: Connection, plan: Plan, shape: str | None) -> None:
    """Check that the plan's table is still the one that the plan was set against, when the attempt began.

    Whoever asks after rows went in, in their transaction, has it for certain: their lock keeps the table as it is.

    :param shape: of then.
    :raises Failure: `database_unavailable`: the next attempt looks at the table anew, and it is for that to say whether
        the plan still fits it.
    """
    if await read_shape(connection, plan.table) != shape:
        raise Failure("database_unavailable", f"{plan.table} has just changed. It is looked at anew.")
