"""Rounds that one worker does at a time: a lock in Redis, which is kept while the round lasts, and for a while after.

It saves work and guards nothing: Redis may be flushed and a holder may freeze, so whatever is done in a round must be
harmless when two do it at once.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Final

from redis.asyncio import Redis

from stream_api.errors import Failure
from stream_api.jobs.queue import PREFIX
from stream_api.status.connection import redis_failures

#: A holder that dies in the middle of a round is replaced after this long; one that lives renews the lock.
LOCK_SECONDS: Final = 30.0
#: Extends the lock, or lets it end, as long as it is ours.
_EXTEND: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"


class Held:
    """The lock, held for one round."""

    def __init__(self, redis: Redis, key: str, token: str) -> None:
        self._extend: Final = redis.register_script(_EXTEND)
        self._key: Final = key
        self._token: Final = token
        self._renew_at = monotonic() + LOCK_SECONDS / 2

    async def keep(self) -> bool:
        """Whether the round may go on. Asks Redis only when the lock has to be renewed.

        It is `False` when another may have begun a round: Redis was flushed or is away, or we were frozen.
        """
        if monotonic() < self._renew_at:
            return True
        self._renew_at = monotonic() + LOCK_SECONDS / 2
        return await self.last(LOCK_SECONDS)

    async def last(self, seconds: float) -> bool:
        """Let the lock last that long from now; `False` when it is no longer ours, or Redis is away."""
        try:
            async with redis_failures():
                return bool(await self._extend(keys=[self._key], args=[self._token, int(seconds * 1000)]))
        except Failure:
            return False


@asynccontextmanager
async def one_round(redis: Redis, name: str, *, interval_seconds: float) -> AsyncIterator[Held | None]:
    """Hold the lock while the body runs; `None` when another does a round, or did one less than an interval ago.

    After a round that fails the lock is free at once.

    :raises Failure: `queue_unavailable`.
    """
    key, token = f"{PREFIX}:{name}", secrets.token_hex(16)
    async with redis_failures():
        taken = await redis.set(key, token, nx=True, px=int(LOCK_SECONDS * 1000))
    if not taken:
        yield None
        return
    held, left_seconds = Held(redis, key, token), 0.0
    try:
        yield held
        # Kept for almost an interval: more workers do not make more rounds, and each is a listing of the bucket.
        left_seconds = interval_seconds * 0.8
    finally:
        await held.last(left_seconds)
