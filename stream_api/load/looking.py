"""A look at the table that a load is for."""

from __future__ import annotations

from stream_api.datasets.catalogue import Table, read_table
from stream_api.ledger.errors import translated
from stream_api.ledger.pool import Pool
from stream_api.load.refusals import refusals


async def look_up(pool: Pool, table: str) -> Table:
    """The table as the catalogue has it now.

    :param table: as SQL names it.
    :raises Failure: as `refusals`; `database_unavailable`, `database_refused`.
    """
    with translated():
        async with pool.acquire() as connection:
            with translated(connection), refusals(table, connection):
                return await read_table(connection, table)
