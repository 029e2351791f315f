from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.jobs.queue import LoadQueue, WebhookQueue, round_of_job, upload_of_job
from stream_api.jobs.webhooks import webhook_worker
from tests.jobs.conftest import FAST, Calls, eventually, working


@pytest.fixture
async def webhooks(job_settings: Settings) -> AsyncIterator[WebhookQueue]:
    queue = WebhookQueue(job_settings)
    yield queue
    await queue.close()


async def gone(redis: Redis) -> bool:
    return not [key async for key in redis.scan_iter("stream-api:webhooks:????????-*")]


async def test_a_job_that_asks_for_it_runs_again_and_uses_up_no_attempt(
    job_settings: Settings, webhooks: WebhookQueue, redis: Redis, upload_id: UUID
) -> None:
    pauses: list[float | None] = [*[0.0] * 8, 0.3, None]
    calls: list[tuple[UUID, int, float]] = []

    async def deliver(upload_id: UUID, round_: int) -> float | None:
        calls.append((upload_id, round_, time.monotonic()))
        return pauses[len(calls) - 1]

    worker = webhook_worker(job_settings, deliver, backoff=FAST)
    await worker.start()
    await webhooks.ensure(upload_id, 7)

    async def done() -> bool:
        return len(calls) == len(pauses) and await gone(redis)

    await eventually(done)
    await worker.stop()
    assert {(upload, round_) for upload, round_, _ in calls} == {(upload_id, 7)}
    assert calls[-1][2] - calls[-2][2] >= 0.29


async def test_rounds_are_jobs_of_their_own_and_loads_are_in_another_queue(
    job_settings: Settings, webhooks: WebhookQueue, queue: LoadQueue, redis: Redis, calls: Calls
) -> None:
    upload_id = uuid4()
    rounds: list[int] = []
    both = asyncio.Event()

    async def deliver(_: UUID, round_: int) -> None:
        rounds.append(round_)
        if len(rounds) == 2:
            both.set()

    for round_ in (1, 2, 2, 1):
        await webhooks.ensure(upload_id, round_)
    await queue.enqueue(upload_id)
    worker = webhook_worker(job_settings, deliver, backoff=FAST)
    await worker.start()
    async with working(job_settings, calls), asyncio.timeout(20):
        await both.wait()
        await calls.until(lambda calls: calls.ended == [upload_id])
        await eventually(lambda: gone(redis))
    await worker.stop()
    assert sorted(rounds) == [1, 2]


def test_a_job_s_id_names_upload_and_round(upload_id: UUID) -> None:
    assert (upload_of_job(f"{upload_id}-12"), round_of_job(f"{upload_id}-12")) == (upload_id, 12)
    assert upload_of_job(str(upload_id)) == upload_id
