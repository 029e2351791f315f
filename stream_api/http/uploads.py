"""`POST /upload` and `POST /upload/{id}/retry`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Final, TypeVar
from uuid import UUID

import structlog
from aiohttp import hdrs, web

from stream_api.errors import Failure
from stream_api.http.collaborators import COLLABORATORS, Collaborators
from stream_api.http.json import json_response
from stream_api.http.status import document_of_row, find_document, record_of_manifest, status_url, upload_id_of
from stream_api.http.waiting import WAIT, wait_for_end, wait_seconds_of, why_not_completed
from stream_api.ledger.rows import ENDED
from stream_api.status.record import StatusRecord
from stream_api.storage.manifests import Manifest
from stream_api.upload.body import Incoming

T = TypeVar("T")
log = structlog.stdlib.get_logger(__name__)

#: Status and job of an upload that is stored may take so long; the reconciler makes up for what fails.
_REDIS_SECONDS: Final = 4.0
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
        await _tell_redis(collaborators, record_of_manifest(manifest))
    url = status_url(manifest.upload_id)
    headers[hdrs.LOCATION] = url
    if seconds is not None:
        row = await wait_for_end(request, manifest.upload_id, seconds)
        if row is not None and row.state != "completed":
            raise why_not_completed(row)
        if row is not None:
            return json_response(document_of_row(row, manifest)[1], headers=headers)
        known = await _best_effort(manifest.upload_id, "status", find_document(collaborators, manifest.upload_id))
        status = status if known is None else known["status"]
    document = {"uploadId": str(manifest.upload_id), "status": status, "statusUrl": url}
    return json_response(document, status=HTTPStatus.ACCEPTED, headers=headers)


async def post_retry(request: web.Request) -> web.Response:
    """Load a failed upload again, from the data that is stored."""
    collaborators = request.app[COLLABORATORS]
    upload_id = upload_id_of(request)
    manifest = await collaborators.manifests.read(upload_id)
    if manifest is None:
        raise await _why_not_stored(collaborators, upload_id)
    if not await collaborators.manifests.has_data(manifest):
        known = await collaborators.rows.get(upload_id)
        if known is not None and known.state == "failed":
            raise Failure("upload_gone", "The upload's data is no longer stored.", uploadStatus=known.state)
        # Of any other state the row itself says why it cannot be retried.
    # Before the row says that there is something to do: from then on the marker is what a lost job is rebuilt from.
    await collaborators.manifests.mark_pending(upload_id)
    try:
        row = await collaborators.rows.reopen(upload_id)
    except Failure as failure:
        if failure.code == "upload_gone" or failure.extra.get("uploadStatus") == "completed":
            await _best_effort(upload_id, "unmark", collaborators.manifests.clear_pending(upload_id))
        if failure.code != "upload_not_found":
            raise
        # It is stored, and no worker has taken it yet.
        await _best_effort(upload_id, "enqueue", collaborators.queue.enqueue(upload_id))
        detail = "The upload has not been loaded yet, and only a failed one can be retried."
        raise Failure("upload_not_failed", detail, uploadStatus="uploaded") from failure
    # Whoever cleaned up after the failure may have removed the mark in between, before the row said so.
    await _best_effort(upload_id, "mark", collaborators.manifests.mark_pending(upload_id))
    record, document = document_of_row(row, manifest)
    await _tell_redis(collaborators, record)
    return json_response(document, status=HTTPStatus.ACCEPTED, headers={hdrs.LOCATION: status_url(upload_id)})


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
            manifest = await _best_effort(upload_id, "manifest", collaborators.manifests.read(upload_id))
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
        await _within_redis_time(
            manifest.upload_id,
            _best_effort(manifest.upload_id, "enqueue", collaborators.queue.enqueue(manifest.upload_id)),
        )
    return status


async def _why_not_stored(collaborators: Collaborators, upload_id: UUID) -> Failure:
    """Why an upload without a manifest cannot be retried."""
    row = await collaborators.rows.get(upload_id)
    if row is None:
        return Failure("upload_not_found", "There is no upload with this id.")
    if row.state in ("uploaded", "processing", "completed"):
        detail = f"The upload is {row.state}, and only a failed one can be retried."
        return Failure("upload_not_failed", detail, uploadStatus=row.state)
    return Failure("upload_gone", "The upload's data is no longer stored.", uploadStatus=row.state)


async def _tell_redis(collaborators: Collaborators, record: StatusRecord) -> None:
    """Status and job of an upload, both as well as may be: a Redis that is away or hangs costs a bounded time."""
    upload_id = record.upload_id

    async def tell() -> None:
        # The status first, so that a worker which is quick does not find its own overwritten.
        await _best_effort(upload_id, "status", collaborators.statuses.write(record))
        await _best_effort(upload_id, "enqueue", collaborators.queue.enqueue(upload_id))

    await _within_redis_time(upload_id, tell())


async def _within_redis_time(upload_id: UUID, action: Awaitable[T]) -> None:
    try:
        async with asyncio.timeout(_REDIS_SECONDS):
            await action
    except TimeoutError:
        log.warning("upload.step_left_undone", upload_id=str(upload_id), step="redis", code="timeout")


async def _best_effort(upload_id: UUID, step: str, action: Awaitable[T]) -> T | None:
    """Do something that somebody else makes up for if it fails."""
    try:
        return await action
    except Failure as failure:
        log.warning("upload.step_left_undone", upload_id=str(upload_id), step=step, code=failure.code)
        return None
