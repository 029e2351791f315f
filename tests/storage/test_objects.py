from __future__ import annotations

import asyncio
import io
import os
import tracemalloc
from contextlib import aclosing

import pytest
from pydantic import SecretStr

from stream_api.config import MIB, Settings
from stream_api.errors import Failure
from stream_api.storage.errors import AlreadyExists
from stream_api.storage.objects import ObjectStore, open_object_store
from tests.conftest import Bucket
from tests.support.faults import FaultProxy
from tests.support.settings import change

FAST = {"s3_backoff_seconds": 0.01}


async def collect(store: ObjectStore, prefix: str) -> list[str]:
    return [key async for key in store.list_keys(prefix)]


async def test_objects(settings_each_store: Settings) -> None:
    async with open_object_store(settings_each_store) as store:
        await store.check()
        etag = await store.put("a/1", b"hello", content_type="text/csv")
        assert await store.put("a/2", io.BytesIO(b"hello")) == etag
        assert await store.get("a/1") == b"hello"
        info = await store.stat("a/1")
        assert (info.size_bytes, info.etag) == (5, etag)
        assert await collect(store, "a/") == ["a/1", "a/2"]
        assert await collect(store, "b/") == []
        await store.delete("a/1")
        await store.delete("a/1")
        for missing in (store.get("a/1"), store.stat("a/1")):
            with pytest.raises(Failure) as caught:
                await missing
            assert caught.value.code == "data_gone"


async def test_only_one_of_many_puts_wins(settings_each_store: Settings) -> None:
    async with open_object_store(settings_each_store) as store:
        bodies = [b"%d" % number for number in range(10)]
        results = await asyncio.gather(
            *(store.put("one", body, if_absent=True) for body in bodies), return_exceptions=True
        )
        winners = [body for body, result in zip(bodies, results, strict=True) if isinstance(result, str)]
        assert winners == [await store.get("one")]
        assert sum(isinstance(result, AlreadyExists) for result in results) == 9


async def test_listing_goes_over_pages(settings_each_store: Settings) -> None:
    async with open_object_store(settings_each_store) as store:
        limit = asyncio.Semaphore(30)

        async def put(number: int) -> None:
            async with limit:
                await store.put(f"many/{number:04}", b"")

        async def delete(key: str) -> None:
            async with limit:
                await store.delete(key)

        async with asyncio.TaskGroup() as group:
            for number in range(1005):
                group.create_task(put(number))
        assert await collect(store, "many/") == [f"many/{number:04}" for number in range(1005)]
        # As the janitor does: what was listed may go before the next page is asked for.
        async with aclosing(store.list_keys("many/")) as keys, asyncio.TaskGroup() as group:
            async for key in keys:
                group.create_task(delete(key))
        assert await collect(store, "many/") == []


async def test_a_body_is_sent_without_a_copy_of_it(settings: Settings, bucket: Bucket) -> None:
    data = os.urandom(8 * MIB)
    buffer = io.BytesIO(bytes(len(data)))
    buffer.write(data)
    async with open_object_store(settings) as store:
        multipart_id = await store.create_multipart("big")
        tracemalloc.start()
        try:
            await store.upload_part("big", multipart_id, 1, data)
            await store.upload_part("big", multipart_id, 2, buffer)
            await store.put("one", data)
            # What is read of it to be signed, and what is on its way.
            assert tracemalloc.get_traced_memory()[1] < 4 * MIB
        finally:
            tracemalloc.stop()
        assert await store.get("one") == data
        await store.abort_multipart("big", multipart_id)


async def test_multipart(settings_each_store: Settings) -> None:
    parts = [os.urandom(5 * MIB), os.urandom(5 * MIB), b"end"]
    async with open_object_store(settings_each_store) as store:
        multipart_id = await store.create_multipart("big")
        assert await store.list_multiparts("big") == [("big", multipart_id)]
        etags = await asyncio.gather(
            *(store.upload_part("big", multipart_id, number, io.BytesIO(part)) for number, part in enumerate(parts, 1))
        )
        etag = await store.complete_multipart("big", multipart_id, list(enumerate(etags, 1)))
        assert await store.get("big") == b"".join(parts)
        assert (await store.stat("big")).etag == etag
        assert await store.list_multiparts("") == []


async def test_abort_leaves_nothing(settings_each_store: Settings, bucket_each_store: Bucket) -> None:
    async with open_object_store(settings_each_store) as store:
        first = await store.create_multipart("big")
        second = await store.create_multipart("big")
        other = await store.create_multipart("big-other")
        await store.upload_part("big", first, 1, os.urandom(5 * MIB))
        await store.upload_part("big", second, 1, b"x")
        await store.abort_multipart("big", first)
        assert await store.list_multiparts("") == [("big-other", other)]
        await store.abort_multipart("big", first)
        await store.abort_multipart("big-other")
    assert bucket_each_store.keys() == bucket_each_store.open_multipart_uploads() == []


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"bucket": "no-such-bucket-here"}, "STREAM_API_BUCKET"),
        ({"s3_access_key_id": "nobody"}, "AWS_ACCESS_KEY_ID"),
        ({"s3_secret_access_key": SecretStr("wrong")}, "AWS_SECRET_ACCESS_KEY"),
    ],
    ids=["bucket", "key", "secret"],
)
async def test_refusals_say_what_to_do(settings_each_store: Settings, changes: dict[str, object], hint: str) -> None:
    async with open_object_store(change(settings_each_store, **changes)) as store:
        for operation in (store.put("a", b"x"), store.create_multipart("a"), store.get("a"), collect(store, "")):
            with pytest.raises(Failure) as caught:
                await operation
            assert caught.value.code == "storage_refused"
            assert not caught.value.transient
            assert hint in caught.value.detail
        with pytest.raises(Failure) as caught:
            await store.check()
        assert caught.value.code == "storage_refused"


async def test_an_absent_store_is_unavailable_and_start_does_not_connect(settings: Settings) -> None:
    async with FaultProxy.before(str(settings.s3_endpoint_url)) as proxy:
        changed = change(settings, s3_endpoint_url=proxy.url(str(settings.s3_endpoint_url)), s3_max_attempts=2, **FAST)
        await proxy.refuse()
        async with open_object_store(changed) as store:
            for operation in (store.put("a", b"x"), store.check(), store.get("a")):
                with pytest.raises(Failure) as caught:
                    await operation
                assert caught.value.code == "storage_unavailable"
                assert caught.value.transient
            await proxy.restore()
            await store.put("a", b"x")
            assert await store.get("a") == b"x"


async def test_a_broken_connection_is_tried_again(settings: Settings) -> None:
    async with FaultProxy.before(str(settings.s3_endpoint_url)) as proxy:
        changed = change(settings, s3_endpoint_url=proxy.url(str(settings.s3_endpoint_url)), **FAST)
        async with open_object_store(changed) as store:
            body = os.urandom(6 * MIB)
            multipart_id = await store.create_multipart("big")
            await proxy.reset_after(2 * MIB, "up")
            etag = await store.upload_part("big", multipart_id, 1, io.BytesIO(body))
            # The answer is lost after the store has done its work: the second try must not take that for a failure.
            await proxy.reset_after(0, "down")
            await store.complete_multipart("big", multipart_id, [(1, etag)])
            assert await store.get("big") == body
            await proxy.reset_after(0, "down")
            await store.put("once", b"mine", if_absent=True)
            with pytest.raises(AlreadyExists):
                await store.put("once", b"other", if_absent=True)
            await proxy.reset_after(0, "down")
            await store.delete("once")


async def test_a_store_that_stops_reading_does_not_hang_a_put(settings: Settings) -> None:
    async with FaultProxy.before(str(settings.s3_endpoint_url)) as proxy:
        changed = change(
            settings,
            s3_endpoint_url=proxy.url(str(settings.s3_endpoint_url)),
            s3_read_timeout_seconds=0.5,
            s3_connect_timeout_seconds=0.5,
            s3_max_attempts=1,
        )
        async with open_object_store(changed) as store:
            await store.check()
            await proxy.stall()
            with pytest.raises(Failure) as caught:
                await store.put("small", b"x")
            assert caught.value.code == "storage_unavailable"
        await proxy.restore()
        async with open_object_store(settings) as store:
            await store.put("small", b"x")
