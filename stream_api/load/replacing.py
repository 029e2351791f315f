"""Emptying the target for a load that becomes its whole content, within the transaction that fills it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import asyncpg

from stream_api.datasets.plan import Plan
from stream_api.errors import Failure
from stream_api.ledger.pool import Connection

# Of tables that are not the target or a part of it: what they would do when its rows go.
_REFERRING: Final = """
WITH tree AS (SELECT to_regclass($1)::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree(to_regclass($1)))
SELECT DISTINCT conrelid::regclass::text AS name FROM pg_constraint
WHERE contype = 'f' AND confrelid IN (SELECT oid FROM tree) AND conrelid NOT IN (SELECT oid FROM tree)
  AND confdeltype IN ('c', 'n', 'd')
ORDER BY 1 LIMIT 10
"""
_KEEPS_ROWS: Final = """
WITH tree AS (SELECT to_regclass($1)::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree(to_regclass($1)))
SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM tree) AND tgenabled <> 'D'
                AND tgtype & 11 = 11)  -- 1 FOR EACH ROW, 2 BEFORE, 8 DELETE
    OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class IN (SELECT oid FROM tree) AND ev_type = '4')
"""
_DEFERRABLE: Final = """
WITH tree AS (SELECT to_regclass($1)::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree(to_regclass($1)))
SELECT string_agg(DISTINCT format('%I.%I', nspname, conname), ', ')
FROM pg_constraint JOIN pg_namespace AS n ON n.oid = connamespace
WHERE condeferrable AND conrelid IN (SELECT oid FROM tree)
"""
_CLAIM: Final = """
INSERT INTO stream_api.replaced AS earlier (table_oid, accepted_at, upload_id)
SELECT to_regclass($1)::oid, created_at, id FROM stream_api.uploads WHERE id = $2
ON CONFLICT (table_oid) DO UPDATE SET accepted_at = EXCLUDED.accepted_at, upload_id = EXCLUDED.upload_id
WHERE (earlier.accepted_at, earlier.upload_id) <= (EXCLUDED.accepted_at, EXCLUDED.upload_id)
RETURNING upload_id
"""


_TOO_LATE: Final = """
SELECT EXISTS (SELECT FROM stream_api.replaced AS earlier JOIN stream_api.uploads AS upload ON upload.id = $2
               WHERE earlier.table_oid = to_regclass($1)::oid
                 AND (earlier.accepted_at, earlier.upload_id) > (upload.created_at, upload.id))
"""


async def check_in_time(connection: Connection, plan: Plan, upload_id: UUID) -> None:
    """Look whether a load comes too late already, before it begins: the last word is said when it replaces.

    :raises Failure: `superseded`.
    """
    if await connection.fetchval(_TOO_LATE, plan.table, upload_id):
        raise _superseded(plan.table)


async def empty(connection: asyncpg.Connection, plan: Plan, upload_id: UUID) -> None:
    """Lock everybody out who would write into the target, and delete what is in it, in the caller's transaction.

    Readers go on, and see the old content until the commit. Other uploads that replace it wait here.

    :raises Failure: `superseded`; `replace_refused`.
    """
    table = plan.table
    await connection.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
    referring = [row["name"] for row in await connection.fetch(_REFERRING, table)]
    if referring:
        detail = (
            f"Rows of other tables would be changed or deleted with those of {table}: foreign keys of "
            f"{', '.join(referring)} are ON DELETE CASCADE, SET NULL or SET DEFAULT. Change them, then retry."
        )
        raise Failure("replace_refused", detail, table=table, referring=referring)
    if await connection.fetchval(_CLAIM, table, upload_id) is None:
        raise _superseded(table)
    # What a policy hides from this role would stay: then it is an error.
    await connection.execute("SET LOCAL row_security = off")
    with _referred(table):
        await connection.execute(f"DELETE FROM {table}")  # noqa: S608 (quoted by the plan)
    if await connection.fetchval(_KEEPS_ROWS, table) and await connection.fetchval(
        f"SELECT EXISTS (SELECT FROM {table})"  # noqa: S608 (quoted by the plan)
    ):
        detail = f"Rules or triggers of {table} keep rows from being deleted: its content cannot be replaced."
        raise Failure("replace_refused", detail, table=table)


def _superseded(table: str) -> Failure:
    detail = (
        f"An upload that was accepted later has already replaced the content of {table}; this one comes too late. "
        "Upload the file again if it is to replace that."
    )
    return Failure("superseded", detail, table=table)


async def speak_at_once(connection: asyncpg.Connection, plan: Plan) -> None:
    """Let the target's own deferred constraints speak of each row.

    Those of tables that refer to it are broken until the rows are there again.
    """
    names = await connection.fetchval(_DEFERRABLE, plan.table)
    if names is not None:
        await connection.execute(f"SET CONSTRAINTS {names} IMMEDIATE")


async def check_referring(connection: asyncpg.Connection, plan: Plan) -> None:
    """Let every other deferred constraint speak, now that the new rows are there.

    :raises Failure: `replace_refused`.
    """
    with _referred(plan.table):
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")


@contextmanager
def _referred(table: str) -> Iterator[None]:
    try:
        yield
    except (asyncpg.ForeignKeyViolationError, asyncpg.RestrictViolationError) as exc:
        detail = f"The rows of {table} cannot be deleted, for others refer to them: {exc.message}. {exc.detail or ''}"
        raise Failure("replace_refused", detail.strip(), table=table, sqlstate=exc.sqlstate) from exc
