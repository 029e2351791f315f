"""What the janitor has seen in earlier rounds, in Redis, for the next round may be another worker's."""

from __future__ import annotations

from typing import Any, Final, cast

from redis.asyncio import Redis

from stream_api.jobs.queue import PREFIX
from stream_api.status.connection import redis_failures

_KEY: Final = f"{PREFIX}:janitor:sightings"
#: What is noted at most; what is beyond that is noted when others are gone.
_MOST: Final = 10_000


class Sightings:
    """Things that nobody seems to know, each with what it looked like and when it was first seen so.

    Times are those of Redis: one clock for all workers, and neither the store's nor a worker's. A Redis that was
    flushed makes everything seen for the first time: what is to go goes later.

    :param redis: of `open_redis`; stays the caller's.
    :param orphan_seconds: the distance of two sightings at which a thing that looks the same counts as left over.
    :param interval_seconds: between two rounds; notes are kept for longer than that.
    """

    def __init__(self, redis: Redis, *, orphan_seconds: float, interval_seconds: float) -> None:
        self._redis: Final = redis
        self._orphan_seconds: Final = orphan_seconds
        self._keep_seconds: Final = int(2 * orphan_seconds + 4 * interval_seconds) + 1
        self._before: dict[str, str] = {}
        self._seen: dict[str, str] = {}
        self._now = 0.0

    async def begin(self, now: float | None = None) -> None:
        """Begin a round.

        :param now: the time, in tests.
        :raises Failure: `queue_unavailable`.
        """
        async with redis_failures():
            seconds, micros = await self._redis.time()
            # The connection decodes; redis-py's types do not know.
            self._before = cast("dict[str, str]", await self._redis.hgetall(_KEY))
        self._now = seconds + micros / 1e6 if now is None else now
        self._seen = {}

    def is_due(self, thing: str, looks: str = "") -> bool:
        """Note that a thing is there, and say whether it has looked like this for long enough.

        :param looks: whatever changes when somebody is at work on it.
        """
        first, _, looked = self._before.get(thing, "").partition(" ")
        if not first or looked != looks:
            first = repr(self._now)
        if thing in self._before or len(self._seen) < _MOST:
            self._seen[thing] = f"{first} {looks}"
        return self._now - float(first) >= self._orphan_seconds

    async def end(self, *, complete: bool) -> None:
        """Keep what was noted for the next round.

        :param complete: the round has seen everything: what it has not seen is forgotten.
        :raises Failure: `queue_unavailable`.
        """
        notes = self._seen if complete else {**self._before, **self._seen}
        async with redis_failures():
            pipeline: Any = self._redis.pipeline(transaction=True)
            pipeline.delete(_KEY)
            if notes:
                pipeline.hset(_KEY, mapping=notes)
                pipeline.expire(_KEY, self._keep_seconds)
            await pipeline.execute()
