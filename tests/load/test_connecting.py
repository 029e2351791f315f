"""Lanes that connect beside the preparation of a load: whatever becomes of that, none is left open."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.ledger.pool import LaneConnection, connect_lane, disconnect
from stream_api.load import connecting as module
from stream_api.load.connecting import connecting
from tests.load.conftest import Loading
from tests.support.faults import FaultProxy
from tests.support.settings import change


@pytest.fixture
def upload_id() -> UUID:
    return uuid4()


async def test_lanes_are_there_until_the_body_ends(loading: Loading, upload_id: UUID) -> None:
    async with connecting(loading.settings, upload_id, 3, count=2, slot=None) as connected:
        lanes = await connected()
        assert [await lane.fetchval("SELECT 1") for lane in lanes] == [1, 1]
        assert [lane["application_name"] for lane in await loading.lanes()] == [f"stream-api:{upload_id}:3"] * 2
    assert all(lane.is_closed() for lane in lanes)


async def test_the_connection_of_the_slot_is_the_first_and_stays_open(loading: Loading, upload_id: UUID) -> None:
    slot = await connect_lane(loading.settings, upload_id, 8)
    for count in (1, 2):
        async with connecting(loading.settings, upload_id, 7, count=count, slot=slot) as connected:
            lanes = await connected()
            assert (lanes[0], len(lanes)) == (slot, count)
            names = {lane["application_name"] for lane in await loading.lanes()}
            assert names == {f"stream-api:{upload_id}:7"}
        assert not slot.is_closed()
    await disconnect(slot)


async def test_a_body_that_fails_leaves_none_behind(loading: Loading, upload_id: UUID) -> None:
    with pytest.raises(ZeroDivisionError):
        async with connecting(loading.settings, upload_id, 1, count=2, slot=None):
            _ = 1 // 0
    lanes = []

    async def body() -> None:
        async with connecting(loading.settings, upload_id, 1, count=2, slot=None) as connected:
            lanes.extend(await connected())
            _ = 1 // 0

    with pytest.raises(ZeroDivisionError):
        await body()
    assert [lane.is_closed() for lane in lanes] == [True, True]


async def test_a_database_that_is_away_is_told_to_who_waits_for_the_lanes(settings: Settings, upload_id: UUID) -> None:
    dsn = settings.database_url.get_secret_value()
    async with FaultProxy.before(dsn) as proxy:
        proxied = change(settings, database_url=proxy.url(dsn))
        await proxy.refuse()
        async with connecting(proxied, upload_id, 1, count=2, slot=None) as connected:
            with pytest.raises(Failure) as failed:
                await connected()
        assert failed.value.code == "database_unavailable"
        # Nobody waits: what the body raises is what counts.
        with pytest.raises(ZeroDivisionError):
            async with connecting(proxied, upload_id, 1, count=2, slot=None):
                _ = 1 // 0


async def test_who_is_cancelled_again_while_one_is_slow_to_end_closes_the_others(
    loading: Loading, upload_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes: list[LaneConnection] = []
    there, ending, end = asyncio.Event(), asyncio.Event(), asyncio.Event()
    calls = iter(["quick", "slow"])

    async def connect(*args: Any) -> LaneConnection:
        if next(calls) == "quick":
            lanes.append(await connect_lane(*args))
            there.set()
            return lanes[0]
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await end.wait()
        raise AssertionError

    async def body() -> None:
        async with connecting(loading.settings, upload_id, 1, count=2, slot=None):
            await asyncio.Event().wait()

    monkeypatch.setattr(module, "connect_lane", connect)
    load = asyncio.create_task(body())
    await there.wait()
    load.cancel()
    await ending.wait()
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert [lane.is_closed() for lane in lanes] == [True]
    end.set()
