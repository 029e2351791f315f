"""Segments into the staging table, whose rows go into the target together later (see `load.moving`)."""

from __future__ import annotations

from uuid import UUID

import asyncpg

from stream_api.datasets.plan import Plan
from stream_api.errors import Failure
from stream_api.ledger.pool import Pool, using
from stream_api.ledger.segments import SegmentFigures
from stream_api.ledger.staging import create_staging, staging_lost
from stream_api.load.claiming import Claims, claiming
from stream_api.load.copying import Into, Sent, copy_segment, first_binary
from stream_api.load.feeder import SegmentStream
from stream_api.load.holding import column_definitions, column_names
from stream_api.load.model import Encoded
from stream_api.load.refusals import refusals
from stream_api.load.rejects import Rejects
from stream_api.load.replacing import check_in_time
from stream_api.load.sieve import Loaded
from stream_api.load.straight import constraint_violated
from stream_api.load.target import CannotSift, look_at
from stream_api.load.violations import is_about_a_row


async def prepare_staging(pool: Pool, upload_id: UUID, run: int, plan: Plan, *, anew: bool) -> None:
    """Create the staging table of a load, where it is not there.

    :param anew: see `create_staging`.
    :raises RunLost: the run is over.
    :raises Failure: `table_denied` where rows could not be moved on; `superseded`; those of the ledger.
    """
    async with using(pool) as connection:
        with refusals(plan.table, connection):
            try:
                target = await look_at(connection, plan)
            except CannotSift as exc:
                raise Failure("table_denied", f"Rows cannot be moved into {plan.table}: {exc}") from exc
        if plan.mode == "replace":
            await check_in_time(connection, plan, upload_id)
    await create_staging(pool, upload_id, run, column_definitions(plan, target.collations), anew=anew)


class Staged:
    """Collects segments, on one lane. The staging table has no constraints.

    Memory: as `Straight`.

    :param staging: of `staging_name`.
    """

    def __init__(self, claims: Claims, plan: Plan, staging: str) -> None:
        self._claims = claims
        schema, table = staging.split(".")
        self._into = Into(schema, table, column_names(plan))

    async def load(self, stream: SegmentStream, /) -> SegmentFigures | None:
        """Load a segment: fence, ledger row and COPY, in one transaction; `None` where it is loaded already.

        :raises RunLost, Failure: see `Way.load`; `staging_lost`.
        """
        sent = Sent()
        first = await first_binary(stream.batches, sent)
        return await claiming(lambda: self._copied(stream, first, sent), sent)

    async def _copied(self, stream: SegmentStream, first: Encoded | None, sent: Sent) -> SegmentFigures | None:
        async with self._claims.claimed(stream.number) as claimed:
            if not claimed:
                async for _ in stream.batches:
                    pass
                return None
            sent.claimed = True
            try:
                taken = await copy_segment(self._claims.connection, self._into, stream.batches, first, sent)
            except asyncpg.UndefinedTableError as exc:
                raise staging_lost("The staging table is no longer there.") from exc
            except asyncpg.PostgresError as exc:
                if not is_about_a_row(exc.sqlstate):
                    raise
                raise constraint_violated(exc, sent) from exc
            if taken != sent.rows:
                raise Failure("rows_dropped", f"{sent.rows} rows were sent to the staging table and it took {taken}")
            loaded = Loaded(sent.read, taken, 0, Rejects.join(sent.rejections))
            return await self._claims.record(stream.number, stream.start, stream.first_line, sent, loaded)
