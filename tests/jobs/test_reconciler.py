from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Collection
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from stream_api.errors import Failure
from stream_api.flow.tasks import cancel_and_wait
from stream_api.jobs import lock
from stream_api.jobs import reconciler as reconciler_module
from stream_api.jobs.queue import LoadQueue
from stream_api.jobs.reconciler import Reconciler, Round
from stream_api.ledger.rows import Known
from stream_api.status.connection import open_redis
from stream_api.storage.manifests import Manifest
from tests.jobs.conftest import Calls, eventually, until_idle, working
from tests.support.manifests import CREATED_AT, make_manifest


class World:
    """Markers, manifests and rows, in memory: what the reconciler is told of the storage and the database."""

    def __init__(self) -> None:
        self.pending: dict[UUID, None] = {}
        self.stored: set[UUID] = set()
        self.rows: dict[UUID, Known] = {}
        #: Manifests that were read, and sizes of the pages that were asked for.
        self.reads: list[UUID] = []
        self.pages: list[int] = []
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
            self.rows[upload_id] = Known("completed", CREATED_AT)
        return upload_id

    async def list_pending(self) -> AsyncGenerator[UUID, None]:
        self.listings += 1
        await self.open.wait()
        if self.error is not None:
            raise self.error
        for upload_id in list(self.pending):
            yield upload_id

    async def read(self, upload_id: UUID, /) -> Manifest | None:
        self.reads.append(upload_id)
        return make_manifest(upload_id) if upload_id in self.stored else None

    async def mark_pending(self, upload_id: UUID, /) -> None:
        self.pending[upload_id] = None

    async def open_uploads(self, limit: int) -> list[UUID]:
        return [upload_id for upload_id, row in self.rows.items() if not row.ended][:limit]

    async def clean_up(self, manifest: Manifest, state: str) -> None:
        assert state == "completed"
        self.pending.pop(manifest.upload_id, None)

    async def states(self, upload_ids: Collection[UUID]) -> dict[UUID, Known]:
        self.pages.append(len(upload_ids))
        return {each: self.rows[each] for each in upload_ids if each in self.rows}

    @property
    def ended(self) -> set[UUID]:
        return {upload_id for upload_id, row in self.rows.items() if row.ended}

    async def load(self, upload_id: UUID) -> None:
        """What a worker does."""
        self.rows[upload_id] = Known("completed", CREATED_AT)
        self.pending.pop(upload_id, None)


@pytest.fixture
def world() -> World:
    return World()


def reconciler(world: World, queue: LoadQueue, redis: Redis, interval_seconds: float = 0.0) -> Reconciler:
    return Reconciler(
        pending=world,
        states=world.states,
        open_uploads=world.open_uploads,
        jobs=queue,
        clean_up=world.clean_up,
        redis=redis,
        interval_seconds=interval_seconds,
    )


async def test_a_round_enqueues_what_waits_and_clears_what_has_ended(
    job_settings: Settings, queue: LoadQueue, redis: Redis, world: World, calls: Calls
) -> None:
    waiting, receiving, ended = world.upload(), world.upload(stored=False), world.upload(ended=True)
    one = reconciler(world, queue, redis)
    assert await one.reconcile() == Round(enqueued=1, cleaned=1, unstored=1)
    assert set(world.pending) == {waiting, receiving}
    assert ended not in world.pending
    assert await one.reconcile() == Round(enqueued=0, cleaned=0, unstored=1)  # it has a job, and gets no other
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
    assert await second.reconcile() == Round()  # it has its job


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


async def test_only_what_has_neither_a_row_nor_a_job_is_read(queue: LoadQueue, redis: Redis, world: World) -> None:
    running, busy, new = world.upload(), world.upload(), world.upload()
    world.rows[running] = Known("processing", CREATED_AT)
    await queue.enqueue(busy)
    assert await reconciler(world, queue, redis).reconcile() == Round(enqueued=2)
    assert world.reads == [new]
    assert await queue.without_job([running, busy, new]) == []


async def test_a_job_that_has_ended_and_was_kept_is_none(queue: LoadQueue, redis: Redis, world: World) -> None:
    upload_id = world.upload()
    await queue.enqueue(upload_id)
    await redis.hset(f"stream-api:loads:{upload_id}", "finishedOn", "1")
    assert await queue.without_job([upload_id]) == [upload_id]


async def test_an_id_that_has_come_back_is_loaded_and_one_that_has_expired_is_the_janitors(
    queue: LoadQueue, redis: Redis, world: World
) -> None:
    back, expired = world.upload(), world.upload()
    world.rows[back] = Known("expired", CREATED_AT - timedelta(days=7))
    world.rows[expired] = Known("expired", CREATED_AT)
    assert await reconciler(world, queue, redis).reconcile() == Round(enqueued=1)
    assert await queue.without_job([back, expired]) == [expired]
    assert set(world.pending) == {back, expired}


async def test_many_uploads_are_asked_for_by_pages(queue: LoadQueue, redis: Redis, world: World) -> None:
    for _ in range(1001):
        world.upload(ended=True)
    assert await reconciler(world, queue, redis).reconcile() == Round(cleaned=1001)
    assert world.pages == [500, 500, 1]


async def test_a_long_round_keeps_its_lock_and_one_that_lost_it_stops(
    queue: LoadQueue, redis: Redis, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOCK_SECONDS", 2.0)  # due for renewal after each upload, as if that took long
    monkeypatch.setattr(reconciler_module, "_PAGE", 1)
    monkeypatch.setattr(lock, "monotonic", itertools.count().__next__)
    for _ in range(3):
        world.upload(ended=True)
    clean_up, cleaned = world.clean_up, 0

    async def flushed_after_two(manifest: Manifest, state: str) -> None:
        nonlocal cleaned
        await clean_up(manifest, state)
        cleaned += 1
        if cleaned == 2:
            await redis.flushdb()

    monkeypatch.setattr(world, "clean_up", flushed_after_two)
    assert await reconciler(world, queue, redis).reconcile() == Round(cleaned=2)
    assert len(world.pending) == 1


async def test_a_marker_that_got_lost_is_made_up_for(queue: LoadQueue, redis: Redis, world: World) -> None:
    lost, running = world.upload(), world.upload()
    for upload_id in (lost, running):
        world.rows[upload_id] = Known("uploaded", CREATED_AT)
        del world.pending[upload_id]
    await queue.ensure(running)
    found = await reconciler(world, queue, redis).reconcile()
    assert found is not None
    assert (found.enqueued, list(world.pending)) == (1, [lost])
    assert await queue.without_job([lost, running]) == []
