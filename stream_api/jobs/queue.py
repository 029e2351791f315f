"""The queues, from the side that asks for something: one of loads, one of webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import bullmq
import structlog

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.status.connection import open_redis, redis_failures

log = structlog.get_logger()

#: Everything of ours in Redis, which is shared, lies under it.
PREFIX: Final = "stream-api"
#: The queues' names.
LOADS: Final = "loads"
WEBHOOKS: Final = "webhooks"

#: Errors that are not transient (bugs, mostly) get one try and three retries.
_ATTEMPTS: Final = 4
_BACKOFF: Final = "full-jitter"
_UUID_CHARS: Final = 36
#: How long the request for another run of a job that is still finishing is kept; far longer than finishing takes.
_AGAIN_SECONDS: Final = 3600


class JobQueue:
    """Asks for jobs, of which there is never more than one with an id.

    It connects at first use and never makes a request wait for more than a few seconds.

    :param name: of the queue.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        # A client of its own: BullMQ would retry every command for minutes, and shares badly.
        self._redis = open_redis(settings)
        self._name: Final = name
        self._queue: Any = bullmq.Queue(name, {"prefix": PREFIX, "connection": self._redis})

    async def close(self) -> None:
        """Close the connections. A Redis that has left has closed them already."""
        try:
            async with redis_failures():
                await self._queue.close()
        except Failure as failure:
            log.debug("jobs.queue_not_closed", queue=self._name, detail=failure.detail)

    async def _add(self, job_id: str) -> str:
        """Add the job, and bring back one that has ended and was kept. Gives back its state."""
        options = {
            "jobId": job_id,
            "attempts": _ATTEMPTS,
            "backoff": {"type": _BACKOFF},
            # An ended job that is kept makes BullMQ ignore the next one with its id.
            "removeOnComplete": True,
            "removeOnFail": True,
            "stackTraceLimit": 1,
        }
        job = await self._queue.add("load" if self._name == LOADS else "webhook", {}, options)
        state = str(await job.getState())
        if state in {"completed", "failed"}:  # kept by something that is not this version
            log.warning("jobs.ended_job_found", queue=self._name, upload_id=str(upload_of_job(job_id)), state=state)
            await job.retry(state, {"resetAttemptsMade": True, "resetAttemptsStarted": True})
        return state


class LoadQueue(JobQueue):
    """Asks for loads. The job's id is the upload's, so there is never more than one job for an upload."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, LOADS)

    async def enqueue(self, upload_id: UUID) -> None:
        """Have the upload loaded: now, or once more after the job that is running.

        Does nothing where a job for it waits already.

        :raises Failure: `queue_unavailable`.
        """
        job_id = str(upload_id)
        async with redis_failures():
            # A retry can be asked for while the job of the earlier run, whose failure the client has just seen, is not
            # quite finished: adding an id that exists is silently ignored. Workers look for this key after each job.
            await self._redis.set(_again_key(job_id), "1", ex=_AGAIN_SECONDS)
            existed = bool(await self._redis.exists(self._queue.toKey(job_id)))
            state = await self._add(job_id)
            if not existed or state != "active":
                await self._redis.delete(_again_key(job_id))

    async def ensure(self, upload_id: UUID) -> None:
        """Have the upload loaded where there is no job for it; what runs or waits is left alone.

        :raises Failure: `queue_unavailable`.
        """
        async with redis_failures():
            await self._add(str(upload_id))

    async def without_job(self, upload_ids: Sequence[UUID]) -> list[UUID]:
        """Those of the uploads that have no job that waits or runs, in one exchange with Redis.

        :raises Failure: `queue_unavailable`.
        """
        async with redis_failures():
            pipeline = self._redis.pipeline(transaction=False)
            for upload_id in upload_ids:
                _ = pipeline.hmget(self._queue.toKey(str(upload_id)), ["timestamp", "finishedOn"])
            answers = await pipeline.execute()
        # A job that has ended and was kept is none: `ensure` brings it back.
        return [
            upload_id
            for upload_id, (added, finished) in zip(upload_ids, answers, strict=True)
            if added is None or finished is not None
        ]

    async def enqueue_again(self, upload_id: UUID) -> bool:
        """Enqueue the upload if that was asked for while its job, which has now ended, was running.

        :raises Failure: `queue_unavailable`.
        """
        async with redis_failures():
            if not await self._redis.delete(_again_key(str(upload_id))):
                return False
            await self._add(str(upload_id))
        return True


class WebhookQueue(JobQueue):
    """Asks for deliveries. A job is of one round: once that is over it has nothing to do."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, WEBHOOKS)

    async def ensure(self, upload_id: UUID, round_: int) -> None:
        """Have a webhook delivered where there is no job for that; what runs or waits is left alone.

        :raises Failure: `queue_unavailable`.
        """
        async with redis_failures():
            # BullMQ forbids colons.
            await self._add(f"{upload_id}-{round_}")


def upload_of_job(job_id: str) -> UUID:
    """The upload that a job is for: what its id begins with."""
    return UUID(job_id[:_UUID_CHARS])


def round_of_job(job_id: str) -> int:
    """The round of a delivery that a job is for."""
    return int(job_id[_UUID_CHARS + 1 :])


def _again_key(job_id: str) -> str:
    return f"{PREFIX}:again:{job_id}"
