from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from stream_api.errors import Failure
from stream_api.jobs.queue import LoadQueue
from stream_api.jobs.worker import LoadWorker
from stream_api.status.connection import open_redis
from tests.jobs.conftest import Calls, until_idle, working
from tests.support.faults import FaultProxy
from tests.support.patience import PATIENCE_SECONDS


@asynccontextmanager
async def worker_process(settings: Settings, lease_seconds: float) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.jobs.worker_process",
        stdout=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "REDIS_URL": settings.redis_url.get_secret_value(),
            "STREAM_API_JOB_LEASE_SECONDS": str(lease_seconds),
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_line(process: asyncio.subprocess.Process, expected: str) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for line in process.stdout:
            assert not line.startswith(b"unretrieved"), line
            if line.decode().strip() == expected:
                return
    pytest.fail(f"the worker process ended without saying {expected!r}")


async def test_the_job_of_a_killed_worker_is_taken_over(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    await queue.enqueue(upload_id)
    async with worker_process(job_settings, 2) as process:
        await until_line(process, f"started {upload_id}")
        async with working(job_settings, calls):
            process.kill()
            await calls.until(lambda calls: calls.ended == [upload_id])
            await until_idle(redis)


async def test_sigterm_hands_the_job_back_at_once(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    await queue.enqueue(upload_id)
    # The lease is far longer than the test may take.
    async with worker_process(job_settings, 300) as process:
        await until_line(process, f"started {upload_id}")
        process.send_signal(signal.SIGTERM)
        await until_line(process, "stopped")
        assert await process.wait() == 0
    async with working(job_settings, calls):
        await calls.until(lambda calls: calls.ended == [upload_id])
        await until_idle(redis)


async def test_the_job_of_a_frozen_worker_is_taken_over_and_its_return_harms_nothing(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    await queue.enqueue(upload_id)
    async with worker_process(job_settings, 2) as process:
        await until_line(process, f"started {upload_id}")
        process.send_signal(signal.SIGSTOP)
        calls.open.clear()
        async with working(job_settings, calls):
            await calls.until(lambda calls: calls.started == [upload_id])
            process.send_signal(signal.SIGCONT)
            # It notices, cancels its run and moves nothing: the job is ended by us.
            other = uuid4()
            await queue.enqueue(other)
            await until_line(process, f"started {other}")
            calls.open.set()
            await calls.until(lambda calls: calls.ended == [upload_id])
            process.kill()
            await calls.until(lambda calls: calls.ended == [upload_id, other])
            await until_idle(redis)
    assert calls.cancelled == []


async def test_redis_away_at_the_start_and_in_the_middle(own_redis: Valkey, calls: Calls) -> None:
    settings = Settings(redis_url=SecretStr(own_redis.url), job_lease_seconds=2)
    await asyncio.to_thread(own_redis.stop)
    queue = LoadQueue(settings)
    async with asyncio.timeout(10):
        with pytest.raises(Failure) as failed:
            await queue.enqueue(uuid4())
    assert (failed.value.code, failed.value.transient) == ("queue_unavailable", True)

    async with working(settings, calls):
        await asyncio.to_thread(own_redis.start)
        first, second, third = uuid4(), uuid4(), uuid4()
        await queue.enqueue(first)
        await calls.until(lambda calls: calls.ended == [first])
        # While it is idle, and while it runs a load.
        await asyncio.to_thread(own_redis.restart)
        await queue.enqueue(second)
        await calls.until(lambda calls: calls.ended == [first, second])
        calls.open.clear()
        await queue.enqueue(third)
        await calls.until(lambda calls: len(calls.started) == 3)
        await asyncio.to_thread(own_redis.kill)
        await asyncio.to_thread(own_redis.start)
        calls.open.set()
        await calls.until(lambda calls: third in calls.ended)
        async with open_redis(settings) as redis:
            await until_idle(redis)
    await queue.close()


async def test_stopping_while_redis_is_away_ends(own_redis: Valkey, calls: Calls, upload_id: UUID) -> None:
    settings = Settings(redis_url=SecretStr(own_redis.url), job_lease_seconds=2)
    queue = LoadQueue(settings)
    calls.open.clear()
    busy, idle = LoadWorker(settings, calls), LoadWorker(settings, calls)
    await busy.start()
    await queue.enqueue(upload_id)
    await calls.until(lambda calls: bool(calls.started))
    await idle.start()
    await asyncio.to_thread(own_redis.stop)
    late = LoadWorker(settings, calls)
    await late.start()
    async with asyncio.timeout(30):
        await asyncio.gather(busy.stop(), idle.stop(), late.stop())
    assert calls.cancelled == [upload_id]
    await asyncio.to_thread(own_redis.start)
    calls.open.set()
    async with working(settings, calls):
        await calls.until(lambda calls: calls.ended == [upload_id])
    await queue.close()


async def test_a_redis_that_does_not_answer_holds_up_no_request(own_redis: Valkey) -> None:
    async with FaultProxy.before(own_redis.url) as proxy:
        queue = LoadQueue(Settings(redis_url=SecretStr(proxy.url(own_redis.url))))
        await queue.enqueue(uuid4())
        await proxy.stall()
        async with asyncio.timeout(10):
            with pytest.raises(Failure) as failed:
                await queue.enqueue(uuid4())
        assert failed.value.code == "queue_unavailable"
        await proxy.restore()
        await queue.enqueue(uuid4())
        await queue.close()


async def test_a_flushed_redis_stops_the_load_and_does_not_end_the_worker(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.open.clear()
    await queue.enqueue(upload_id)
    async with working(job_settings, calls):
        await calls.until(lambda calls: bool(calls.started))
        await redis.flushdb()
        await redis.script_flush()
        # The lock is gone with the rest: the load is no longer ours alone to run.
        await calls.until(lambda calls: calls.cancelled == [upload_id])
        calls.open.set()
        await queue.ensure(upload_id)  # the reconciler
        await calls.until(lambda calls: calls.ended == [upload_id])
        await until_idle(redis)
