"""Signals between two "processes", each with a connection of its own to a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from stream_api.flow.tasks import cancel_and_wait
from stream_api.jobs import signals as signals_module
from stream_api.jobs.signals import Signals
from stream_api.status.connection import open_redis
from tests.jobs.conftest import eventually
from tests.support.faults import FaultProxy
from tests.support.patience import PATIENCE_SECONDS
from tests.support.settings import change


@asynccontextmanager
async def listening(settings: Settings, *, subscribed: bool = True) -> AsyncIterator[Signals]:
    """The signals of one process, once they are subscribed to."""
    async with open_redis(settings) as redis:
        signals = Signals(redis)
        receiving = asyncio.create_task(signals.run())
        try:
            if subscribed:
                with signals.waiting(uuid4()) as event:  # the beginning of a subscription is a reason to look
                    await soon(event)
            yield signals
        finally:
            await cancel_and_wait(receiving)


async def soon(event: asyncio.Event, seconds: float = PATIENCE_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        await event.wait()


def pass_through(settings: Settings, proxy: FaultProxy) -> Settings:
    return change(settings, redis_url=SecretStr(proxy.url(settings.redis_url.get_secret_value())))


async def test_who_waits_for_an_upload_is_told_in_every_process(job_settings: Settings, upload_id: UUID) -> None:
    async with listening(job_settings) as here, listening(job_settings) as there:
        with (
            here.waiting(upload_id) as one,
            here.waiting(upload_id) as two,
            there.waiting(upload_id) as three,
            there.waiting(uuid4()) as another,
        ):
            await here.tell_ended(upload_id)
            assert one.is_set()
            assert two.is_set()
            await soon(three)
            assert not another.is_set()
        # Who no longer waits leaves nothing behind.
        assert not here._waiting
        assert not there._waiting


async def test_a_cancelling_reaches_every_worker(job_settings: Settings, upload_id: UUID) -> None:
    async with listening(job_settings) as here, listening(job_settings) as there:
        told, told_there = [], asyncio.Event()

        def cancel(which: UUID) -> None:
            told.append(which)
            told_there.set()

        with there.cancelling(cancel):
            await here.tell_cancelled(upload_id)
            await soon(told_there)
        assert told == [upload_id]
        with there.waiting(upload_id) as event:
            await here.tell_cancelled(upload_id)  # nobody listens to it any more
            await here.tell_ended(upload_id)
            await soon(event)
        assert told == [upload_id]


async def test_databases_of_one_redis_are_strangers(
    job_settings: Settings, redis_server: Valkey, upload_id: UUID
) -> None:
    other = change(job_settings, redis_url=SecretStr(redis_server.url_for(0)))
    marker = uuid4()
    async with listening(job_settings) as here, listening(job_settings) as near, listening(other) as there:
        with near.waiting(upload_id) as event, there.waiting(upload_id) as strange, there.waiting(marker) as echo:
            await here.tell_ended(upload_id)
            await soon(event)
            # What is sent comes back by Redis too: by then the other signal would have come.
            await there.tell_ended(marker)
            echo.clear()
            await soon(echo)
            assert not strange.is_set()


async def test_without_redis_this_process_is_told_all_the_same_and_nobody_waits(
    job_settings: Settings, upload_id: UUID
) -> None:
    told: list[UUID] = []
    async with (
        FaultProxy.before(job_settings.redis_url.get_secret_value()) as proxy,
        listening(pass_through(job_settings, proxy)) as signals,
    ):
        for fault in (proxy.refuse, proxy.stall):
            await proxy.restore()
            await fault()
            with signals.waiting(upload_id) as event, signals.cancelling(told.append):
                began = time.monotonic()
                await signals.tell_ended(upload_id)
                await signals.tell_cancelled(upload_id)
                assert time.monotonic() - began < 2 * signals_module._PUBLISH_SECONDS + 1
                assert event.is_set()
    assert told == [upload_id, upload_id]


async def test_a_new_subscription_has_everybody_look_again(job_settings: Settings, upload_id: UUID) -> None:
    async with (
        FaultProxy.before(job_settings.redis_url.get_secret_value()) as proxy,
        listening(pass_through(job_settings, proxy)) as signals,
        listening(job_settings) as sender,
    ):
        with signals.waiting(upload_id) as event:
            await proxy.refuse()
            await sender.tell_ended(upload_id)  # which nobody hears
            assert not event.is_set()
            await proxy.restore()
            await soon(event)
            event.clear()
            await sender.tell_ended(upload_id)
            await soon(event)


async def test_a_connection_that_died_without_a_word_is_replaced(
    job_settings: Settings, upload_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals_module, "_QUIET_SECONDS", 0.2)
    monkeypatch.setattr(signals_module, "SOCKET_TIMEOUT_SECONDS", 0.2)
    async with (
        FaultProxy.before(job_settings.redis_url.get_secret_value()) as proxy,
        listening(pass_through(job_settings, proxy)) as signals,
    ):
        before = proxy.accepted

        async def replaced() -> bool:
            return proxy.accepted > before

        with signals.waiting(upload_id) as event:
            await proxy.stall()
            await eventually(replaced)
            await proxy.restore()
            await soon(event)


async def test_a_silent_connection_is_kept_as_long_as_it_answers(
    job_settings: Settings, upload_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals_module, "_QUIET_SECONDS", 0.02)
    async with (
        FaultProxy.before(job_settings.redis_url.get_secret_value()) as proxy,
        listening(pass_through(job_settings, proxy)) as signals,
        listening(job_settings) as sender,
    ):
        before, passed = proxy.accepted, proxy.passed_bytes["down"]

        async def asked_some_times() -> bool:
            return proxy.passed_bytes["down"] > passed + 100

        await eventually(asked_some_times)
        assert proxy.accepted == before
        with signals.waiting(upload_id) as event:
            await sender.tell_ended(upload_id)
            await soon(event)


async def test_it_begins_without_redis(job_settings: Settings, upload_id: UUID) -> None:
    async with FaultProxy.before(job_settings.redis_url.get_secret_value()) as proxy:
        await proxy.refuse()
        async with listening(pass_through(job_settings, proxy), subscribed=False) as signals:
            with signals.waiting(upload_id) as event:
                await signals.tell_ended(uuid4())
                await proxy.restore()
                await soon(event)


@pytest.mark.parametrize("nonsense", [b"", b"ended", b"ended x", b"what? ", b"\xff\xfe", b"ended \0"])
async def test_nonsense_on_the_channel_ends_nothing(
    job_settings: Settings, redis: Redis, upload_id: UUID, nonsense: bytes
) -> None:
    async with listening(job_settings) as here, listening(job_settings) as there:
        await redis.publish(here._channel, nonsense)
        await redis.publish(here._channel, b"later " + str(upload_id).encode())
        with there.waiting(upload_id) as event:
            await here.tell_ended(upload_id)
            await soon(event)
