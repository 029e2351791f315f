from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from stream_api.errors import Failure
from stream_api.flow.tasks import cancel_and_wait
from stream_api.jobs import reconciler as reconciler_module
from stream_api.jobs.queue import LoadQueue
from stream_api.jobs.reconciler import Reconciler, Round
from stream_api.status.connection import open_redis
from tests.jobs.conftest import Calls, eventually, until_idle, working


class World:
    """Markers, manifests and rows, in memory: what the reconciler is told of the storage and the database."""

    def __init__(self) -> None:
        self.pending: dict[UUID, None] = {}
        self.stored: set[UUID] = set()
        self.ended: set[UUID] = set()
        self.error: Exception | None = None
        #: Clear: listing waits.
        self.open = asyncio.Event()
        self.open.set()
        self.listings = 0

    def upload(self, *, stored: bool = True, ended: bool = False) -> UUID:
        upload_id = uuid4()
        self.pending[upload_id] = None
        if stored:
            self.stored.add(upload_id)
        if ended:
            self.ended.add(upload_id)
        return upload_id

    async def list_pending(self) -> AsyncIterator[UUID]:
        self.listings += 1
        await self.open.wait()
        if self.error is not None:
            raise self.error
        for upload_id in list(self.pending):
            yield upload_id

    async def is_stored(self, upload_id: UUID, /) -> bool:
        return upload_id in self.stored

    async def mark_pending(self, upload_id: UUID, /) -> None:
        self.pending[upload_id] = None

    async def clear_pending(self, upload_id: UUID, /) -> None:
        self.pending.pop(upload_id, None)

    async def has_ended(self, upload_id: UUID) -> bool:
        return upload_id in self.ended

    async def load(self, upload_id: UUID) -> None:
        """What a worker does."""
        self.ended.add(upload_id)
        self.pending.pop(upload_id, None)


@pytest.fixture
def world() -> World:
    return World()


def reconciler(world: World, queue: LoadQueue, redis: Redis, interval_seconds: float = 0.0) -> Reconciler:
    return Reconciler(
        pending=world,
        has_ended=world.has_ended,
        enqueue=queue.ensure,
        redis=redis,
        interval_seconds=interval_seconds,
    )


async def test_a_round_enqueues_what_waits_and_clears_what_has_ended(
    job_settings: Settings, queue: LoadQueue, redis: Redis, world: World, calls: Calls
) -> None:
    waiting, receiving, ended = world.upload(), world.upload(stored=False), world.upload(ended=True)
    one = reconciler(world, queue, redis)
    assert await one.reconcile() == Round(enqueued=1, cleared=1, unstored=1)
    assert set(world.pending) == {waiting, receiving}
    assert ended not in world.pending
    assert await one.reconcile() == Round(enqueued=1, cleared=0, unstored=1)  # it has a job, and gets no other
    async with working(job_settings, calls):
        await calls.until(lambda calls: calls.ended == [waiting])
        await until_idle(redis)
    assert calls.started == [waiting]


async def test_uploads_are_loaded_after_redis_was_flushed(
    job_settings: Settings, queue: LoadQueue, redis: Redis, world: World
) -> None:
    uploads = [world.upload() for _ in range(3)]
    for upload_id in uploads:
        await queue.enqueue(upload_id)
    await redis.flushdb()
    running = asyncio.create_task(reconciler(world, queue, redis, 0.05).run())

    async def done() -> bool:
        return world.ended == set(uploads)

    async with working(job_settings, world.load):
        await eventually(done)
    await cancel_and_wait(running)


async def test_uploads_that_came_while_redis_was_away_are_loaded_when_it_is_back(
    own_redis: Valkey, world: World
) -> None:
    settings = Settings(redis_url=SecretStr(own_redis.url), job_lease_seconds=2)
    await asyncio.to_thread(own_redis.stop)
    queue = LoadQueue(settings)
    upload_id = world.upload()
    async with open_redis(settings) as redis, working(settings, world.load):
        one = reconciler(world, queue, redis, 0.1)
        with pytest.raises(Failure):
            await one.reconcile()
        running = asyncio.create_task(one.run())
        await asyncio.to_thread(own_redis.start)

        async def done() -> bool:
            return world.ended == {upload_id}

        await eventually(done)
        await cancel_and_wait(running)
    await queue.close()


async def test_one_at_a_time_and_one_in_an_interval(queue: LoadQueue, redis: Redis, world: World) -> None:
    world.upload()
    first, second = reconciler(world, queue, redis, 1000), reconciler(world, queue, redis, 1000)
    world.open.clear()
    under_way = asyncio.create_task(first.reconcile())

    async def listing() -> bool:
        return world.listings == 1

    await eventually(listing)
    assert await second.reconcile() is None
    world.open.set()
    assert await under_way == Round(enqueued=1)
    assert await second.reconcile() is None
    assert 30 < await redis.ttl("stream-api:reconciler") <= 800
    await redis.delete("stream-api:reconciler")
    assert await second.reconcile() == Round(enqueued=1)


async def test_a_round_that_fails_frees_the_lock_and_the_next_one_works(
    queue: LoadQueue, redis: Redis, world: World
) -> None:
    world.upload()
    one = reconciler(world, queue, redis, 1000)
    world.error = Failure("storage_unavailable", "x")
    with pytest.raises(Failure):
        await one.reconcile()
    world.error = None
    assert await one.reconcile() == Round(enqueued=1)


async def test_no_error_ends_the_loop(queue: LoadQueue, redis: Redis, world: World) -> None:
    world.error = ValueError("a bug")
    running = asyncio.create_task(reconciler(world, queue, redis, 0.01).run())

    async def several() -> bool:
        return world.listings > 3

    await eventually(several)
    world.error = None
    upload_id = world.upload(ended=True)

    async def cleared() -> bool:
        return upload_id not in world.pending

    await eventually(cleared)
    await cancel_and_wait(running)


async def test_a_retry_in_the_moment_of_clearing_keeps_its_marker(queue: LoadQueue, redis: Redis, world: World) -> None:
    upload_id = world.upload(ended=True)
    asked = 0

    async def has_ended(_upload_id: UUID) -> bool:
        nonlocal asked
        asked += 1
        return asked == 1

    one = Reconciler(pending=world, has_ended=has_ended, enqueue=queue.ensure, redis=redis, interval_seconds=0)
    assert await one.reconcile() == Round()
    assert upload_id in world.pending


async def test_a_long_round_keeps_its_lock_and_one_that_lost_it_stops(
    queue: LoadQueue, redis: Redis, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "_LOCK_SECONDS", 0.0)  # due for renewal after each upload
    for _ in range(3):
        world.upload(ended=True)
    original = redis.set

    async def with_a_lasting_lock(*arguments: object, **options: object) -> object:
        return await original("stream-api:reconciler", arguments[1], px=60000)  # type: ignore[arg-type]

    monkeypatch.setattr(redis, "set", with_a_lasting_lock)
    found = await reconciler(world, queue, redis).reconcile()
    # The first renewal, for no time at all, ended the lock; the second found it gone.
    assert found == Round(cleared=2)
