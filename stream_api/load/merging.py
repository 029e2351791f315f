"""Segments whose rows may have the keys of others (`conflict`): each into a table of its lane's own, and then in turn.

COPYs run beside each other. What they hold goes into the target strictly in the file's order: a lane waits, without
asking Postgres for any lock, until all earlier segments of the load are committed. So the first row of a key is the
first of the file, and the last the last, whatever the lanes, crashes and retries; no lane waits for another one's rows;
and what is committed is always the file's beginning.
"""

from __future__ import annotations

import asyncio

import asyncpg
import structlog

from stream_api.datasets.plan import Plan
from stream_api.errors import Failure
from stream_api.ledger.errors import translated
from stream_api.ledger.segments import SegmentFigures
from stream_api.load.claiming import Claims, claiming, of_the_moment
from stream_api.load.copying import Sent, copy_segment, first_binary
from stream_api.load.feeder import SegmentStream
from stream_api.load.holding import rows_of
from stream_api.load.model import Encoded
from stream_api.load.refusals import refusals
from stream_api.load.sieve import Held, Sieve
from stream_api.load.straight import constraint_violated
from stream_api.load.target import CannotSift
from stream_api.load.violations import is_about_a_row

log = structlog.get_logger()


class FileOrder:
    """Lets the lanes of a load commit in the order of the file."""

    def __init__(self) -> None:
        self._next = 0
        self._changed = asyncio.Condition()

    async def turn(self, place: int) -> None:
        """Wait until all segments before this place are done."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._next == place)

    async def done(self, place: int) -> None:
        """The segment whose turn it is has been committed."""
        async with self._changed:
            self._next = place + 1
            self._changed.notify_all()


class Merging:
    """Merges segments into the target, on one lane.

    Memory: as `Straight`.

    :param order: of all lanes of the load.
    """

    def __init__(self, claims: Claims, plan: Plan, *, sieve: Sieve, order: FileOrder) -> None:
        self._claims = claims
        self._connection = claims.connection
        self._plan = plan
        self._sieve = sieve
        self._order = order
        self._prepared = False

    async def load(self, stream: SegmentStream, /) -> SegmentFigures | None:
        """Load a segment; `None` where it is loaded already.

        :raises RunLost, Failure: see `Way.load`.
        """
        sent = Sent()
        first = await first_binary(stream.batches, sent)
        try:
            figures = await self._loaded(stream, first, sent)
        except CannotSift as exc:
            detail = f"Rows cannot be merged into {self._plan.table} (conflict={self._plan.conflict}): {exc}"
            raise Failure("table_denied", detail, table=self._plan.table) from exc
        except asyncpg.PostgresError as exc:
            if not is_about_a_row(exc.sqlstate):
                raise
            raise constraint_violated(exc, sent) from exc
        await self._order.done(stream.place)
        return figures

    async def _loaded(self, stream: SegmentStream, first: Encoded | None, sent: Sent) -> SegmentFigures | None:
        if not self._prepared:
            with translated(self._connection), refusals(self._plan.table, self._connection):
                await self._sieve.prepare(self._connection)
            self._prepared = True
        try:
            return await claiming(lambda: self._streamed(stream, first, sent), sent)
        except Failure as failure:
            if not (of_the_moment(failure) and sent.claimed):
                raise
            log.info("load.segment_merged_again", segment=stream.number, **failure.extra)
        # What it held is gone with its transaction, and its batches are used up.
        sent.forget()
        async for encoded in stream.batches:
            sent.pass_over(encoded)
        return await claiming(lambda: self._read_again(stream, sent))

    async def _streamed(self, stream: SegmentStream, first: Encoded | None, sent: Sent) -> SegmentFigures | None:
        """Fence, ledger row, COPY and merge, in one transaction."""
        async with self._claims.claimed(stream.number) as claimed:
            if not claimed:
                async for _ in stream.batches:
                    pass
                await self._order.turn(stream.place)
                return None
            sent.claimed = True
            taken = await copy_segment(self._connection, rows_of(self._plan), stream.batches, first, sent)
            if taken != sent.rows:
                raise Failure("rows_dropped", f"{sent.rows} rows were sent to the holding table and {taken} were taken")
            sent.csv.clear()
            segment = Held(stream.start, sent.end, stream.first_line, sent.read, sent.rows, sent.rejections)
            return await self._merged(stream, sent, segment)

    async def _read_again(self, stream: SegmentStream, sent: Sent) -> SegmentFigures | None:
        """The same, of a segment that is read again by its range."""
        await self._order.turn(stream.place)
        async with self._claims.claimed(stream.number) as claimed:
            if not claimed:
                return None
            segment = await self._sieve.read_into(self._connection, stream.start, sent.end, stream.first_line)
            return await self._merged(stream, sent, segment)

    async def _merged(self, stream: SegmentStream, sent: Sent, segment: Held) -> SegmentFigures:
        await self._order.turn(stream.place)
        with refusals(self._plan.table, self._connection):
            await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            loaded = await self._sieve.load(self._connection, segment, whole=True)
        return await self._claims.record(stream.number, stream.start, stream.first_line, sent, loaded)
