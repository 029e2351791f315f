"""`POST /upload/{id}/retry`: load a failed upload again, as it was or as the query says it should have been."""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from aiohttp import hdrs, web

from stream_api.errors import Failure, RunLost
from stream_api.http.collaborators import COLLABORATORS, Collaborators
from stream_api.http.json import json_response
from stream_api.http.status import document_of_row, status_url, upload_id_of
from stream_api.http.telling import best_effort, tell_redis
from stream_api.ledger.rows import UploadRow
from stream_api.storage.manifests import Manifest


async def post_retry(request: web.Request) -> web.Response:
    """Load a failed upload again, from the data that is stored.

    The parameters of the query are fields as those of an upload, about dialect, header, options and limits. They stand
    from now on, for this retry and all that follow.

    :raises Failure: `bad_request`; as `_reopen` and `_why_not_stored`.
    """
    collaborators = request.app[COLLABORATORS]
    upload_id = upload_id_of(request)
    if request.can_read_body:
        # A form would look as if it had been heard.
        detail = "A retry takes no body: what it has to say stands in its query, as in /retry?mode=atomic."
        raise Failure("bad_request", detail)
    manifest = await collaborators.manifests.read(upload_id)
    if manifest is None:
        raise await _why_not_stored(collaborators, upload_id)
    if not await collaborators.manifests.has_data(manifest):
        known = await collaborators.rows.get(upload_id)
        if known is not None and known.state == "failed":
            raise Failure("upload_gone", "The upload's data is no longer stored.", uploadStatus=known.state)
        # Of any other state the row itself says why it cannot be retried.
    try:
        row = await _reopen(collaborators, manifest, list(request.query.items()))
    except Failure as failure:
        if failure.code == "upload_gone" or failure.extra.get("uploadStatus") == "completed":
            await best_effort(upload_id, "unmark", collaborators.manifests.clear_pending(upload_id))
        if failure.code != "upload_not_found":
            raise
        # It is stored, and no worker has taken it yet.
        await best_effort(upload_id, "enqueue", collaborators.queue.enqueue(upload_id))
        detail = "The upload has not been loaded yet, and only a failed one can be retried."
        raise Failure("upload_not_failed", detail, uploadStatus="uploaded") from failure
    # Whoever cleaned up after the failure may have removed the mark in between, before the row said so.
    await best_effort(upload_id, "mark", collaborators.manifests.mark_pending(upload_id))
    record, document = document_of_row(row, manifest)
    await tell_redis(collaborators, record)
    return json_response(document, status=HTTPStatus.ACCEPTED, headers={hdrs.LOCATION: status_url(upload_id)})


async def _reopen(collaborators: Collaborators, manifest: Manifest, parameters: list[tuple[str, str]]) -> UploadRow:
    """The row of the upload, which waits to be loaded again.

    :raises Failure: as `Rows.reopen` and `Amend`.
    """
    upload_id = manifest.upload_id
    while True:
        known = await collaborators.rows.get(upload_id) if parameters else None
        amended = None
        if parameters:
            said = manifest if known is None else manifest.amended(known.amendments)
            amended = await collaborators.amend(said, parameters)
        # Before the row says that there is something to do: from then on the marker is what a lost job is rebuilt from.
        await collaborators.manifests.mark_pending(upload_id)
        if amended is None or known is None:
            return await collaborators.rows.reopen(upload_id)
        try:
            return await collaborators.rows.reopen(
                upload_id, run=known.run, amendments=amended.json, of_plan=amended.of_plan
            )
        except RunLost:
            continue  # it has been retried and has failed again meanwhile: what that has said stands too


async def _why_not_stored(collaborators: Collaborators, upload_id: UUID) -> Failure:
    """Why an upload without a manifest cannot be retried."""
    row = await collaborators.rows.get(upload_id)
    if row is None:
        return Failure("upload_not_found", "There is no upload with this id.")
    if row.state in ("uploaded", "processing", "completed"):
        detail = f"The upload is {row.state}, and only a failed one can be retried."
        return Failure("upload_not_failed", detail, uploadStatus=row.state)
    return Failure("upload_gone", "The upload's data is no longer stored.", uploadStatus=row.state)
