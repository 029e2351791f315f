"""Segments straight into the table, by COPY; and through the sieve where Postgres refuses rows of them."""

from __future__ import annotations

from typing import Any, Final

import asyncpg
import structlog

from stream_api.datasets.plan import Plan
from stream_api.errors import Failure
from stream_api.ledger.errors import translated
from stream_api.ledger.segments import SegmentFigures
from stream_api.load.claiming import Claims, claiming, of_the_moment
from stream_api.load.copying import Into, Sent, copy_segment, first_binary
from stream_api.load.feeder import SegmentStream
from stream_api.load.model import Encoded
from stream_api.load.refusals import refusals
from stream_api.load.rejects import Rejects
from stream_api.load.sieve import Loaded, Sieve
from stream_api.load.target import CannotSift
from stream_api.load.turns import Turns
from stream_api.load.violations import is_about_a_row

log = structlog.get_logger()

#: So long the sieve waits for a lock while other lanes may have it: less than Postgres waits before it looks for a
#: deadlock (`deadlock_timeout`, 1 s), which would cost another lane its COPY.
_BESIDE_LANES: Final = "200ms"
#: SQLSTATE unique_violation.
_DUPLICATE: Final = "23505"


class Straight:
    """Loads segments into the target, on one lane.

    Memory: what has been sent of a segment is forgotten, but for its rows in text form and its rejections.

    :param sieve: loads the segments of which Postgres refuses rows.
    :param turns: of all lanes of the load.
    :param may_defer: see `Table`.
    """

    def __init__(self, claims: Claims, plan: Plan, *, sieve: Sieve, turns: Turns, may_defer: bool) -> None:
        self._claims = claims
        self._connection = claims.connection
        self._plan = plan
        self._into = Into(plan.table_schema, plan.table_name, plan.column_names)
        self._sieve = sieve
        self._turns = turns
        self._may_defer = may_defer

    async def load(self, stream: SegmentStream, /) -> SegmentFigures | None:
        """Load a segment: fence, ledger row and COPY, in one transaction; `None` where it is loaded already.

        :raises RunLost, Failure: see `Way.load`.
        """
        sent = Sent()
        # Outside of the transaction: a line of gigabytes has no rows, and a session that is idle in one is ended.
        first = await first_binary(stream.batches, sent)
        try:
            async with self._turns.together():
                return await claiming(lambda: self._straight(stream, first, sent), sent)
        except Failure as failure:
            if failure.code != "constraint_violated" and not (of_the_moment(failure) and sent.claimed):
                raise
            why = failure
        # Its batches have been used up: what is left of them says where it ends, and then it is read again.
        sent.forget()
        async for encoded in stream.batches:
            sent.pass_over(encoded)
        log.info("load.segment_sifted", segment=stream.number, code=why.code, **why.extra)
        try:
            duplicates = why.extra.get("sqlstate") == _DUPLICATE
            return await self._sift(stream, sent, apart=why.code != "constraint_violated", duplicates=duplicates)
        except CannotSift as exc:
            raise Failure(why.code, f"{why.detail} {exc}", transient=why.transient, **why.extra) from exc
        except asyncpg.PostgresError as exc:
            if not is_about_a_row(exc.sqlstate):
                raise
            raise why from exc

    async def _straight(self, stream: SegmentStream, first: Encoded | None, sent: Sent) -> SegmentFigures | None:
        try:
            async with self._claims.claimed(stream.number) as claimed:
                if not claimed:
                    async for _ in stream.batches:
                        pass
                    return None
                sent.claimed = True
                with refusals(self._plan.table, self._connection):
                    taken = await copy_segment(self._connection, self._into, stream.batches, first, sent)
                # What is deferred is checked before others are made to wait for this commit, and in its own time.
                if self._may_defer:
                    await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                loaded = Loaded(sent.read, taken, sent.rows - taken, Rejects.join(sent.rejections))
                figures = await self._claims.record(stream.number, stream.start, stream.first_line, sent, loaded)
        except asyncpg.PostgresError as exc:
            if not is_about_a_row(exc.sqlstate):
                raise
            raise constraint_violated(exc, sent) from exc
        return figures

    async def _sift(self, stream: SegmentStream, sent: Sent, *, apart: bool, duplicates: bool) -> SegmentFigures | None:
        """Load a segment by the sieve: beside the other lanes, and where they are in the way alone.

        :param apart: they have been already.
        :param duplicates: nothing is known of its rows but that some are such.
        """
        with translated(self._connection), refusals(self._plan.table, self._connection):
            await self._sieve.prepare(self._connection)
        turns = self._turns
        turns.apart = turns.apart or apart
        if not turns.apart:
            try:
                async with turns.together():
                    return await self._sifted(stream, sent, lock_timeout=_BESIDE_LANES, whole=duplicates)
            except Failure as failure:
                if not of_the_moment(failure):
                    raise
                log.info("load.lanes_meet", segment=stream.number, **failure.extra)
                turns.apart = True
        async with turns.alone():
            return await claiming(lambda: self._sifted(stream, sent, lock_timeout="0", whole=duplicates))

    async def _sifted(
        self, stream: SegmentStream, sent: Sent, *, lock_timeout: str, whole: bool
    ) -> SegmentFigures | None:
        """As `_straight`, by the sieve."""
        async with self._claims.claimed(stream.number) as claimed:
            if not claimed:
                return None
            await self._connection.execute(f"SET LOCAL lock_timeout = '{lock_timeout}'; SET CONSTRAINTS ALL IMMEDIATE")
            with refusals(self._plan.table, self._connection):
                segment = await self._sieve.read_into(self._connection, stream.start, sent.end, stream.first_line)
                loaded = await self._sieve.load(self._connection, segment, whole=whole)
            return await self._claims.record(stream.number, stream.start, stream.first_line, sent, loaded)


def constraint_violated(exc: asyncpg.PostgresError, sent: Sent) -> Failure:
    """The failure of a load that cannot leave out the row at fault."""
    line = sent.file_line(exc)
    where = "" if line is None else f"Line {line}: "
    detail = f" {exc.detail}" if exc.detail else ""
    message = f"{where}{exc.args[0]}.{detail} Mend the file and upload it again, or change the table and retry."
    extra: dict[str, Any] = {"constraint": exc.constraint_name, "line": line, "sqlstate": exc.sqlstate}
    return Failure("constraint_violated", message, **{key: value for key, value in extra.items() if value is not None})
