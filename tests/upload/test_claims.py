from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.status.connection import open_redis
from stream_api.upload.claims import KeyClaims, claim_key
from tests.support.faults import FaultProxy
from tests.support.settings import change


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with open_redis(settings) as client:
        yield client


async def until_true(redis: Redis, key: str, *, there: bool) -> None:
    while bool(await redis.exists(key)) != there:  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(0.01)


async def test_one_at_a_time(redis: Redis) -> None:
    upload_id = uuid4()
    one, other = KeyClaims(redis), KeyClaims(redis)
    async with one.holding(upload_id):
        for claims in (one, other):
            with pytest.raises(Failure) as refused:
                async with claims.holding(upload_id):
                    pass
            assert refused.value.code == "idempotency_key_in_use"
        async with other.holding(uuid4()):
            pass
        assert 0 < await redis.pttl(claim_key(upload_id)) <= 10_000
    assert await redis.keys("stream-api:*") == []
    async with other.holding(upload_id):
        pass


async def test_it_is_renewed_and_taken_anew_after_a_flush(redis: Redis) -> None:
    upload_id = uuid4()
    key = claim_key(upload_id)
    async with KeyClaims(redis, lease_seconds=0.3).holding(upload_id):
        token = await redis.get(key)
        # That it is there after its time says that it was renewed; only time can show it.
        await asyncio.sleep(0.5)
        assert await redis.get(key) == token
        await redis.flushdb()
        await until_true(redis, key, there=True)
        assert await redis.get(key) == token
    assert not await redis.exists(key)


async def test_that_of_another_is_left_alone(redis: Redis) -> None:
    upload_id = uuid4()
    key = claim_key(upload_id)
    async with KeyClaims(redis, lease_seconds=0.3).holding(upload_id):
        await redis.set(key, "another's")
        await asyncio.sleep(0.2)  # a renewal comes in between
    assert await redis.get(key) == "another's"


async def test_that_of_a_killed_process_ends(redis: Redis) -> None:
    upload_id = uuid4()
    # What such a process leaves: nobody renews it.
    await redis.set(claim_key(upload_id), "dead", px=200)
    await until_true(redis, claim_key(upload_id), there=False)
    async with KeyClaims(redis).holding(upload_id):
        pass


async def test_a_cancelled_upload_lets_go(redis: Redis) -> None:
    upload_id = uuid4()

    holding = asyncio.Event()

    async def hold() -> None:
        async with KeyClaims(redis).holding(upload_id):
            holding.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await holding.wait()
    assert await redis.exists(claim_key(upload_id))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await redis.exists(claim_key(upload_id))


async def test_an_upload_that_is_cancelled_before_redis_has_answered_lets_go(settings: Settings, redis: Redis) -> None:
    url = settings.redis_url.get_secret_value()
    upload_id = uuid4()
    async with (
        FaultProxy.before(url) as proxy,
        open_redis(change(settings, redis_url=SecretStr(proxy.url(url)))) as client,
    ):
        await client.ping()
        # Redis has the script, so that the first command is the one that counts.
        async with KeyClaims(client).holding(uuid4()):
            pass
        await proxy.stall("down")

        async def hold() -> None:
            async with KeyClaims(client).holding(upload_id):
                pytest.fail("there was no answer")

        task = asyncio.create_task(hold())
        await until_true(redis, claim_key(upload_id), there=True)
        task.cancel()
        await proxy.restore()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await redis.exists(claim_key(upload_id))


@pytest.mark.parametrize("fault", ["refuse", "stall"])
async def test_a_redis_that_is_away_stops_nobody(settings: Settings, redis: Redis, fault: str) -> None:
    url = settings.redis_url.get_secret_value()
    upload_id = uuid4()
    async with (
        FaultProxy.before(url) as proxy,
        open_redis(change(settings, redis_url=SecretStr(proxy.url(url)))) as client,
    ):
        await getattr(proxy, fault)()
        async with asyncio.timeout(10), KeyClaims(client, lease_seconds=0.3).holding(upload_id):
            await proxy.restore()
            # From now on Redis can tell.
            await until_true(redis, claim_key(upload_id), there=True)
        await until_true(redis, claim_key(upload_id), there=False)
