"""The transaction of a segment: the fence and the claim of its ledger row at its beginning, that row at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

import asyncpg
import structlog

from stream_api.errors import Failure
from stream_api.ledger.errors import translated
from stream_api.ledger.segments import SegmentFigures, claim_segment
from stream_api.load.copying import Sent
from stream_api.load.recorder import Recorder
from stream_api.load.sieve import Loaded
from stream_api.load.transacting import rolled_back_if_left

log = structlog.get_logger()

#: Serialization, deadlock, a lock not had in time: it concerns one transaction, and the connection works on.
_OF_THE_MOMENT: Final = frozenset({"40001", "40P01", "55P03"})
#: So often a segment is claimed before such trouble is the load's. Each waits for locks itself.
_CLAIMS: Final = 3


def of_the_moment(failure: Failure) -> bool:
    """Whether a segment may be loaded anew at once, on the same connection."""
    return failure.extra.get("sqlstate") in _OF_THE_MOMENT


class Claims:
    """The segments of one run, on the connection of one lane.

    :param recorder: completes the ledger rows.
    """

    def __init__(self, connection: asyncpg.Connection, upload_id: UUID, run: int, recorder: Recorder) -> None:
        self.connection: Final = connection
        self._upload_id = upload_id
        self._run = run
        self._recorder = recorder

    @asynccontextmanager
    async def claimed(self, number: int) -> AsyncIterator[bool]:
        """A transaction with the fence and the segment's ledger row; false where the segment is loaded already.

        `record` commits it, and whatever is raised rolls it back.

        :raises RunLost: the run is no longer this worker's.
        """
        with translated(self.connection):
            async with rolled_back_if_left(self.connection):
                yield await claim_segment(self.connection, self._upload_id, self._run, number)

    async def record(self, number: int, start: int, first_line: int, sent: Sent, loaded: Loaded) -> SegmentFigures:
        """Complete the ledger row and commit its transaction.

        :raises Failure: see `Recorder.record`.
        """
        figures = SegmentFigures(
            number=number,
            start=start,
            end=sent.end,
            first_line=first_line,
            lines=sent.lines,
            rows_read=loaded.rows_read,
            rows_inserted=loaded.rows_inserted,
            rows_updated=loaded.rows_updated,
            rows_skipped=loaded.rows_skipped,
            rejected=loaded.rejects.by_code,
            first_rejects=loaded.rejects.first,
        )
        await self._recorder.record(self.connection, figures, loaded.rejects, sent.header)
        return figures


async def claiming(
    load: Callable[[], Awaitable[SegmentFigures | None]], sent: Sent | None = None
) -> SegmentFigures | None:
    """Load a segment; trouble of the moment is its own affair as long as it can begin anew.

    :param sent: says whether its batches are being used up; `None` if it does not depend on them.
    """
    for tried in range(1, _CLAIMS + 1):
        try:
            return await load()
        except Failure as failure:
            if not of_the_moment(failure) or (sent is not None and sent.claimed) or tried == _CLAIMS:
                raise
            log.info("load.segment_claimed_again", **failure.extra)
    raise AssertionError
