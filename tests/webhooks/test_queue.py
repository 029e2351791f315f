"""Deliveries by the queue: BullMQ drives, the row decides, and the sweep brings back what Redis has lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from redis.asyncio import Redis
from structlog.testing import capture_logs

from stream_api.app import open_services, run_webhooks
from stream_api.config import Settings
from stream_api.jobs.queue import WebhookQueue, round_of_job, upload_of_job
from stream_api.status.connection import open_redis
from stream_api.webhooks.sweep import sweep
from tests.support.faults import FaultProxy
from tests.support.settings import change
from tests.webhooks.conftest import Deliveries, Receiver


@pytest.fixture
async def queue(quick: Settings) -> AsyncIterator[WebhookQueue]:
    queue = WebhookQueue(quick)
    yield queue
    await queue.close()


@pytest.fixture
async def redis(quick: Settings) -> AsyncIterator[Redis]:
    async with open_redis(quick) as client:
        yield client


@asynccontextmanager
async def delivering(settings: Settings) -> AsyncIterator[None]:
    async with open_services(settings) as services, run_webhooks(services):
        yield


async def job_keys(redis: Redis) -> list[str]:
    return [key async for key in redis.scan_iter("stream-api:webhooks:????????-*")]


async def test_many_deliveries_and_two_workers_each_sent_once(
    quick: Settings, deliveries: Deliveries, queue: WebhookQueue, redis: Redis, receiver: Receiver
) -> None:
    rows = [await deliveries.ended(f"{receiver.url}/{number}") for number in range(30)]
    async with delivering(quick), delivering(quick):
        for row in rows:
            for _ in range(3):
                await queue.ensure(row.id, row.webhook_round)
        for row in rows:
            assert (await deliveries.until_state(row.id, "delivered")).webhook_attempts == 1
    assert sorted(request.path for request in receiver.received) == sorted(f"/{number}" for number in range(30))
    assert await job_keys(redis) == []


async def test_a_slow_receiver_holds_up_no_other(
    quick: Settings, deliveries: Deliveries, queue: WebhookQueue, receiver: Receiver
) -> None:
    hanging = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        await hanging.wait()
        return web.Response()

    receiver.answers = [hang]
    slow, fast = await deliveries.ended(receiver.url), await deliveries.ended(receiver.url)
    async with delivering(change(quick, webhook_timeout_seconds=30)):
        await queue.ensure(slow.id, slow.webhook_round)
        await receiver.until(1)
        await queue.ensure(fast.id, fast.webhook_round)
        await deliveries.until_state(fast.id, "delivered")
        assert (await deliveries.row(slow.id)).webhook_state == "pending"
        hanging.set()
        await deliveries.until_state(slow.id, "delivered")


@pytest.mark.parametrize("accepts", [True, False])
async def test_redis_may_be_emptied_at_any_time(
    quick: Settings, deliveries: Deliveries, redis: Redis, receiver: Receiver, accepts: bool
) -> None:
    """No job is ever asked for but by the sweep, and Redis forgets after each try."""

    async def forget(request: web.Request) -> web.Response:
        await redis.flushdb()
        return web.Response(status=500)

    receiver.answers = [forget] * (3 if accepts else 10)
    row = await deliveries.ended(receiver.url)
    async with delivering(quick):
        row = await deliveries.until_state(row.id, "delivered" if accepts else "failed")
    assert row.webhook_attempts == len(receiver.received) == 4
    assert len({(request.headers["webhook-id"], request.body) for request in receiver.received}) == 1


async def test_a_load_does_not_wait_for_a_queue_that_hangs(
    quick: Settings, deliveries: Deliveries, receiver: Receiver
) -> None:
    url = quick.redis_url.get_secret_value()
    row = await deliveries.ended(receiver.url)
    async with FaultProxy.before(url) as proxy:
        hanging = change(quick, redis_url=proxy.url(url))
        async with open_services(hanging) as services:
            await proxy.stall()
            with capture_logs() as logs:
                async with asyncio.timeout(15):
                    await services.announce(row)
            assert [each["event"] for each in logs if each["log_level"] == "warning"].count(
                "webhooks.not_enqueued"
            ) == 1
            await proxy.restore()
            async with run_webhooks(services):
                assert (await deliveries.until_state(row.id, "delivered")).webhook_attempts == 1


async def test_the_sweep_leaves_alone_what_is_not_overdue(
    deliveries: Deliveries, queue: WebhookQueue, redis: Redis
) -> None:
    row = await deliveries.ended("http://127.0.0.1:1/")
    assert await sweep(deliveries.outbox, queue.ensure, overdue_seconds=60) == 0
    assert await job_keys(redis) == []
    for _ in range(2):
        assert await sweep(deliveries.outbox, queue.ensure, overdue_seconds=0) == 1
    (key,) = await job_keys(redis)
    job_id = key.rpartition(":")[2]
    assert (upload_of_job(job_id), round_of_job(job_id)) == (row.id, row.webhook_round)


async def test_stopping_leaves_a_try_under_way_to_the_next_worker(
    quick: Settings, deliveries: Deliveries, queue: WebhookQueue, receiver: Receiver
) -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    receiver.answers = [hang]
    # Neither the job's lease nor the try's ends while the test runs: what is handed back is there at once.
    patient = change(quick, webhook_timeout_seconds=300, job_lease_seconds=300)
    row = await deliveries.ended(receiver.url)
    async with delivering(patient):
        await queue.ensure(row.id, row.webhook_round)
        await receiver.until(1)
    stopped = await deliveries.row(row.id)
    assert (stopped.webhook_state, stopped.webhook_attempts) == ("pending", 1)
    assert (stopped.webhook_error or "").startswith("webhook_interrupted:")
    async with delivering(patient):
        assert (await deliveries.until_state(row.id, "delivered")).webhook_attempts == 2


async def test_an_outage_of_the_database_uses_up_no_try(
    quick: Settings, deliveries: Deliveries, queue: WebhookQueue, receiver: Receiver
) -> None:
    dsn = quick.database_url.get_secret_value()
    async with FaultProxy.before(dsn) as proxy:
        row = await deliveries.ended(receiver.url)
        await proxy.refuse()
        with capture_logs() as logs:
            async with delivering(change(quick, database_url=proxy.url(dsn))):
                await queue.ensure(row.id, row.webhook_round)
                async with asyncio.timeout(20):
                    while sum(each["event"] == "jobs.delayed" for each in logs) < 3:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                await proxy.restore()
                assert (await deliveries.until_state(row.id, "delivered")).webhook_attempts == 1
    assert len(receiver.received) == 1
