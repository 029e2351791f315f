"""What clients may see of a load, kept in Redis: a copy, whose loss or lateness harms nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from operator import itemgetter
from typing import Final, Protocol
from uuid import UUID

import msgspec
import structlog

from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure
from stream_api.flow.tasks import cancel_and_wait
from stream_api.ledger.rows import ENDED, UploadRow
from stream_api.ledger.segments import SegmentFigures
from stream_api.load.rejects import SHOWN
from stream_api.options import Options
from stream_api.status.record import StatusRecord, WebhookRecord
from stream_api.storage.manifests import Amendments, Manifest

log = structlog.get_logger()

#: The least time between two records of a load under way: a person reads no faster, and Redis is spared.
_INTERVAL_SECONDS = 0.25


#: What a transient failure waits for.
_WAITED_FOR: Final = {
    "database_unavailable": "database",
    "database_refused": "database",
    "storage_unavailable": "storage",
    "storage_refused": "storage",
    "queue_unavailable": "queue",
    "dataset_busy": "dataset",
}


class Statuses(Protocol):
    """Keeps status records; both methods raise `Failure` `queue_unavailable`."""

    async def read(self, upload_id: UUID, /) -> StatusRecord | None:
        """The record of an upload, if there is one."""

    async def write(self, record: StatusRecord, /) -> None:
        """Replace the record of that upload."""


class Reporter:
    """Writes the status records of loads. A Redis that is away delays no load: the next record makes up for it."""

    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses

    async def write(self, manifest: Manifest, row: UploadRow) -> None:
        """Write the record of `row`."""
        try:
            await self._statuses.write(status_record(manifest, row))
        except Failure as failure:
            log.warning("load.status_not_written", code=failure.code, detail=failure.detail)

    async def waits(self, upload_id: UUID, run: int | None, failure: Failure) -> None:
        """Let the record say what a load that is interrupted by `failure` waits for.

        :param run: the load's; `None` when it was interrupted before it had one. Records of other runs stay.
        """
        service = _WAITED_FOR.get(failure.code)
        try:
            record = await self._statuses.read(upload_id)
            # One that has ended, cancelled in the meantime, waits for nothing.
            if service is None or record is None or record.status in ENDED or record.waiting_for == service:
                return
            if run is None or record.run == run:
                await self._statuses.write(msgspec.structs.replace(record, waiting_for=service))
        except Failure as unwritten:
            log.warning("load.status_not_written", code=unwritten.code, detail=unwritten.detail)

    async def bring_up_to(self, row: UploadRow) -> None:
        """Let the record say what the row says, if there is one: without, the status is answered from the row itself.

        For who has no manifest at hand, as when only the state of a webhook has changed.
        """
        try:
            record = await self._statuses.read(row.id)
            if record is not None:
                await self._statuses.write(
                    record_of_row(
                        row,
                        file_name=record.file_name,
                        size_bytes=record.size_bytes,
                        sha256=record.sha256,
                        dialect=record.dialect,
                        options=record.options,
                        max_rejects=record.max_rejects,
                    )
                )
        except Failure as failure:
            log.warning("load.status_not_written", code=failure.code, detail=failure.detail)

    @asynccontextmanager
    async def following(
        self,
        manifest: Manifest,
        row: UploadRow,
        expected_bytes: Callable[[], int | None] = lambda: None,
    ) -> AsyncIterator[Callable[[SegmentFigures], Awaitable[None]]]:
        """Write the record of a load that runs, and again while segments are committed.

        Yields what lanes call after a commit; it never waits for Redis.

        :param row: with the totals of what was committed before: every count stays a sum over the ledger.
        :param expected_bytes: what the load guesses to be the size of the decoded data, where that is not known.
        """
        changed = asyncio.Event()
        changed.set()

        async def committed(figures: SegmentFigures) -> None:
            nonlocal row
            row = add_segment(row, figures)
            changed.set()

        async def keep_writing() -> None:
            while True:
                await changed.wait()
                changed.clear()
                await self.write(manifest, replace(row, expected_bytes=expected_bytes()))
                await asyncio.sleep(_INTERVAL_SECONDS)

        writing = asyncio.create_task(keep_writing(), name="report")
        try:
            yield committed
        finally:
            # A record under way may not overtake the one of the end state.
            await cancel_and_wait(writing)


def add_segment(row: UploadRow, figures: SegmentFigures) -> UploadRow:
    """The row with the totals that it has once this segment is committed."""
    staged = row.staging_table is not None
    return replace(
        row,
        segments=row.segments + 1,
        committed_bytes=row.committed_bytes + figures.end - figures.start,
        rows_read=row.rows_read + figures.rows_read,
        rows_inserted=row.rows_inserted + (0 if staged else figures.rows_inserted),
        rows_staged=row.rows_staged + (figures.rows_processed if staged else 0),
        rows_updated=row.rows_updated + figures.rows_updated,
        rows_skipped=row.rows_skipped + figures.rows_skipped,
        rejected=dict(Counter(row.rejected) + Counter(figures.rejected)),
        first_rejects=sorted([*row.first_rejects, *figures.first_rejects], key=itemgetter("byteOffset"))[:SHOWN],
    )


def status_record(manifest: Manifest, row: UploadRow) -> StatusRecord:
    """The record that an upload's row stands for."""
    return record_of_row(
        row,
        file_name=manifest.file_name,
        size_bytes=manifest.size_bytes,
        sha256=manifest.sha256,
        dialect=manifest.dialect,
        options=manifest.options,
        max_rejects=manifest.max_rejects,
    )


def record_of_row(
    row: UploadRow,
    *,
    file_name: str | None,
    size_bytes: int,
    sha256: str,
    dialect: Dialect | None,
    options: Options | None,
    max_rejects: str | None,
) -> StatusRecord:
    """The record that an upload's row stands for, with what only the manifest says of the file.

    :param dialect: and `options` and `max_rejects`: of the manifest; what retries have said anew, which is in the row,
        goes before it.
    """
    if row.amendments is not None:
        said = Amendments.decode(row.amendments)
        dialect, options, max_rejects = said.dialect, said.options, said.max_rejects
    return StatusRecord(
        upload_id=row.id,
        status=row.state,
        rows_read=row.rows_read,
        rows_processed=row.rows_processed,
        rows_failed=row.rows_failed,
        rows_inserted=row.rows_inserted,
        rows_updated=row.rows_updated,
        rows_skipped=row.rows_skipped,
        rows_staged=row.rows_staged,
        rows_valid=row.rows_valid,
        mode=row.mode,
        dry_run=row.dry_run,
        rejected=row.rejected,
        rejects=row.first_rejects,
        progress=row.progress,
        error=row.error,
        file_name=file_name,
        size_bytes=size_bytes,
        sha256=sha256,
        dialect=dialect,
        options=options,
        max_rejects=max_rejects,
        dataset=row.dataset,
        run=row.run,
        revision=row.revision,
        webhook=None
        if row.webhook_state is None
        else WebhookRecord(
            state=row.webhook_state,
            attempts=row.webhook_attempts,
            last_error=row.webhook_error,
            last_at=row.webhook_at,
        ),
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.ended_at,
        updated_at=row.updated_at,
    )
