"""A look at the table that a load is for, or that all could be."""

from __future__ import annotations

from stream_api.datasets.catalogue import Table, read_table
from stream_api.datasets.dataset import Datasets
from stream_api.datasets.settling import settle
from stream_api.errors import Failure
from stream_api.ledger.pool import Pool, using
from stream_api.load.refusals import refusals


async def look_up(pool: Pool, table: str) -> Table:
    """The table as the catalogue has it now.

    :param table: as SQL names it.
    :raises Failure: as `refusals`; `database_unavailable`, `database_refused`.
    """
    async with using(pool) as connection:
        with refusals(table, connection):
            return await read_table(connection, table)


async def misfits(pool: Pool, datasets: Datasets) -> dict[str, Failure]:
    """The datasets that nothing can be loaded into as the tables are now, and why; none while the database is away."""
    found: dict[str, Failure] = {}
    for name, dataset in datasets.items():
        try:
            settle(dataset, await look_up(pool, dataset.table))
        except Failure as failure:
            if failure.transient:
                break
            found[name] = failure
    return found
