"""Staging tables: where a load collects its rows that go into the target together or not at all.

They are logged, and lie in our own schema. One that has gone missing, or is another of the same name, is no harm: the
segments that name it count no longer, and the load begins anew (see `Ledger.take`).
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import asyncpg
import structlog

from stream_api.errors import Failure, RunLost
from stream_api.ledger.pool import Connection, Pool, using

log = structlog.get_logger()

_FENCE: Final = "SELECT id FROM stream_api.uploads WHERE id = $1 AND run = $2 AND state = 'processing' FOR SHARE"
# Of a failed upload it is kept, for the retry; of one that has ended otherwise, or that is no longer known, nobody
# wants it.
_ORPHANS: Final = """
SELECT c.oid, c.relname AS name FROM pg_class AS c
WHERE c.relnamespace = 'stream_api'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^staging_[0-9a-f]{32}$'
  AND NOT EXISTS (SELECT FROM stream_api.uploads AS upload
                  WHERE replace(upload.id::text, '-', '') = substr(c.relname, 9)
                    AND upload.state IN ('uploaded', 'processing', 'failed') AND upload.staging_table IS NOT NULL)
"""


def staging_name(upload_id: UUID) -> str:
    """The name of an upload's staging table, for SQL."""
    return f"stream_api.staging_{upload_id.hex}"


async def create_staging(pool: Pool, upload_id: UUID, run: int, columns: str, *, anew: bool) -> None:
    """Create the staging table of a load that has been taken, where it has none.

    :param columns: as CREATE TABLE wants them.
    :param anew: none of its segments is committed: whatever lies there is of an earlier plan.
    :raises RunLost: the run is over.
    :raises Failure: `database_unavailable`, `database_refused`.
    """
    name = staging_name(upload_id)
    async with using(pool) as connection, connection.transaction():
        if await connection.fetchval(_FENCE, upload_id, run) is None:
            raise RunLost(f"run {run} of upload {upload_id} is over")
        if anew:
            await connection.execute(f"DROP TABLE IF EXISTS {name}")
        await connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")


async def give_up_staging(pool: Pool, upload_id: UUID, run: int) -> None:
    """Drop the staging table of a load that runs, so that it begins anew.

    :raises RunLost: the run is over.
    :raises Failure: `database_unavailable`, `database_refused`.
    """
    async with using(pool) as connection, connection.transaction():
        if await connection.fetchval(_FENCE, upload_id, run) is None:
            raise RunLost(f"run {run} of upload {upload_id} is over")
        await connection.execute(f"DROP TABLE IF EXISTS {staging_name(upload_id)}")


async def drop_quietly(connection: Connection, name: str) -> bool:
    """Drop a staging table that nobody wants any more; whether that is done. The janitor drops what stays."""
    try:
        await connection.execute(f"DROP TABLE IF EXISTS {name}")
    except (asyncpg.PostgresError, OSError) as error:
        log.info("ledger.staging_kept", table=name, error=repr(error))
        return False
    return True


async def drop_orphans(pool: Pool) -> int:
    """Drop the staging tables that nobody wants any more; how many.

    One whose id comes back in this very moment (by an `Idempotency-Key`) may be among them: that load begins anew.

    :raises Failure: `database_unavailable`, `database_refused`.
    """
    async with using(pool) as connection:
        found = await connection.fetch(_ORPHANS)
        return sum([await drop_quietly(connection, f"stream_api.{row['name']}") for row in found])


def staging_lost(said: str) -> Failure:
    """The failure of a load whose staging table is not what it was; the next attempt begins with the first segment."""
    return Failure("staging_lost", f"{said} The load begins anew with the first segment.")
