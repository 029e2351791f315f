"""Loads of uploads that are cancelled while they run."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.jobs import worker as worker_module
from stream_api.jobs.queue import LoadQueue
from tests.jobs.conftest import Calls, until_idle, working
from tests.support.settings import change


async def test_a_cancelled_load_is_stopped_and_its_job_done(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.open.clear()
    other = uuid4()
    async with working(change(job_settings, load_concurrency=2), calls) as worker:
        await queue.enqueue(upload_id)
        await queue.enqueue(other)
        await calls.until(lambda calls: len(calls.started) == 2)
        worker.cancel(upload_id)
        worker.cancel(upload_id)
        worker.cancel(uuid4())  # does not run here
        await calls.until(lambda calls: calls.cancelled == [upload_id])
        calls.open.set()
        await calls.until(lambda calls: calls.ended == [other])
        await until_idle(redis)
    assert len(calls.started) == 2  # no attempt was made again


async def test_the_next_job_of_the_upload_runs(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.open.clear()
    async with working(job_settings, calls) as worker:
        await queue.enqueue(upload_id)
        await calls.until(lambda calls: len(calls.started) == 1)
        await queue.enqueue(upload_id)
        worker.cancel(upload_id)
        await calls.until(lambda calls: len(calls.started) == 2)
        calls.open.set()
        await until_idle(redis)
    assert (calls.cancelled, calls.ended) == ([upload_id], [upload_id])


async def test_a_load_that_does_not_stop_holds_nobody_up(
    job_settings: Settings, queue: LoadQueue, redis: Redis, upload_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_CANCEL_SECONDS", 0.1)
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn(_upload_id: UUID) -> None:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        ended.set()

    async with working(job_settings, stubborn) as worker:
        await queue.enqueue(upload_id)
        await started.wait()
        worker.cancel(upload_id)
        await until_idle(redis)
        assert worker.running == []
    release.set()
    await ended.wait()
