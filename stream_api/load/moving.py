"""The move: all rows from the staging table into the target, in the one transaction that also ends the upload.

Before it nothing is in the target, after it everything, and the upload is completed; a lost answer to COMMIT is settled
by the upload's row. Rows that the target refuses are found segment by segment, in the file's order, and the ledger says
in the same transaction what has become of each.

A dry run does the same on a second connection, whose transaction is rolled back at its end; what was found is in the
ledger, for that is written on the first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final
from uuid import UUID

import asyncpg
import structlog

from stream_api.datasets.catalogue import quote_identifier
from stream_api.datasets.plan import Plan
from stream_api.errors import Failure, RunLost
from stream_api.ledger.completing import complete
from stream_api.ledger.errors import translated
from stream_api.ledger.pool import LaneConnection
from stream_api.ledger.rows import UploadRow
from stream_api.ledger.segments import CommittedSegment, SegmentFigures, committed_segments, kept_of, revise_segment
from stream_api.ledger.staging import staging_lost, staging_name
from stream_api.load.holding import REFUSED, column_names, create_holding
from stream_api.load.inserting import NO_LINE, ROUNDS, Inserted, Source, insert_again, insert_rows
from stream_api.load.recorder import Recorder
from stream_api.load.refusals import refusals
from stream_api.load.rejects import Rejects
from stream_api.load.replacing import check_referring, empty, speak_at_once
from stream_api.load.sieve import Held, Sieve
from stream_api.load.target import CannotSift, Target, look_at
from stream_api.load.transacting import transaction
from stream_api.load.violations import is_about_a_row

log = structlog.get_logger()

# Nobody else changes the row from here on; whoever wants to take or cancel the upload ends this session.
_FENCE: Final = """
SELECT set_config('lock_timeout', '0', true) FROM (
    SELECT id FROM stream_api.uploads WHERE id = $1 AND run = $2 AND state = 'processing' FOR NO KEY UPDATE
) AS fence
"""

#: More than the second after which an autovacuum makes room.
_DROP_TIMEOUT: Final = "3s"


class Mover:
    """Moves the rows of one load.

    Memory: the figures of its segments; and of one segment what the sieve holds of it, see `Sieve.memory_bytes`.

    :param sieve: finds the records of refused rows.
    :param recorder: keeps rejections, and judges their number.
    :param get: reads the object with a segment's rejections.
    :param check: that the target is what the plan was made for; raises `Failure`.
    """

    def __init__(
        self,
        upload_id: UUID,
        run: int,
        plan: Plan,
        *,
        sieve: Sieve,
        recorder: Recorder,
        get: Callable[[str], Awaitable[bytes]],
        check: Callable[[LaneConnection], Awaitable[None]],
    ) -> None:
        self._upload_id = upload_id
        self._run = run
        self._plan = plan
        self._staging = staging_name(upload_id)
        self._sieve = sieve
        self._recorder = recorder
        self._get = get
        self._check = check

    async def move(self, ledger: LaneConnection, target: LaneConnection, decoded_bytes: int | None) -> UploadRow:
        """Move all rows and complete the upload. Durable once it returns.

        :param ledger, target: lanes of this upload and run: one and the same, or for a dry run two.
        :param decoded_bytes: see `complete`.
        :raises RunLost: the run is over.
        :raises Failure: `staging_lost`, `ledger_incomplete`; `superseded`, `replace_refused`; `too_many_rejects`;
            what the target answers. Then everything is as it was before.
        """
        with translated(ledger):
            async with transaction(ledger):
                # The one commit of the load that somebody rests on; and a session that waits for the other is not idle.
                await ledger.execute(
                    "SET LOCAL synchronous_commit = on; SET LOCAL idle_in_transaction_session_timeout = 0"
                )
                if await ledger.fetchval(_FENCE, self._upload_id, self._run) is None:
                    raise RunLost(f"run {self._run} of upload {self._upload_id} is over")
                segments = await self._checked(ledger)
                if self._plan.dry_run:
                    with translated(target):
                        async with _undone(target):
                            await self._into_target(ledger, target, segments)
                else:
                    await self._into_target(ledger, target, segments)
                row = await complete(ledger, self._upload_id, self._run, decoded_bytes)
                await self._drop_staging(ledger)
        return row

    async def _drop_staging(self, connection: LaneConnection) -> None:
        """Drop the staging table; where somebody has been reading it for long (a dump does), the janitor will.

        The lock on the target is not to wait for that.
        """
        savepoint = connection.transaction()
        await savepoint.start()
        try:
            await connection.execute(f"SET LOCAL lock_timeout = '{_DROP_TIMEOUT}'; DROP TABLE {self._staging}")
        except asyncpg.LockNotAvailableError:
            log.info("load.staging_kept", table=self._staging)
            await savepoint.rollback()
        else:
            await savepoint.commit()

    async def _checked(self, ledger: LaneConnection) -> list[CommittedSegment]:
        """The segments, if the staging table has the rows that they say."""
        segments = await committed_segments(ledger, self._upload_id)
        expected = sum(segment.rows_inserted for segment in segments)
        try:
            columns = ", ".join(column_names(self._plan))
            found = await ledger.fetchval(
                f"SELECT count(*) FROM (SELECT {columns} FROM {self._staging}) AS staged"  # noqa: S608 (of an id)
            )
        except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as exc:
            raise staging_lost("The staging table is no longer there, or not what it was.") from exc
        if found != expected:
            raise staging_lost(f"The staging table has {found} rows where the ledger says {expected}.")
        return segments

    async def _into_target(
        self, ledger: LaneConnection, connection: LaneConnection, segments: list[CommittedSegment]
    ) -> None:
        plan = self._plan
        with refusals(plan.table, connection):
            try:
                target = await look_at(connection, plan)
                await self._check(connection)
                if plan.mode == "replace":
                    await empty(connection, plan, self._upload_id)
                rows = sum(segment.rows_inserted for segment in segments)
                if plan.conflict != "error" or not await self._all_at_once(connection, rows):
                    await self._by_segments(ledger, connection, target, segments)
                    if plan.mode == "replace":
                        await check_referring(connection, plan)
                # The lock that the rows have taken keeps it as it is from here on.
                await self._check(connection)
            except CannotSift as exc:
                raise Failure("table_denied", f"Rows cannot be moved into {plan.table}: {exc}") from exc

    async def _all_at_once(self, connection: LaneConnection, rows: int) -> bool:
        """Move everything by one statement; `False` if the target does not take every row."""
        columns = ", ".join(map(quote_identifier, self._plan.column_names))
        values = ", ".join(column_names(self._plan)[:-1])
        savepoint = connection.transaction()
        await savepoint.start()
        try:
            tag = await connection.execute(
                f"INSERT INTO {self._plan.table} ({columns}) OVERRIDING SYSTEM VALUE "  # noqa: S608 (quoted)
                f"SELECT {values} FROM {self._staging}"
            )
            # What is deferred would come with the COMMIT, where nobody could tell the rows any more.
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except asyncpg.PostgresError as exc:
            if not is_about_a_row(exc.sqlstate):
                raise
            log.info("load.moved_by_segments", sqlstate=exc.sqlstate)
            await savepoint.rollback()
            return False
        if tag != f"INSERT 0 {rows}":
            # A trigger drops rows: of which segment, only each for itself can say.
            log.info("load.moved_by_segments", tag=tag)
            await savepoint.rollback()
            return False
        await savepoint.commit()
        return True

    async def _by_segments(
        self,
        ledger: LaneConnection,
        connection: LaneConnection,
        target: Target,
        segments: list[CommittedSegment],
    ) -> None:
        """Move one segment after another, in the file's order, and let the ledger say what has become of each."""
        await create_holding(connection, self._plan, target.collations)
        await connection.execute(f"CREATE INDEX ON {self._staging} (line); ANALYZE {self._staging}")
        if self._plan.mode == "replace":
            await speak_at_once(connection, self._plan)
        else:
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        failed = sum(segment.rows_failed for segment in segments)
        read = sum(segment.rows_read for segment in segments)
        lines = [*(segment.first_line for segment in segments[1:]), NO_LINE]
        sources = [
            Source(self._staging, segment.rows_inserted, segment.first_line, next_line)
            for segment, next_line in zip(segments, lines, strict=True)
        ]
        number = 0
        async for done in self._inserted(connection, target, sources):
            segment, source = segments[number], sources[number]
            number += 1
            if done.refused:
                failed += done.refused
                rejects = await self._rejects(ledger, connection, segment, source.next)
                self._recorder.judge(read, failed, lost=rejects)
                kept = await self._recorder.keep(segment.number, rejects)
                await revise_segment(ledger, self._upload_id, _moved(segment, done, rejects), kept)
            elif done.inserted != segment.rows_inserted:
                await revise_segment(ledger, self._upload_id, _moved(segment, done), None)

    async def _inserted(
        self, connection: LaneConnection, target: Target, sources: list[Source]
    ) -> AsyncIterator[Inserted]:
        """What became of the rows of each source, in order; what is refused of one is in `REFUSED` when it comes."""
        plan = self._plan
        if not target.refers_to_itself:
            for source in sources:
                done = await insert_rows(connection, plan, target, source, whole=True)
                yield done
                if done.refused:
                    await connection.execute(f"TRUNCATE {REFUSED}")
            return
        # What a row refers to may lie in any of them, most often in the next or in the one before.
        found = [await insert_rows(connection, plan, target, source, whole=True) for source in sources]
        places = list(range(len(sources)))
        for _ in range(ROUNDS):
            refused = sum(done.refused for done in found)
            places.reverse()
            for place in places:
                if found[place].refused:
                    again = await insert_again(connection, plan, target, sources[place])
                    found[place] = found[place].and_then(again)
            if refused == sum(done.refused for done in found):
                break
        for done in found:
            yield done

    async def _rejects(
        self, ledger: LaneConnection, connection: LaneConnection, segment: CommittedSegment, next_line: int
    ) -> Rejects:
        """What the target has refused of a segment, beside what was rejected before.

        :param next_line: on which the next segment begins.
        """
        kept = await kept_of(ledger, self._upload_id, segment.number)
        packed = kept.rejects or (b"" if kept.rejects_key is None else await self._get(kept.rejects_key))
        before = Rejects(packed, segment.rejected)
        held = Held(segment.start, segment.end, segment.first_line, rejections=[before] if before else [])
        held.next_line = next_line
        return await self._sieve.rejects(connection, held)


def _moved(segment: CommittedSegment, done: Inserted, rejects: Rejects | None = None) -> SegmentFigures:
    """The figures of a segment once its rows are in the target.

    :param rejects: all of the segment, if the target has refused rows.
    """
    return replace(
        segment,
        rows_inserted=done.inserted,
        rows_updated=done.updated,
        rows_skipped=segment.rows_inserted - done.refused - done.inserted - done.updated,
        rejected=segment.rejected if rejects is None else rejects.by_code,
        first_rejects=() if rejects is None else rejects.first,
    )


@asynccontextmanager
async def _undone(connection: LaneConnection) -> AsyncIterator[None]:
    """A transaction that is rolled back in any case."""
    with suppress(_Undo):
        async with transaction(connection):
            await connection.execute("SET LOCAL lock_timeout = 0")
            yield
            raise _Undo


class _Undo(Exception):
    """Nothing is wrong: everything has been seen."""
