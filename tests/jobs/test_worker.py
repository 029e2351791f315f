from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import bullmq
import pytest
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.errors import Failure, RunLost
from stream_api.flow.jitter import full_jitter
from stream_api.jobs import worker as worker_module
from stream_api.jobs.queue import LoadQueue
from stream_api.jobs.worker import Backoff, LoadWorker, _worker_url, end_bullmq
from tests.jobs.conftest import Calls, eventually, job_keys, until_idle, working
from tests.support.settings import change


async def test_a_job_runs_once_however_often_it_is_enqueued(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    await asyncio.gather(*(queue.enqueue(upload_id) for _ in range(5)))
    other = uuid4()
    await queue.enqueue(other)
    async with working(job_settings, calls):
        await calls.until(lambda calls: len(calls.ended) == 2)
        await until_idle(redis)
    assert sorted(calls.started) == sorted([upload_id, other])
    # All that is left in a Redis that is shared lies under our prefix, and nothing is kept for each upload.
    keys = [key async for key in redis.scan_iter("*")]
    assert all(key.startswith("stream-api:") for key in keys)
    assert not [key for key in keys if str(upload_id) in key]


async def test_an_ended_job_can_be_enqueued_again(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.errors = [ValueError("x")] * 4  # all attempts
    async with working(job_settings, calls):
        for runs in (4, 5, 6):
            await queue.enqueue(upload_id)
            await calls.until(lambda calls, runs=runs: len(calls.ended) == runs)  # type: ignore[misc]
            await until_idle(redis)


async def test_a_retry_that_comes_while_the_job_is_finishing_runs_after_it(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.open.clear()
    async with working(job_settings, calls):
        await queue.enqueue(upload_id)
        await calls.until(lambda calls: len(calls.started) == 1)
        await queue.enqueue(upload_id)
        await queue.enqueue(upload_id)
        await queue.ensure(upload_id)
        calls.open.set()
        await calls.until(lambda calls: len(calls.ended) == 2)
        await until_idle(redis)
    assert len(calls.started) == 2


async def test_the_reconciler_does_not_make_a_running_job_run_again(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.open.clear()
    async with working(job_settings, calls):
        await queue.ensure(upload_id)
        await calls.until(lambda calls: len(calls.started) == 1)
        await queue.ensure(upload_id)
        calls.open.set()
        await until_idle(redis)
    assert len(calls.started) == 1


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_a_job_that_was_kept_by_something_else_is_brought_back(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, state: str
) -> None:
    upload_id = uuid4()
    kept = bullmq.Queue("loads", {"prefix": "stream-api", "connection": job_settings.redis_url.get_secret_value()})
    ended = asyncio.Event()

    async def process(_job: object, _token: str) -> None:
        ended.set()
        if state == "failed":
            raise ValueError

    await kept.add("load", {}, {"jobId": str(upload_id), "removeOnComplete": False, "removeOnFail": False})
    old = bullmq.Worker(
        "loads", process, {"prefix": "stream-api", "connection": job_settings.redis_url.get_secret_value()}
    )
    await ended.wait()

    async def is_kept() -> bool:
        return await redis.zscore(f"stream-api:loads:{state}", str(upload_id)) is not None

    await eventually(is_kept)
    ending = asyncio.create_task(end_bullmq(old))
    while not ending.done():
        # As our worker does: a time-out of redis-py can swallow a cancellation.
        await asyncio.wait({ending}, timeout=0.1)
        if old.waiting is not None:
            old.waiting.cancel()
    await ending
    await kept.close()

    await queue.enqueue(upload_id)
    async with working(job_settings, calls):
        await calls.until(lambda calls: len(calls.ended) == 1)


async def test_transient_failures_use_up_no_attempt(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.errors = [Failure("database_unavailable", "x") for _ in range(12)]
    await queue.enqueue(upload_id)
    async with working(job_settings, calls):
        await calls.until(lambda calls: len(calls.ended) == 13)
        await until_idle(redis)


async def test_other_errors_get_four_attempts(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.errors = [ValueError("x"), Failure("table_missing", "x"), Failure("database_unavailable", "x"), KeyError()]
    calls.errors += [asyncio.InvalidStateError(), ValueError("never")]
    await queue.enqueue(upload_id)
    async with working(job_settings, calls):
        await calls.until(lambda calls: len(calls.ended) == 5)
        await until_idle(redis)
    assert len(calls.errors) == 1


async def test_a_lost_run_ends_the_job_quietly(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.errors = [RunLost()]
    await queue.enqueue(upload_id)
    async with working(job_settings, calls):
        await calls.until(lambda calls: len(calls.ended) == 1)
        await until_idle(redis)
    assert len(calls.started) == 1


async def test_a_load_that_cancels_itself_does_not_end_the_worker(
    job_settings: Settings, queue: LoadQueue, redis: Redis, upload_id: UUID
) -> None:
    started = 0

    async def run(_upload_id: UUID) -> None:
        nonlocal started
        started += 1
        if started < 3:
            raise asyncio.CancelledError

    await queue.enqueue(upload_id)
    async with working(job_settings, run):
        await until_idle(redis)
    assert started == 3


async def test_stopping_hands_a_load_back_at_once(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.open.clear()
    successor = Calls()
    long_lease = change(job_settings, job_lease_seconds=120)  # it is not the lease's end that frees the job
    first = LoadWorker(long_lease, calls)
    await first.start()
    await queue.enqueue(upload_id)
    await calls.until(lambda calls: bool(calls.started))
    assert first.running == [upload_id]
    async with working(long_lease, successor):
        await first.stop()
        assert calls.cancelled == [upload_id]
        await successor.until(lambda calls: calls.ended == [upload_id], 60)
        await until_idle(redis)
    assert first.running == []


async def test_a_load_that_does_not_stop_is_handed_back_all_the_same(
    job_settings: Settings, queue: LoadQueue, calls: Calls, upload_id: UUID, monkeypatch: pytest.MonkeyPatch
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

    long_lease = change(job_settings, job_lease_seconds=120)
    first = LoadWorker(long_lease, stubborn)
    await first.start()
    await queue.enqueue(upload_id)
    await started.wait()
    await first.stop()
    async with working(long_lease, calls):
        await calls.until(lambda calls: bool(calls.ended), 60)
    release.set()
    await ended.wait()


async def test_a_load_whose_lease_is_lost_is_cancelled_and_the_next_one_left_alone(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls, upload_id: UUID
) -> None:
    calls.open.clear()
    await queue.enqueue(upload_id)
    async with working(change(job_settings, job_lease_seconds=2), calls):
        await calls.until(lambda calls: bool(calls.started))
        # Somebody else holds the lock, as after a pause of ours that was longer than the lease.
        await redis.set(f"stream-api:loads:{upload_id}:lock", "another:1", px=3000)
        await calls.until(lambda calls: calls.cancelled == [upload_id])
        assert await redis.get(f"stream-api:loads:{upload_id}:lock") == "another:1"
        calls.open.set()
        # The other one died: its lock ends, and the job is taken up again.
        await calls.until(lambda calls: calls.ended == [upload_id])
        await until_idle(redis)
    assert len(calls.started) == 2


async def test_a_later_run_in_the_same_process_waits_for_the_end_of_the_earlier_one(
    job_settings: Settings, queue: LoadQueue, redis: Redis, upload_id: UUID
) -> None:
    running = most = started = 0
    first, second = asyncio.Event(), asyncio.Event()

    async def run(_upload_id: UUID) -> None:
        nonlocal running, most, started
        running += 1
        started += 1
        first.set()
        most = max(most, running)
        try:
            if started == 1:
                await asyncio.Event().wait()
            second.set()
            # Longer than the lease: its lock is renewed, though the earlier run's end made BullMQ forget it.
            await asyncio.sleep(3)
        except asyncio.CancelledError:
            await asyncio.sleep(0.2)
            raise
        finally:
            running -= 1

    await queue.enqueue(upload_id)
    async with working(change(job_settings, load_concurrency=2, job_lease_seconds=2), run):
        await first.wait()
        # As if the lease had ended and the job gone back, before the renewal has noticed.
        await redis.delete(f"stream-api:loads:{upload_id}:lock")
        await redis.lrem("stream-api:loads:active", 0, str(upload_id))
        await redis.lpush("stream-api:loads:wait", str(upload_id))
        await redis.zadd("stream-api:loads:marker", {"0": 0})
        await second.wait()
        await until_idle(redis)
    assert (started, most) == (2, 1)


async def test_stopping_before_and_without_any_start(job_settings: Settings, calls: Calls) -> None:
    await LoadWorker(job_settings, calls).stop()
    worker = LoadWorker(job_settings, calls)
    await worker.start()
    with pytest.raises(RuntimeError):
        await worker.start()
    await worker.stop()


async def test_jobs_run_at_once_as_far_as_the_setting_goes(
    job_settings: Settings, queue: LoadQueue, redis: Redis, calls: Calls
) -> None:
    calls.open.clear()
    for _ in range(4):
        await queue.enqueue(uuid4())
    async with working(change(job_settings, load_concurrency=3), calls):
        await calls.until(lambda calls: len(calls.started) == 3)
        assert len(await job_keys(redis)) > 0
        calls.open.set()
        await calls.until(lambda calls: len(calls.ended) == 4)
        await until_idle(redis)


def test_jitter_is_full_and_bounded() -> None:
    for attempt, bound in ((1, 0.5), (2, 1.0), (5, 8.0), (6, 15.0), (10_000, 15.0)):
        delays = [full_jitter(attempt, base_seconds=0.5, cap_seconds=15) for _ in range(300)]
        assert 0 <= min(delays) < bound / 3
        assert bound / 1.5 < max(delays) <= bound
    assert Backoff(base_seconds=0, cap_seconds=0).delay_seconds(3) == 0


def test_the_blocking_read_has_time_enough_whatever_the_url_says() -> None:
    assert _worker_url("redis://:p%40ss@h:1/2?socket_timeout=1&x=y") == (
        "redis://:p%40ss@h:1/2?socket_timeout=15&x=y&socket_connect_timeout=5"
    )
    assert _worker_url("unix:///run/redis.sock?db=3").startswith("unix:///run/redis.sock?db=3&socket_timeout=15")
