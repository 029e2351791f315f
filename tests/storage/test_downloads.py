from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from stream_api.config import KIB, MIB, Settings
from stream_api.errors import Failure
from stream_api.storage.downloads import read_range
from stream_api.storage.objects import ObjectStore, open_object_store
from tests.support.faults import FaultProxy
from tests.support.settings import change

DATA = os.urandom(3 * MIB + 17)


@asynccontextmanager
async def proxied(settings: Settings, **changes: object) -> AsyncIterator[tuple[ObjectStore, FaultProxy]]:
    async with FaultProxy.before(str(settings.s3_endpoint_url)) as proxy:
        url = proxy.url(str(settings.s3_endpoint_url))
        async with open_object_store(
            change(settings, s3_endpoint_url=url, **{"s3_backoff_seconds": 0.01, **changes})
        ) as store:
            yield store, proxy


async def drain(chunks: AsyncIterator[bytes], got: bytearray) -> None:
    async for chunk in chunks:
        got += chunk


async def read(
    store: ObjectStore, etag: str, start: int = 0, end: int = len(DATA), chunk_bytes: int = 64 * KIB
) -> bytes:
    got = bytearray()
    async with aclosing(read_range(store, "data", etag=etag, start=start, end=end, chunk_bytes=chunk_bytes)) as chunks:
        async for chunk in chunks:
            assert 0 < len(chunk) <= chunk_bytes
            got += chunk
    return bytes(got)


async def test_ranges(settings_each_store: Settings) -> None:
    async with open_object_store(settings_each_store) as store:
        etag = await store.put("data", DATA)
        for start, end in [(0, len(DATA)), (0, 1), (100, 100), (5, 1_000_000), (len(DATA) - 1, len(DATA))]:
            assert await read(store, etag, start, end) == DATA[start:end]


@pytest.mark.parametrize("fault", ["reset_after", "close_after"])
async def test_a_broken_download_goes_on_where_it_broke(settings_each_store: Settings, fault: str) -> None:
    async with proxied(settings_each_store) as (store, proxy):
        etag = await store.put("data", DATA)
        await getattr(proxy, fault)(MIB, "down", times=2)
        got = bytearray()
        async with aclosing(
            read_range(store, "data", etag=etag, start=7, end=len(DATA), chunk_bytes=128 * KIB)
        ) as chunks:
            await drain(chunks, got)
        assert got == DATA[7:]
        assert proxy.accepted >= 3
        assert await store.get("data") == DATA


async def test_a_stall_is_taken_for_a_break(settings: Settings) -> None:
    async with proxied(settings, s3_read_timeout_seconds=0.3) as (store, proxy):
        etag = await store.put("data", DATA)
        got = bytearray()
        async with aclosing(
            read_range(store, "data", etag=etag, start=0, end=len(DATA), chunk_bytes=64 * KIB)
        ) as chunks:
            got += await anext(chunks)
            await proxy.stall("down")
            accepted = proxy.accepted
            with pytest.raises(Failure) as caught:
                await drain(chunks, got)
        assert caught.value.code == "storage_unavailable"
        assert caught.value.transient
        assert proxy.accepted > accepted
        assert DATA.startswith(got)
        await proxy.restore()
        assert await read(store, etag) == DATA


async def test_gone_and_changed(settings_each_store: Settings) -> None:
    async with open_object_store(settings_each_store) as store:
        etag = await store.put("data", DATA)
        await store.put("data", b"other" * MIB)
        with pytest.raises(Failure) as caught:
            await read(store, etag)
        assert caught.value.code == "data_changed"
        await store.delete("data")
        with pytest.raises(Failure) as caught:
            await read(store, etag)
        assert caught.value.code == "data_gone"


async def test_a_change_in_the_middle_is_seen_by_the_resumed_download(settings_each_store: Settings) -> None:
    async with proxied(settings_each_store) as (store, proxy):
        etag = await store.put("data", DATA)
        await proxy.reset_after(MIB, "down")
        async with aclosing(
            read_range(store, "data", etag=etag, start=0, end=len(DATA), chunk_bytes=64 * KIB)
        ) as chunks:
            got = bytearray(await anext(chunks))
            # However much of it has come by now, the connection ends before the rest.
            async with open_object_store(settings_each_store) as direct:
                await direct.put("data", b"x" * len(DATA))
            with pytest.raises(Failure) as caught:
                await drain(chunks, got)
        assert caught.value.code == "data_changed"
        assert DATA.startswith(got)


async def test_a_range_past_the_end_is_not_a_short_answer(settings_each_store: Settings) -> None:
    async with open_object_store(settings_each_store) as store:
        etag = await store.put("data", DATA)
        with pytest.raises(Failure) as caught:
            await read(store, etag, len(DATA) - 10, len(DATA) + 10)
        assert caught.value.code == "data_changed"


async def test_closing_early_closes_the_connection(settings: Settings) -> None:
    async with proxied(settings) as (store, proxy):
        etag = await store.put("data", DATA)
        async with aclosing(
            read_range(store, "data", etag=etag, start=0, end=len(DATA), chunk_bytes=64 * KIB)
        ) as chunks:
            await anext(chunks)
            assert proxy.open_connections == 1
        await proxy.until(lambda proxy: proxy.open_connections == 0)
        assert await read(store, etag) == DATA
