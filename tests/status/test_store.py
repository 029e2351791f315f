from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from stream_api.errors import Failure
from stream_api.status.connection import open_redis
from stream_api.status.record import StatusRecord
from stream_api.status.store import StatusStore
from tests.support.faults import FaultProxy

NOW = datetime(2026, 11, 24, 4, 0, 0, 5000, tzinfo=UTC)


def record(upload_id: UUID, *, status: str = "processing", revision: int = 1) -> StatusRecord:
    return StatusRecord(
        upload_id=upload_id,
        status=status,
        rows_read=12,
        rows_processed=10,
        rows_inserted=10,
        rows_failed=2,
        rejected={"bad_uuid": 2},
        progress=0.25,
        error={"code": "x", "message": "ü", "line": 7},
        file_name="ü.csv",
        size_bytes=100,
        sha256="0" * 64,
        dataset="webhook_events",
        revision=revision,
        created_at=NOW,
        updated_at=NOW,
    )


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(Settings(redis_url=SecretStr(redis_url))) as client:
        yield client


async def test_a_record_comes_back_as_it_was_and_expires(redis: Redis) -> None:
    store = StatusStore(redis, ttl_seconds=1000)
    upload_id = uuid4()
    assert await store.read(upload_id) is None
    await store.write(record(upload_id))
    assert await store.read(upload_id) == record(upload_id)
    assert 990 < await redis.ttl(f"stream-api:upload:{upload_id}") <= 1000
    assert await redis.keys("*") == [f"stream-api:upload:{upload_id}"]


async def test_a_record_is_json_in_camel_case(redis: Redis) -> None:
    upload_id = uuid4()
    await StatusStore(redis, ttl_seconds=10).write(record(upload_id))
    found = await redis.get(f"stream-api:upload:{upload_id}")
    assert found is not None
    stored = msgspec.json.decode(found)
    assert stored["uploadId"] == str(upload_id)
    assert stored["rowsRead"] == stored["rowsProcessed"] + stored["rowsFailed"]
    assert stored["createdAt"] == "2026-11-24T04:00:00.005000Z"
    assert stored["startedAt"] is None


async def test_a_record_of_an_earlier_run_replaces_none_of_a_later_one(redis: Redis) -> None:
    store = StatusStore(redis, ttl_seconds=10)
    upload_id = uuid4()
    await store.write(record(upload_id, revision=2))
    await store.write(record(upload_id, revision=1, status="failed"))
    assert await store.read(upload_id) == record(upload_id, revision=2)
    await store.write(record(upload_id, revision=2, status="completed"))
    await store.write(record(upload_id, revision=10, status="failed"))
    assert await store.read(upload_id) == record(upload_id, revision=10, status="failed")


@pytest.mark.parametrize("found", ["", "7", "{}", '{"run": "x"}', "not json"])
async def test_what_cannot_be_read_counts_as_absent_and_is_replaced(redis: Redis, found: str) -> None:
    store = StatusStore(redis, ttl_seconds=10)
    upload_id = uuid4()
    await redis.set(f"stream-api:upload:{upload_id}", found)
    assert await store.read(upload_id) is None
    await store.write(record(upload_id))
    assert await store.read(upload_id) == record(upload_id)


async def test_a_redis_that_is_away_or_silent_fails_soon_and_works_again(own_redis: Valkey) -> None:
    async with (
        FaultProxy.before(own_redis.url) as proxy,
        open_redis(Settings(redis_url=SecretStr(proxy.url(own_redis.url)))) as redis,
    ):
        store = StatusStore(redis, ttl_seconds=10)
        await store.check()
        await asyncio.to_thread(own_redis.stop)
        await failing(store)
        await asyncio.to_thread(own_redis.start)
        await store.check()
        await proxy.stall()
        await failing(store, attempts=1)
        await proxy.restore()
        await store.write(record(uuid4()))


async def test_wrong_credentials_say_so(own_redis: Valkey) -> None:
    url = own_redis.url.replace(own_redis.password, "wrong")
    async with open_redis(Settings(redis_url=SecretStr(url))) as redis:
        with pytest.raises(Failure, match="REDIS_URL"):
            await StatusStore(redis, ttl_seconds=10).check()


async def failing(store: StatusStore, *, attempts: int = 3) -> None:
    upload_id = uuid4()
    calls: list[Callable[[], Awaitable[object]]]
    calls = [store.check, lambda: store.read(upload_id), lambda: store.write(record(upload_id))]
    for call in calls[:attempts]:
        async with asyncio.timeout(10):
            with pytest.raises(Failure) as failed:
                await call()
        assert (failed.value.code, failed.value.transient) == ("queue_unavailable", True)


async def test_a_later_upload_with_the_id_begins_anew(redis: Redis) -> None:
    """With an `Idempotency-Key` an id can come back after its first upload has expired."""
    store = StatusStore(redis, ttl_seconds=10)
    upload_id = uuid4()
    old = record(upload_id, status="completed", revision=5)
    new = msgspec.structs.replace(record(upload_id, status="uploaded", revision=0), created_at=NOW + timedelta(days=8))
    await store.write(old)
    await store.write(new)
    assert await store.read(upload_id) == new
    await store.write(old)
    assert await store.read(upload_id) == new
