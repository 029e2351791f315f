"""`DELETE /upload/{id}`: cancel an upload that waits, runs or has failed, on whichever worker it runs."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final
from uuid import UUID

import structlog
from aiohttp import web

from stream_api.errors import Failure
from stream_api.http.collaborators import COLLABORATORS, Collaborators
from stream_api.http.json import json_response
from stream_api.http.status import document_of_row, not_found, upload_id_of
from stream_api.ledger.rows import UploadRow
from stream_api.load.loader import intake_of
from stream_api.storage.manifests import Manifest

log = structlog.stdlib.get_logger(__name__)

#: The removal of the data may take so long; later it is done by the reconciler, which finds the marker.
_CLEAN_UP_SECONDS: Final = 10.0


async def delete_upload(request: web.Request) -> web.Response:
    """Cancel an upload. What is committed stays in the table, and nothing is added to it once this answers.

    The worker that loads it is told first, for its lanes share the upload's row without a gap and would hold up the
    cancelling. What counts is PostgreSQL: from then on nobody may load it, and everything that follows can be done by
    somebody else, who finds the row: a worker that takes the job, the reconciler that finds the marker. (Where
    PostgreSQL cannot be asked, the reconciler has the load that was stopped go on.)

    :raises Failure: `upload_completed`; `upload_gone` when it is expired; `upload_not_found`; what keeps the database
        from being asked.
    """
    collaborators = request.app[COLLABORATORS]
    upload_id = upload_id_of(request)
    manifest, row, removable = await _cancel(collaborators, upload_id)
    # Another worker may have taken it in between. The fence keeps that from committing anything; it need not find that
    # out by itself.
    await collaborators.signals.tell_cancelled(upload_id)
    record, document = document_of_row(row, manifest)
    try:
        await collaborators.statuses.write(record)
    except Failure as failure:
        log.warning("cancel.status_not_written", upload_id=str(upload_id), code=failure.code)
    await collaborators.announce(row)
    removed = removable and await _clean_up(collaborators, manifest, row)
    return json_response(document, status=HTTPStatus.OK if removed else HTTPStatus.ACCEPTED)


async def _cancel(collaborators: Collaborators, upload_id: UUID) -> tuple[Manifest | None, UploadRow, bool]:
    """Manifest and row of the cancelled upload, and whether it is known what there is to remove."""
    manifest: Manifest | None = None
    unreadable: Failure | None = None
    try:
        manifest = await collaborators.manifests.read(upload_id)
    except Failure as failure:
        unreadable = failure
    if manifest is not None:
        intake = intake_of(manifest, collaborators.datasets)
    else:
        known = await collaborators.rows.get(upload_id)
        if known is None:
            raise unreadable or not_found()
        intake = known.intake
    await collaborators.signals.tell_cancelled(upload_id)
    return manifest, await collaborators.rows.cancel(intake), unreadable is None


async def _clean_up(collaborators: Collaborators, manifest: Manifest | None, row: UploadRow) -> bool:
    """Remove the data and the marker; whether that is done."""
    try:
        async with asyncio.timeout(_CLEAN_UP_SECONDS):
            if manifest is None:
                await collaborators.manifests.clear_pending(row.id)
            else:
                await collaborators.clean_up(manifest, row)
    except (Failure, TimeoutError) as error:
        code = error.code if isinstance(error, Failure) else "timeout"
        log.warning("cancel.not_cleaned_up", upload_id=str(row.id), code=code)
        return False
    return True
