"""Telling Redis of an upload, and other steps that somebody else makes up for when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar
from uuid import UUID

import structlog

from stream_api.errors import Failure
from stream_api.http.collaborators import Collaborators
from stream_api.status.record import StatusRecord

T = TypeVar("T")
log = structlog.stdlib.get_logger(__name__)

#: Status and job of an upload that is stored may take so long; the reconciler makes up for what fails.
_REDIS_SECONDS: Final = 4.0


async def tell_redis(collaborators: Collaborators, record: StatusRecord) -> None:
    """Status and job of an upload, both as well as may be: a Redis that is away or hangs costs a bounded time."""
    upload_id = record.upload_id

    async def tell() -> None:
        # The status first, so that a worker which is quick does not find its own overwritten.
        await best_effort(upload_id, "status", collaborators.statuses.write(record))
        await best_effort(upload_id, "enqueue", collaborators.queue.enqueue(upload_id))

    await within_redis_time(upload_id, tell())


async def within_redis_time(upload_id: UUID, action: Awaitable[T]) -> None:
    """Do something that Redis has a bounded time for."""
    try:
        async with asyncio.timeout(_REDIS_SECONDS):
            await action
    except TimeoutError:
        log.warning("upload.step_left_undone", upload_id=str(upload_id), step="redis", code="timeout")


async def best_effort(upload_id: UUID, step: str, action: Awaitable[T]) -> T | None:
    """Do something that somebody else makes up for if it fails."""
    try:
        return await action
    except Failure as failure:
        log.warning("upload.step_left_undone", upload_id=str(upload_id), step=step, code=failure.code)
        return None
