"""Feeds encoded segments into Postgres: fence, ledger row and COPY in one transaction, over one or more lanes."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import asyncpg
import structlog

from stream_api.datasets.plan import Plan
from stream_api.errors import Failure
from stream_api.flow.channel import Channel
from stream_api.ledger.errors import translated
from stream_api.ledger.segments import SegmentFigures, claim_segment, record_segment
from stream_api.load.model import Encoded, Int64s
from stream_api.load.refusals import refusals

log = structlog.get_logger()

log = structlog.get_logger()

#: Binary COPY data begins with its signature, flags and the length of an empty extension, and ends with a count of -1
#: (https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format").
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"
#: One piece is one CopyData message: smaller ones cost more calls, larger ones stall the loop (FACTS: 64 to 512 KiB).
PIECE_BYTES = 128 * 1024

#: How long a transaction may take to be rolled back before its session is ended instead.
_ROLLBACK_SECONDS = 2.0

#: The context of an error in COPY names the row by its number within the COPY: `COPY orders, line 7778`.
_COPY_LINE = re.compile(r"\bline (\d+)")

#: Classes of SQLSTATE that speak of a row: data, integrity, WITH CHECK OPTION, limits (an index row too large), and
#: what triggers raise (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_ABOUT_A_ROW = frozenset({"22", "23", "44", "54", "P0"})

#: Serialization, deadlock, a lock not had in time: it concerns one transaction, and the connection works on.
_OF_THE_MOMENT = frozenset({"40001", "40P01", "55P03"})
#: So often a segment is claimed before such trouble is the load's. Each waits for locks itself.
_CLAIMS = 3


@dataclass(frozen=True, slots=True)
class SegmentStream:
    """A segment on its way to a lane: the lane may start while its last batches are still being encoded."""

    number: int
    start: int
    first_line: int
    batches: Channel[Encoded]


async def dispatch(encoded: Channel[Encoded], segments: Channel[SegmentStream], *, segment_queue_bytes: int) -> None:
    """Cut the flow of batches into one stream for each segment, in order.

    A stream is closed when its segment is whole, and failed when the flow breaks: a lane can never take a truncated
    segment for a whole one.

    Memory: (lanes + streams queued in `segments` + 1) × `segment_queue_bytes`.
    """
    stream: SegmentStream | None = None
    try:
        async for batch in encoded:
            source = batch.span
            if stream is not None and stream.number != source.segment:
                stream.batches.close()
                stream = None
            if stream is None:
                queue = Channel[Encoded](f"segment-{source.segment}", max_items=64, max_bytes=segment_queue_bytes)
                stream = SegmentStream(source.segment, source.start, source.first_line, queue)
                await segments.send(stream, 0)
            await stream.batches.send(batch, batch.size_bytes)
            if source.ends_segment:
                stream.batches.close()
                stream = None
        if stream is not None:
            stream.batches.close()
    except BaseException as exc:
        if stream is not None:
            stream.batches.fail(exc)
        raise
    segments.close()


@dataclass(slots=True)
class _Sent:
    """What has been sent of one segment."""

    end: int = 0
    lines: int = 0
    read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    binary_lines: list[Int64s] = field(default_factory=list)
    csv: list[bytes] = field(default_factory=list)
    csv_lines: list[Int64s] = field(default_factory=list)
    #: Lines of the rows of the COPY that runs now.
    copying: list[Int64s] = field(default_factory=list)
    #: The segment is this lane's to load.
    claimed: bool = False

    def add(self, encoded: Encoded) -> None:
        self.end = encoded.span.end
        self.lines += encoded.span.lines
        self.read += encoded.read
        self.rejected.update(rejection.code for rejection in encoded.rejections)
        if encoded.binary_lines.size:
            self.binary_lines.append(encoded.binary_lines)
        if encoded.csv_lines.size:
            self.csv.append(encoded.csv)
            self.csv_lines.append(encoded.csv_lines)

    @property
    def rows(self) -> int:
        return sum(lines.size for lines in (*self.binary_lines, *self.csv_lines))


class Lane:
    """One connection that loads segments, one after another.

    :param connection: for this lane alone; of this upload and run (see `ledger.pool.connect_lane`).
    :param committed: called after each commit with the figures of the segment.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        *,
        upload_id: UUID,
        run: int,
        plan: Plan,
        committed: Callable[[SegmentFigures], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._upload_id = upload_id
        self._run = run
        self._plan = plan
        self._committed = committed

    async def run(self, segments: Channel[SegmentStream]) -> None:
        """Load segments until there are no more.

        :raises RunLost: the run is no longer this worker's.
        :raises Failure: `constraint_violated` and the other errors of Postgres.
        """
        async for stream in segments:
            async with _ended_with(self._connection):
                figures = await self._load(stream)
            if figures is not None:
                await self._committed(figures)

    async def _load(self, stream: SegmentStream) -> SegmentFigures | None:
        """Load a segment. Trouble of the moment in claiming it, which is before anything is sent, is its own affair."""
        sent = _Sent()
        # Outside of the transaction: a line of gigabytes has no rows, and a session that is idle in one is ended.
        first = await self._first_binary(stream, sent)
        for tried in range(1, _CLAIMS + 1):
            try:
                return await self._transact(stream, first, sent)
            except Failure as failure:
                of_the_moment = failure.extra.get("sqlstate") in _OF_THE_MOMENT and not sent.claimed
                if not of_the_moment or tried == _CLAIMS:
                    raise
                log.info("load.segment_claimed_again", segment=stream.number, **failure.extra)
        raise AssertionError

    async def _transact(self, stream: SegmentStream, first: Encoded | None, sent: _Sent) -> SegmentFigures | None:
        """Fence, ledger row and COPY, in one transaction; `None` where the segment is loaded already."""
        connection = self._connection
        try:
            with translated(connection):
                async with _transaction(connection):
                    if not await claim_segment(connection, self._upload_id, self._run, stream.number):
                        async for _ in stream.batches:
                            pass
                        return None
                    sent.claimed = True
                    taken = await self._copy(stream, first, sent)
                    figures = SegmentFigures(
                        number=stream.number,
                        start=stream.start,
                        end=sent.end,
                        first_line=stream.first_line,
                        lines=sent.lines,
                        rows_read=sent.read,
                        rows_inserted=taken,
                        rows_skipped=sent.rows - taken,
                        rejected=dict(sent.rejected),
                    )
                    await record_segment(connection, self._upload_id, figures, self._plan.table)
        except asyncpg.PostgresError as exc:
            if (exc.sqlstate or "")[:2] not in _ABOUT_A_ROW:
                raise
            raise _constraint_violated(exc, sent) from exc
        return figures

    async def _copy(self, stream: SegmentStream, first: Encoded | None, sent: _Sent) -> int:
        """COPY all rows of the segment; the number that Postgres says it took."""
        taken = 0
        if first is not None:
            sent.copying = sent.binary_lines
            taken += await self._copy_in(self._binary(first, stream, sent), "binary")
        if sent.csv:
            sent.copying = sent.csv_lines
            taken += await self._copy_in(_pieces(b"".join(sent.csv)), "csv")
        if taken > sent.rows:
            message = f"{sent.rows} rows were sent and {taken} were taken"
            raise Failure("rows_dropped", message)
        return taken

    async def _first_binary(self, stream: SegmentStream, sent: _Sent) -> Encoded | None:
        """The first batch with binary rows: where there is none, there is no binary COPY."""
        async for encoded in stream.batches:
            sent.add(encoded)
            if encoded.binary_lines.size:
                return encoded
        return None

    async def _binary(self, first: Encoded, stream: SegmentStream, sent: _Sent) -> AsyncIterator[bytes | memoryview]:
        yield COPY_HEADER
        async for piece in _pieces(*first.binary):
            yield piece
        async for encoded in stream.batches:
            sent.add(encoded)
            async for piece in _pieces(*encoded.binary):
                yield piece
        yield COPY_TRAILER

    async def _copy_in(self, source: AsyncIterator[bytes | memoryview], copy_format: Literal["binary", "csv"]) -> int:
        options: dict[str, Any] = {"null": "", "delimiter": ",", "quote": '"'} if copy_format == "csv" else {}
        with refusals(self._plan.table, self._connection):
            tag = await self._connection.copy_to_table(
                self._plan.table_name,
                schema_name=self._plan.table_schema,
                columns=self._plan.column_names,
                source=source,  # type: ignore[arg-type]  # memoryviews work as well as bytes
                format=copy_format,
                encoding="utf8",
                **options,
            )
        return int(tag.removeprefix("COPY "))


def _constraint_violated(exc: asyncpg.PostgresError, sent: _Sent) -> Failure:
    line = _file_line(exc, sent)
    where = "" if line is None else f"Line {line}: "
    detail = f" {exc.detail}" if exc.detail else ""
    message = f"{where}{exc.args[0]}.{detail} Mend the file and upload it again, or change the table and retry."
    extra: dict[str, Any] = {"constraint": exc.constraint_name, "line": line, "sqlstate": exc.sqlstate}
    return Failure("constraint_violated", message, **{key: value for key, value in extra.items() if value is not None})


def _file_line(exc: asyncpg.PostgresError, sent: _Sent) -> int | None:
    """The line of the file of the row that Postgres names in the error's context, if it names one."""
    named = _COPY_LINE.search(exc.context or "")
    row = int(named[1]) if named else 0
    for lines in sent.copying:
        if 1 <= row <= lines.size:
            return int(lines[row - 1])
        row -= lines.size
    return None


async def _pieces(*data: bytes | memoryview) -> AsyncIterator[memoryview]:
    for each in data:
        view = memoryview(each)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]
            # asyncpg's writer need not suspend while the socket takes everything: the loop must turn all the same.
            await asyncio.sleep(0)


@asynccontextmanager
async def _transaction(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """A transaction whose end never hides what ended it, as asyncpg's own does.

    A COPY that was cut off by a lost session, or by a cancellation while the server takes nothing, leaves a connection
    on which nothing can be rolled back, or only some time.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    except BaseException:
        try:
            async with asyncio.timeout(_ROLLBACK_SECONDS):
                await transaction.rollback()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
            # The session goes, and with it what was to be rolled back.
            log.debug("load.not_rolled_back", error=repr(exc))
            connection.terminate()
        raise
    await transaction.commit()


@asynccontextmanager
async def _ended_with(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """End the body when the connection ends: a throttled COPY would wait for ever (see FACTS on `copy_to_table`).

    :raises Failure: `database_unavailable`.
    """
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout(None)
    left = False

    def on_termination(_: object) -> None:
        # asyncpg calls it one turn of the loop later, when the body may be over and the listener removed.
        if not left:
            scope.reschedule(loop.time())

    try:
        async with scope:
            connection.add_termination_listener(on_termination)
            try:
                if connection.is_closed():
                    raise Failure("database_unavailable", "The connection to the database was lost.")
                yield
            finally:
                left = True
                connection.remove_termination_listener(on_termination)
    except TimeoutError as exc:
        if not scope.expired():
            raise
        message = "The connection to the database was lost in the middle of a COPY."
        raise Failure("database_unavailable", message) from exc
