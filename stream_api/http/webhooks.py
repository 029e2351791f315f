"""`POST /upload/{id}/webhook`."""

from __future__ import annotations

from http import HTTPStatus

import structlog
from aiohttp import hdrs, web

from stream_api.errors import Failure
from stream_api.http.collaborators import COLLABORATORS
from stream_api.http.json import json_response
from stream_api.http.status import document_of_row, status_url, upload_id_of
from stream_api.storage.manifests import Manifest

log = structlog.stdlib.get_logger(__name__)


async def post_webhook(request: web.Request) -> web.Response:
    """Send the webhook of an upload that has ended again, with the same id and body, and tries of its own."""
    collaborators = request.app[COLLABORATORS]
    upload_id = upload_id_of(request)
    try:
        row = await collaborators.send_webhook(upload_id)
    except Failure as failure:
        if failure.code != "upload_not_found" or await collaborators.manifests.read(upload_id) is None:
            raise
        detail = "The upload has not been loaded yet: its webhook is sent when it ends."
        raise Failure("upload_not_ended", detail, uploadStatus="uploaded") from failure
    # It is on its way: what is left is to say so as well as may be.
    manifest: Manifest | None = None
    try:
        manifest = await collaborators.manifests.read(upload_id)
        if manifest is not None:
            await collaborators.statuses.write(document_of_row(row, manifest)[0])
    except Failure as failure:
        log.warning("webhooks.status_not_written", upload_id=str(upload_id), code=failure.code)
    document = document_of_row(row, manifest)[1]
    return json_response(document, status=HTTPStatus.ACCEPTED, headers={hdrs.LOCATION: status_url(upload_id)})
