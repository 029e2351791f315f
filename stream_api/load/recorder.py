"""What comes last in the transaction of a segment: its rejects, and are they too many? then ledger row and commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from stream_api.config import RejectLimit
from stream_api.errors import Failure
from stream_api.ledger.literals import TRUE, Sql
from stream_api.ledger.pool import Connection
from stream_api.ledger.segments import Kept, SegmentFigures, commit_segment, count_rejected
from stream_api.load.rejects import Rejects

#: Packed rejections up to this size lie in the ledger row itself: most segments have none or a few.
IN_ROW_BYTES: Final = 16 * 1024
_ALL_KEPT: Final = "GET /upload/{id}/rejects says what is wrong with them."
_SOME_LOST: Final = (
    "The first of those with which the limit was passed are under `rejects` here, those of earlier segments at "
    "GET /upload/{id}/rejects; a dry run without a limit finds them all."
)


class Recorder:
    """Completes the ledger rows of one load.

    :param table: that the segments go into, as SQL names it. :param staged: it is not yet the target.
    :param limit: more rejections than this fail the load; `None` for any number.
    :param put: stores an object for the rejections of a segment, of which there are many, and returns its key: a new
        one each time, so that what a transaction that was rolled back has stored is nobody's.
    :param as_meant: a condition in SQL: the rows are where they were meant to go.
    """

    def __init__(
        self,
        upload_id: UUID,
        table: str,
        *,
        staged: bool = False,
        limit: RejectLimit | None,
        put: Callable[[int, bytes], Awaitable[str]],
        as_meant: Sql = TRUE,
    ) -> None:
        self._upload_id = upload_id
        self._table = table
        self._staged = staged
        self._limit = limit
        self._put = put
        self._as_meant = as_meant

    async def record(self, connection: Connection, figures: SegmentFigures, rejects: Rejects, header: bytes) -> None:
        """Complete the ledger row and commit the caller's transaction.

        :raises Failure: `too_many_rejects`; those of the store and of `commit_segment`.
        """
        limited = rejects and self._limit is not None
        if limited:
            # A look ahead: what is too much as it is stores no object that nobody would name.
            await self._judge_with(connection, figures, rejects, alone=False)
        kept = await self.keep(figures.number, rejects, header)
        if limited:
            # After the object is stored: other lanes wait from here to the commit.
            await self._judge_with(connection, figures, rejects, alone=True)
        await commit_segment(connection, self._upload_id, figures, self._table, kept, as_meant=self._as_meant)

    async def _judge_with(
        self, connection: Connection, figures: SegmentFigures, rejects: Rejects, *, alone: bool
    ) -> None:
        read, failed = await count_rejected(connection, self._upload_id, alone=alone)
        self.judge(read + figures.rows_read, failed + figures.rows_failed, final=False, lost=rejects)

    async def keep(self, number: int, rejects: Rejects, header: bytes = b"") -> Kept:
        """What the ledger row of a segment is to name, stored where it does not lie in the row itself.

        :raises Failure: those of the store.
        """
        if len(rejects.packed) > IN_ROW_BYTES:
            # Before the commit: a ledger row never names what is not there.
            return Kept(rejects_key=await self._put(number, rejects.packed), header=header or None)
        return Kept(rejects=rejects.packed or None, header=header or None)

    def judge(self, read: int, failed: int, *, final: bool = True, lost: Rejects | None = None) -> None:
        """Compare what was rejected with the limit.

        :param final: these are the rows of the whole file.
        :param lost: those that are rolled back with the caller's transaction: nobody will find them in the ledger.
        :raises Failure: `too_many_rejects`.
        """
        limit = self._limit
        if limit is None or not limit.exceeded(read, failed, final=final):
            return
        detail = (
            f"{failed} of the {read} rows read so far were rejected, and the limit is {limit}. "
            f"{'Nothing is in the table.' if self._staged else 'What is loaded stays.'} "
            f"{_ALL_KEPT if lost is None else _SOME_LOST} Mend the file and upload it again, or retry with a higher "
            "maxRejects."
        )
        first = [] if lost is None else list(lost.first)
        raise Failure("too_many_rejects", detail, rowsRead=read, rowsFailed=failed, limit=str(limit), rejects=first)
