"""Redis and PostgreSQL lost in the middle of a load, for longer than anybody waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from tests.e2e.test_service import ROWS, exact, some_rows
from tests.jobs.conftest import until_idle
from tests.load.conftest import Loading, events, open_loading
from tests.support.faults import FaultProxy
from tests.support.service import Client, Service, client_of, running, until
from tests.support.settings import change

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
async def look(settings: Settings) -> AsyncIterator[Loading]:
    """To look into the stores."""
    async with open_loading(settings) as opened:
        yield opened


@asynccontextmanager
async def slow_service(
    settings: Settings, redis_url: str, folder: Path
) -> AsyncIterator[tuple[Service, Client, FaultProxy]]:
    """A service whose loads take some seconds, and the proxy that makes them."""
    dsn = settings.database_url.get_secret_value()
    async with FaultProxy.before(dsn) as postgres:
        slow = change(settings, database_url=postgres.url(dsn), redis_url=redis_url)
        await postgres.throttle(400_000, "up")
        sizes = {"segment_bytes": 65536, "batch_bytes": 65536, "reconcile_seconds": 0.5, "job_lease_seconds": 2}
        async with running("serve", slow, folder, **sizes) as service, client_of(service) as client:
            yield service, client, postgres


async def test_redis_is_flushed_while_a_load_runs(
    settings: Settings,
    own_redis: Valkey,
    look: Loading,
    tmp_path: Path,
) -> None:
    async with (
        slow_service(settings, own_redis.url, tmp_path) as (service, client, postgres),
        Redis.from_url(own_redis.url, decode_responses=True) as redis,
    ):
        upload = await client.upload(events(range(ROWS)))
        await client.until(upload["uploadId"], some_rows)
        await redis.flushall()
        # The job is lost and the lock with it. The load stops within the lease, and the reconciler brings it back.
        await until(lambda: service.logged("jobs.lease_lost"), seconds=5)
        await until(lambda: [each["event"] for each in service.events()].count("load.taken") == 2, seconds=10)
        await postgres.restore()
        status = await client.end(upload["uploadId"])
        await exact(look, status)
        assert status["run"] == 2
        await until_idle(redis)
        assert await service.stop() == 0
        assert service.errors() == []


async def test_a_load_ends_by_the_word_of_the_fence_alone_while_redis_is_away(
    settings: Settings,
    own_redis: Valkey,
    look: Loading,
    tmp_path: Path,
) -> None:
    async with slow_service(settings, own_redis.url, tmp_path) as (service, client, _):
        upload = await client.upload(events(range(ROWS)))
        await client.until(upload["uploadId"], some_rows)
        await asyncio.to_thread(own_redis.stop)
        # Some seconds, and so several leases, later: nobody else could have taken the load, for nobody has a queue.
        await until(lambda: service.logged("load.completed"))
        await exact(look, await client.status(upload["uploadId"]))
        await asyncio.to_thread(own_redis.start)
        async with Redis.from_url(own_redis.url, decode_responses=True) as redis:
            await until_idle(redis)
        status = await client.status(upload["uploadId"])
        await exact(look, status)
        assert status["run"] == 1
        # The service is as it was.
        again = await client.upload(events(range(ROWS, ROWS + 10)))
        assert (await client.end(again["uploadId"]))["rowsInserted"] == 10
        assert await service.stop() == 0


async def test_postgres_is_away_for_longer_than_all_attempts_of_a_job(
    settings: Settings,
    look: Loading,
    tmp_path: Path,
) -> None:
    redis_url = settings.redis_url.get_secret_value()
    async with slow_service(settings, redis_url, tmp_path) as (service, client, postgres):
        upload = await client.upload(events(range(ROWS)))
        await client.until(upload["uploadId"], some_rows)
        await postgres.refuse()
        # A job has four attempts; delays are none.
        await until(lambda: [each["event"] for each in service.events()].count("jobs.delayed") > 4, seconds=90)
        assert not service.logged("jobs.attempt_failed")
        status = await client.status(upload["uploadId"])
        assert (status["status"], status["waitingFor"]) == ("processing", "database")
        await postgres.restore()
        status = await client.end(upload["uploadId"])
        await exact(look, status)
        assert status["waitingFor"] is None
