"""`GET /upload/{id}/rejects`."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final
from uuid import UUID

import structlog
from aiohttp import hdrs, web

from stream_api.errors import Failure
from stream_api.http.collaborators import COLLABORATORS, Collaborators
from stream_api.http.status import not_found, upload_id_of
from stream_api.ledger.rows import ENDED

log = structlog.stdlib.get_logger(__name__)

#: Whether more may come: `false` while the upload waits or is loaded.
_COMPLETE: Final = "Rejects-Complete"
_FORMATS: Final = ("csv", "original")


async def get_rejects(request: web.Request) -> web.StreamResponse:
    """The rejects of an upload in the file's order: what committed segments have, and no more.

    `?format=original` gives the header and the rejected records alone, byte for byte. An answer that breaks off is cut,
    so that nobody takes a part for the whole.
    """
    collaborators = request.app[COLLABORATORS]
    upload_id, wanted = upload_id_of(request), request.query.get("format", "csv")
    if wanted not in _FORMATS:
        raise Failure("bad_request", f"format is {' or '.join(_FORMATS)}, not {wanted[:50]!r}.")
    complete = await _is_complete(collaborators, upload_id)
    rejects = collaborators.rejects
    chunks = rejects.as_csv(upload_id) if wanted == "csv" else rejects.original(upload_id)
    name = f"{upload_id}-{'rejects' if wanted == 'csv' else 'rejected-records'}.csv"
    response = web.StreamResponse(
        headers={
            _COMPLETE: "true" if complete else "false",
            hdrs.CONTENT_DISPOSITION: f'attachment; filename="{name}"',
            hdrs.CACHE_CONTROL: "no-store",
        }
    )
    response.content_type = "text/csv"
    if wanted == "csv":
        response.charset = "utf-8"
    async with aclosing(chunks):
        # What fails before the first byte is answered as any failure.
        first = await anext(chunks)
        await response.prepare(request)
        try:
            await response.write(first)
            async for chunk in chunks:
                await response.write(chunk)
        except BaseException as exc:
            # The status is sent: an end of the connection in the middle is all that can still be said.
            if request.transport is not None:
                request.transport.abort()
            if not isinstance(exc, Failure | ConnectionError):
                raise
            log.warning("rejects.cut", upload_id=str(upload_id), error=str(exc))
            return response
    await response.write_eof()
    return response


async def _is_complete(collaborators: Collaborators, upload_id: UUID) -> bool:
    """Whether the upload has ended.

    :raises Failure: `upload_not_found`; `upload_gone` when it is expired; those of database and storage.
    """
    row = await collaborators.rows.get(upload_id)
    if row is None:
        if await collaborators.manifests.read(upload_id) is None:
            raise not_found()
        return False
    if row.state == "expired":
        raise Failure("upload_gone", "The upload is expired: its rejects are no longer stored.", uploadStatus=row.state)
    return row.state in ENDED
