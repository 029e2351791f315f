"""Feeds encoded segments into Postgres: fence, ledger row and COPY in one transaction, over one or more lanes."""

from __future__ import annotations

import re
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
from stream_api.ledger.segments import SegmentFigures, claim_segment
from stream_api.load.model import Encoded, Int64s
from stream_api.load.pieces import pieces
from stream_api.load.recorder import Recorder
from stream_api.load.refusals import refusals
from stream_api.load.rejects import Rejects
from stream_api.load.sieve import CannotSift, Loaded, Sieve
from stream_api.load.transacting import ended_with, transaction
from stream_api.load.turns import Turns
from stream_api.load.violations import is_about_a_row

log = structlog.get_logger()

#: Binary COPY data begins with its signature, flags and the length of an empty extension, and ends with a count of -1
#: (https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format").
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"
#: The context of an error in COPY names the row by its number within the COPY: `COPY orders, line 7778`.
_COPY_LINE = re.compile(r"\bline (\d+)")

#: Serialization, deadlock, a lock not had in time: it concerns one transaction, and the connection works on.
_OF_THE_MOMENT = frozenset({"40001", "40P01", "55P03"})
#: So often a segment is claimed before such trouble is the load's. Each waits for locks itself.
_CLAIMS = 3
#: So long the sieve waits for a lock while other lanes may have it: less than Postgres waits before it looks for a
#: deadlock (`deadlock_timeout`, 1 s), which would cost another lane its COPY.
_BESIDE_LANES = "200ms"


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
    rejections: list[Rejects] = field(default_factory=list)
    header: bytes = b""
    binary_lines: list[Int64s] = field(default_factory=list)
    csv: list[bytes] = field(default_factory=list)
    csv_lines: list[Int64s] = field(default_factory=list)
    #: Lines of the rows of the COPY that runs now.
    copying: list[Int64s] = field(default_factory=list)
    #: The segment is this lane's to load.
    claimed: bool = False

    def pass_over(self, encoded: Encoded) -> None:
        self.end = encoded.span.end
        self.lines += encoded.span.lines
        self.header = self.header or encoded.header

    def forget(self) -> None:
        for held in (self.rejections, self.binary_lines, self.csv, self.csv_lines, self.copying):
            held.clear()

    def add(self, encoded: Encoded) -> None:
        self.pass_over(encoded)
        self.read += encoded.read
        if encoded.rejections:
            self.rejections.append(encoded.rejections)
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

    Memory: what has been sent of a segment is forgotten, but for its rows in text form and its rejections.

    :param connection: for this lane alone; of this upload and run (see `ledger.pool.connect_lane`).
    :param sieve: loads the segments of which Postgres refuses rows.
    :param turns: of all lanes of the load.
    :param recorder: completes the ledger rows.
    :param committed: called after each commit with the figures of the segment.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        *,
        upload_id: UUID,
        run: int,
        plan: Plan,
        sieve: Sieve,
        turns: Turns,
        recorder: Recorder,
        committed: Callable[[SegmentFigures], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._upload_id = upload_id
        self._run = run
        self._plan = plan
        self._sieve = sieve
        self._turns = turns
        self._recorder = recorder
        self._committed = committed

    async def run(self, segments: Channel[SegmentStream]) -> None:
        """Load segments until there are no more.

        :raises RunLost: the run is no longer this worker's.
        :raises Failure: `too_many_rejects`, `constraint_violated` and the other errors of Postgres; those of the store.
        """
        async for stream in segments:
            async with ended_with(self._connection):
                figures = await self._load(stream)
            if figures is not None:
                await self._committed(figures)

    async def _load(self, stream: SegmentStream) -> SegmentFigures | None:
        """Load a segment, straight into the table; if it has rows that Postgres refuses, through the sieve."""
        sent = _Sent()
        # Outside of the transaction: a line of gigabytes has no rows, and a session that is idle in one is ended.
        first = await self._first_binary(stream, sent)
        try:
            async with self._turns.together():
                return await self._claiming(lambda: self._straight(stream, first, sent), sent)
        except Failure as failure:
            of_the_moment = failure.extra.get("sqlstate") in _OF_THE_MOMENT and sent.claimed
            if failure.code != "constraint_violated" and not of_the_moment:
                raise
            why = failure
        # Its batches have been used up: what is left of them says where it ends, and then it is read again.
        sent.forget()
        async for encoded in stream.batches:
            sent.pass_over(encoded)
        log.info("load.segment_sifted", segment=stream.number, code=why.code, **why.extra)
        try:
            return await self._sift(stream, sent, apart=why.code != "constraint_violated")
        except CannotSift as exc:
            raise Failure(why.code, f"{why.detail} {exc}", transient=why.transient, **why.extra) from exc
        except asyncpg.PostgresError as exc:
            if not is_about_a_row(exc.sqlstate):
                raise
            raise why from exc

    async def _sift(self, stream: SegmentStream, sent: _Sent, *, apart: bool) -> SegmentFigures | None:
        """Load a segment by the sieve: beside the other lanes, and where they are in the way alone.

        :param apart: they have been already.
        """
        turns = self._turns
        turns.apart = turns.apart or apart
        if not turns.apart:
            try:
                async with turns.together():
                    return await self._sifted(stream, sent, lock_timeout=_BESIDE_LANES)
            except Failure as failure:
                if failure.extra.get("sqlstate") not in _OF_THE_MOMENT:
                    raise
                log.info("load.lanes_meet", segment=stream.number, **failure.extra)
                turns.apart = True
        async with turns.alone():
            return await self._claiming(lambda: self._sifted(stream, sent, lock_timeout="0"))

    async def _claiming(
        self, load: Callable[[], Awaitable[SegmentFigures | None]], sent: _Sent | None = None
    ) -> SegmentFigures | None:
        """Load a segment; trouble of the moment is its own affair as long as it can begin anew.

        :param sent: says whether its batches are being used up; `None` if it does not depend on them.
        """
        for tried in range(1, _CLAIMS + 1):
            try:
                return await load()
            except Failure as failure:
                of_the_moment = failure.extra.get("sqlstate") in _OF_THE_MOMENT and (sent is None or not sent.claimed)
                if not of_the_moment or tried == _CLAIMS:
                    raise
                log.info("load.segment_claimed_again", **failure.extra)
        raise AssertionError

    async def _straight(self, stream: SegmentStream, first: Encoded | None, sent: _Sent) -> SegmentFigures | None:
        """Fence, ledger row and COPY, in one transaction; `None` where the segment is loaded already."""
        try:
            async with self._claimed(stream) as claimed:
                if not claimed:
                    async for _ in stream.batches:
                        pass
                    return None
                sent.claimed = True
                taken = await self._copy(stream, first, sent)
                # What is deferred would come with the COMMIT, where nobody could tell the rows any more.
                await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                loaded = Loaded(sent.read, taken, sent.rows - taken, Rejects.join(sent.rejections))
                figures = _figures(stream, sent, loaded)
                await self._recorder.record(self._connection, figures, loaded.rejects, sent.header)
        except asyncpg.PostgresError as exc:
            if not is_about_a_row(exc.sqlstate):
                raise
            raise _constraint_violated(exc, sent) from exc
        return figures

    async def _sifted(self, stream: SegmentStream, sent: _Sent, *, lock_timeout: str) -> SegmentFigures | None:
        """As `_straight`, by the sieve."""
        async with self._claimed(stream) as claimed:
            if not claimed:
                return None
            await self._connection.execute(f"SET LOCAL lock_timeout = '{lock_timeout}'")
            with refusals(self._plan.table, self._connection):
                loaded = await self._sieve.load(self._connection, stream.start, sent.end, stream.first_line)
            figures = _figures(stream, sent, loaded)
            await self._recorder.record(self._connection, figures, loaded.rejects, sent.header)
        return figures

    @asynccontextmanager
    async def _claimed(self, stream: SegmentStream) -> AsyncIterator[bool]:
        """A transaction with the fence and the segment's ledger row; false where the segment is loaded already."""
        connection = self._connection
        with translated(connection):
            async with transaction(connection):
                yield await claim_segment(connection, self._upload_id, self._run, stream.number)

    async def _copy(self, stream: SegmentStream, first: Encoded | None, sent: _Sent) -> int:
        """COPY all rows of the segment; the number that Postgres says it took."""
        taken = 0
        if first is not None:
            sent.copying = sent.binary_lines
            taken += await self._copy_in(self._binary(first, stream, sent), "binary")
        if sent.csv:
            sent.copying = sent.csv_lines
            taken += await self._copy_in(pieces(b"".join(sent.csv)), "csv")
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
        async for piece in pieces(*first.binary):
            yield piece
        async for encoded in stream.batches:
            sent.add(encoded)
            async for piece in pieces(*encoded.binary):
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


def _figures(stream: SegmentStream, sent: _Sent, loaded: Loaded) -> SegmentFigures:
    return SegmentFigures(
        number=stream.number,
        start=stream.start,
        end=sent.end,
        first_line=stream.first_line,
        lines=sent.lines,
        rows_read=loaded.rows_read,
        rows_inserted=loaded.rows_inserted,
        rows_skipped=loaded.rows_skipped,
        rejected=loaded.rejects.by_code,
        first_rejects=loaded.rejects.first,
    )


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
