"""`?wait=`: a request that is answered when an upload has ended, without asking anybody again and again."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Any, Final, cast
from uuid import UUID

import structlog
from aiohttp import web

from stream_api.errors import CODES, Failure
from stream_api.flow.tasks import cancel_and_wait
from stream_api.http.collaborators import COLLABORATORS, Collaborators
from stream_api.http.protocol import Protocol
from stream_api.http.status import status_url
from stream_api.ledger.rows import UploadRow

log = structlog.stdlib.get_logger(__name__)

#: The parameter of a query that says how long.
WAIT: Final = "wait"
#: A signal can get lost, and a worker can die between the end state and its signal: who waits looks this often.
LOOK_AGAIN_SECONDS: Final = 5.0


def wait_seconds_of(request: web.Request) -> float | None:
    """How long the client wants to wait, at most as long as it may; `None` when it did not ask for that.

    :raises Failure: `bad_request`.
    """
    values = request.query.getall(WAIT, [])
    if not values:
        return None
    longest = request.app[COLLABORATORS].max_wait_seconds
    value = values[0].strip().lower()
    if len(values) > 1:
        raise Failure("bad_request", "The parameter wait was given more than once.")
    if value in {"true", "false"}:
        return longest if value == "true" else None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        detail = f"wait={values[0][:100]} is not understood: it takes true, false or a number of seconds."
        raise Failure("bad_request", detail)
    return min(seconds, longest)


async def wait_for_end(request: web.Request, upload_id: UUID, seconds: float) -> UploadRow | None:
    """Wait until the upload is in an end state, as PostgreSQL has it.

    :returns: its row; `None` when the time was over, the process is to stop, or the client has left.
    """
    collaborators = request.app[COLLABORATORS]
    ended = asyncio.create_task(_ended(collaborators, upload_id), name="wait-for-end")
    others = [
        asyncio.create_task(collaborators.stopping.wait(), name="wait-for-stop"),
        asyncio.create_task(cast("Protocol", request.protocol).gone.wait(), name="wait-for-client"),
    ]
    try:
        await asyncio.wait({ended, *others}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else None
    finally:
        await cancel_and_wait(ended, *others)


async def _ended(collaborators: Collaborators, upload_id: UUID) -> UploadRow:
    with collaborators.signals.waiting(upload_id) as signal:
        while True:
            signal.clear()
            try:
                if await collaborators.rows.has_ended(upload_id):
                    row = await collaborators.rows.get(upload_id)
                    if row is not None and row.ended:
                        return row
            except Failure as failure:
                # It waits for the database as well.
                log.info("wait.cannot_look", upload_id=str(upload_id), code=failure.code)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                    await signal.wait()


def why_not_completed(row: UploadRow) -> Failure:
    """What is to be said to a client that has waited for rows in the table, when an upload has ended otherwise.

    The code is the load's own where it has failed.
    """
    named: dict[str, Any] = {"uploadId": str(row.id), "statusUrl": status_url(row.id), "uploadStatus": row.state}
    if row.state == "failed":
        error = dict(row.error or {})
        code, message = str(error.pop("code", "")), str(error.pop("message", "The load has failed."))
        return Failure(code if code in CODES else "internal_error", message, **(error | named))
    if row.state == "cancelled":
        detail = f"The upload was cancelled when {row.rows_processed} of its rows were in the table, where they stay."
        return Failure("upload_cancelled", detail, **named, rowsProcessed=row.rows_processed)
    return Failure("upload_gone", "The upload is expired: its data is no longer stored.", **named)
