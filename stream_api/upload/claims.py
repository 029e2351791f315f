"""Who is at work on an `Idempotency-Key`: a claim in Redis, so that a second request need not send all for nothing.

Redis may be away, or lose everything at any moment. Then several uploads with one key go on side by side, and the
manifest, which only one of them can write, decides. A claim saves work; nothing rests on it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

import structlog
from redis.asyncio import Redis

from stream_api.errors import Failure
from stream_api.flow.tasks import cancel_and_wait
from stream_api.status.connection import redis_failures

log = structlog.stdlib.get_logger(__name__)

#: How long the claim of a killed process stands. A live one renews it three times in this time.
LEASE_SECONDS: Final = 10.0
#: A Redis that hangs costs an upload this much at its begin and at its end.
_REDIS_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 5

# Takes and renews, and takes anew what a flush has taken away. Not SET with NX: redis-py sends a command again when the
# connection broke, and would find its own claim in the way.
_HOLD: Final = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"


class KeyClaims:
    """The claims of this process.

    :param redis: of `open_redis`; stays the caller's.
    :param lease_seconds: how long a claim stands that nobody renews.
    """

    def __init__(self, redis: Redis, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._lease_seconds: Final = lease_seconds
        self._hold: Final = redis.register_script(_HOLD)
        self._release: Final = redis.register_script(_RELEASE)
        self._releases: Final[set[asyncio.Task[None]]] = set()

    @asynccontextmanager
    async def holding(self, upload_id: UUID) -> AsyncIterator[None]:
        """Be the one who works on this upload while the body runs, as far as Redis can tell.

        :raises Failure: `idempotency_key_in_use` if another one is. Never for a Redis that is away.
        """
        key, token = claim_key(upload_id), secrets.token_hex(16)
        renewing: asyncio.Task[None] | None = None
        try:
            await self._take(upload_id, key, token)
            renewing = asyncio.create_task(self._renew(key, token))
            yield
        finally:
            # In a task of its own: a cancelled upload releases its claim too, also one that Redis has not answered yet.
            release = asyncio.create_task(self._let_go(renewing, key, token))
            self._releases.add(release)
            release.add_done_callback(self._releases.discard)
            await asyncio.wait({release})

    async def _take(self, upload_id: UUID, key: str, token: str) -> None:
        try:
            held = await self._try_hold(key, token)
        except Failure as failure:
            log.warning("upload.claim_unknown", upload_id=str(upload_id), code=failure.code)
            return
        if not held:
            raise Failure(
                "idempotency_key_in_use",
                "An upload with this Idempotency-Key is under way; ask again when it has ended.",
                retryAfterSeconds=_RETRY_SECONDS,
                uploadId=str(upload_id),
            )

    async def _try_hold(self, key: str, token: str) -> bool:
        async with redis_failures(_REDIS_SECONDS):
            return bool(await self._hold(keys=[key], args=[token, round(self._lease_seconds * 1000)]))

    async def _renew(self, key: str, token: str) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                if not await self._try_hold(key, token):
                    log.info("upload.claim_lost", key=key)
                    return
            except Failure as failure:
                log.debug("upload.claim_not_renewed", key=key, code=failure.code)

    async def _let_go(self, renewing: asyncio.Task[None] | None, key: str, token: str) -> None:
        if renewing is not None:
            await cancel_and_wait(renewing)
        try:
            async with redis_failures(_REDIS_SECONDS):
                await self._release(keys=[key], args=[token])
        except Failure as failure:
            log.info("upload.claim_not_released", key=key, code=failure.code)


def claim_key(upload_id: UUID) -> str:
    """Where the claim lies in Redis."""
    return f"stream-api:receiving:{upload_id}"
