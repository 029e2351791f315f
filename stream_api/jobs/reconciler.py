"""The reconciler: finds uploads that are stored but have no job, so that Redis may lose everything at any time."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

import structlog
from redis.asyncio import Redis

from stream_api.errors import Failure
from stream_api.jobs.queue import PREFIX
from stream_api.status.connection import redis_failures

log = structlog.get_logger()

_LOCK_KEY: Final = f"{PREFIX}:reconciler"
#: A reconciler that dies in the middle of a round is replaced after this long; one that lives renews it.
_LOCK_SECONDS: Final = 30.0
#: Extends the lock, or lets it end, as long as it is ours.
_EXTEND: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"


class PendingUploads(Protocol):
    """The markers `pending/<id>`: there from before an upload is stored until after its end state."""

    def list_pending(self) -> AsyncIterator[UUID]:
        """Every upload with a marker."""

    async def is_stored(self, upload_id: UUID, /) -> bool:
        """Whether the upload has its manifest: until then it is still being received, or was given up."""

    async def mark_pending(self, upload_id: UUID, /) -> None:
        """Set the marker."""

    async def clear_pending(self, upload_id: UUID, /) -> None:
        """Remove the marker."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round has found.

    :param enqueued: stored uploads that have not ended: now they have a job, if they had none.
    :param cleared: markers of ended uploads, removed.
    :param unstored: markers without a manifest, left alone.
    """

    enqueued: int = 0
    cleared: int = 0
    unstored: int = 0


class Reconciler:
    """Runs beside a worker. Of all workers one does a round at a time.

    :param pending: the markers.
    :param has_ended: whether PostgreSQL has the upload in an end state.
    :param enqueue: gives an upload a job where it has none (`LoadQueue.ensure`).
    :param redis: of `open_redis`; for the lock. Stays the caller's.
    :param interval_seconds: between two rounds, over all workers.
    """

    def __init__(
        self,
        *,
        pending: PendingUploads,
        has_ended: Callable[[UUID], Awaitable[bool]],
        enqueue: Callable[[UUID], Awaitable[None]],
        redis: Redis,
        interval_seconds: float,
    ) -> None:
        self._pending = pending
        self._has_ended = has_ended
        self._enqueue = enqueue
        self._redis = redis
        self._interval_seconds = interval_seconds
        self._extend = redis.register_script(_EXTEND)

    async def run(self) -> None:
        """Do rounds until cancelled. A store or database that is away ends a round, never the reconciler."""
        while True:
            try:
                await self.reconcile()
            except Failure as failure:
                log.warning("reconciler.interrupted", code=failure.code, detail=failure.detail)
            except Exception:
                log.exception("reconciler.crashed")
            # Workers that were started together do not go on asking at the same moment.
            await asyncio.sleep(self._interval_seconds * random.uniform(0.9, 1.1))  # noqa: S311

    async def reconcile(self) -> Round | None:
        """Do one round.

        :returns: what was found; `None` when another worker does a round, or did one less than an interval ago.
        :raises Failure: of the storage, the database or the queue. What was enqueued until then stays.
        """
        token = secrets.token_hex(16)
        async with redis_failures():
            if not await self._redis.set(_LOCK_KEY, token, nx=True, px=int(_LOCK_SECONDS * 1000)):
                return None
        left_seconds = 0.0
        try:
            found = await self._round(token)
            # Kept for almost an interval: more workers do not make more rounds, and each is a listing of the bucket.
            left_seconds = self._interval_seconds * 0.8
        finally:
            await self._hold(token, left_seconds)
        if found.enqueued or found.cleared:
            log.info("reconciler.round", enqueued=found.enqueued, cleared=found.cleared, unstored=found.unstored)
        return found

    async def _round(self, token: str) -> Round:
        enqueued = cleared = unstored = 0
        held_until = asyncio.get_running_loop().time() + _LOCK_SECONDS / 2
        async for upload_id in self._pending.list_pending():
            if await self._has_ended(upload_id):
                cleared += await self._clear(upload_id)
            elif await self._pending.is_stored(upload_id):
                await self._enqueue(upload_id)
                enqueued += 1
            else:
                unstored += 1
            if asyncio.get_running_loop().time() > held_until:
                if not await self._hold(token, _LOCK_SECONDS):
                    break  # Another one has begun a round: Redis was flushed, or we were frozen.
                held_until = asyncio.get_running_loop().time() + _LOCK_SECONDS / 2
        return Round(enqueued, cleared, unstored)

    async def _clear(self, upload_id: UUID) -> bool:
        """Remove the marker of an ended upload, unless somebody retries it in this very moment."""
        await self._pending.clear_pending(upload_id)
        # A retry sets the marker first and then reopens the row; if it did so between our question and our removing,
        # the row says so now.
        if await self._has_ended(upload_id):
            return True
        await self._pending.mark_pending(upload_id)
        return False

    async def _hold(self, token: str, seconds: float) -> bool:
        """Let the lock last that long from now; `False` when it is no longer ours, or Redis is away."""
        try:
            async with redis_failures():
                return bool(await self._extend(keys=[_LOCK_KEY], args=[token, int(seconds * 1000)]))
        except Failure:
            return False
