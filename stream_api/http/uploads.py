"""`POST /upload` and the status."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from stream_api.errors import Failure
from stream_api.http.collaborators import COLLABORATORS, Collaborators
from stream_api.http.json import json_response
from stream_api.http.status import document_of_row, find_document, record_of_manifest, status_url, upload_id_of
from stream_api.http.telling import best_effort, tell_redis, within_redis_time
from stream_api.http.waiting import WAIT, wait_for_end, wait_seconds_of, why_not_completed
from stream_api.ledger.rows import ENDED
from stream_api.storage.manifests import Manifest
from stream_api.upload.body import Incoming

_KEY: Final = "Idempotency-Key"
_REPLAYED: Final = "Idempotency-Replayed"


async def post_upload(request: web.Request) -> web.Response:
    """Take in a file. 202 means that it is stored; 200, after `?wait=`, that its rows are in the table.

    :raises Failure: after `?wait=`, with `uploadId`, also when the upload has ended otherwise.
    """
    collaborators = request.app[COLLABORATORS]
    seconds = wait_seconds_of(request)
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding != "identity":
        detail = (
            f"Content-Encoding {encoding[:100]!r} is not supported: send the body as it is. A file that is compressed "
            "by gzip or zstd is known by its content: without that header it is taken."
        )
        raise Failure("content_encoding_unsupported", detail)
    key = _idempotency_key(request)
    parameters = [each for each in request.query.items() if each[0] != WAIT]
    incoming = Incoming(request.headers, parameters, request.content, request.content_length, key)
    received = await collaborators.receive(incoming)
    manifest, status, headers = received.manifest, "uploaded", {}
    if received.replayed:
        status, headers = await _status_of_replayed(collaborators, manifest), {_REPLAYED: "true"}
    else:
        await tell_redis(collaborators, record_of_manifest(manifest))
    url = status_url(manifest.upload_id)
    headers[hdrs.LOCATION] = url
    if seconds is not None:
        row = await wait_for_end(request, manifest.upload_id, seconds)
        if row is not None and row.state != "completed":
            raise why_not_completed(row)
        if row is not None:
            return json_response(document_of_row(row, manifest)[1], headers=headers)
        known = await best_effort(manifest.upload_id, "status", find_document(collaborators, manifest.upload_id))
        status = status if known is None else known["status"]
    document = {"uploadId": str(manifest.upload_id), "status": status, "statusUrl": url}
    return json_response(document, status=HTTPStatus.ACCEPTED, headers=headers)


async def get_status(request: web.Request) -> web.Response:
    """All that a client may know of an upload; with `?wait=`, when it has ended or the time is over."""
    collaborators = request.app[COLLABORATORS]
    upload_id, seconds = upload_id_of(request), wait_seconds_of(request)
    document = await find_document(collaborators, upload_id)
    if seconds is not None and document["status"] not in ENDED:
        row = await wait_for_end(request, upload_id, seconds)
        if row is None:
            document = await find_document(collaborators, upload_id)
        else:
            # Redis need not know of the end yet.
            manifest = await best_effort(upload_id, "manifest", collaborators.manifests.read(upload_id))
            document = document_of_row(row, manifest)[1]
    return json_response(document, headers={hdrs.CACHE_CONTROL: "no-store"})


def _idempotency_key(request: web.Request) -> str | None:
    """The key as it came; `None` without one.

    :raises Failure: `idempotency_key_invalid` if there is more than one.
    """
    keys = request.headers.getall(_KEY, [])
    if len(keys) > 1:
        raise Failure("idempotency_key_invalid", f"There is more than one {_KEY}.")
    return keys[0] if keys else None


async def _status_of_replayed(collaborators: Collaborators, manifest: Manifest) -> str:
    """What has become of an upload that an earlier request has stored.

    :raises Failure: `storage_unavailable` if it cannot be said that it is stored: the request of which the manifest is
        may have ended so that its data is gone.
    """
    status: str = (await find_document(collaborators, manifest.upload_id))["status"]
    if status == "uploaded":
        if not await collaborators.manifests.has_data(manifest):
            # Redis may not have heard of its end.
            row = await collaborators.rows.get(manifest.upload_id)
            if row is not None and row.state != "uploaded":
                return row.state
            raise Failure("storage_unavailable", "The upload with this Idempotency-Key changes just now: try again.")
        # The process of the earlier request may have ended before it could do this.
        await within_redis_time(
            manifest.upload_id,
            best_effort(manifest.upload_id, "enqueue", collaborators.queue.enqueue(manifest.upload_id)),
        )
    return status
