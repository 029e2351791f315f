"""S3 that refuses, dies, stalls or is slow; Redis that is down; a process that stops."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import SecretStr

from stream_api.config import MIB, Settings
from stream_api.storage.manifests import list_pending, read_manifest
from stream_api.upload.buffers import zeros
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.support.faults import FaultProxy
from tests.support.settings import change
from tests.upload.conftest import PART
from tests.upload.forms import END, HEADERS, file, raw_client, until

BIG = os.urandom(4 * PART + 100)
BODY = file(BIG) + END


async def check_nothing_left(serving: Serving, bucket: Bucket) -> None:
    """Nothing in the bucket, no room taken, and the next upload works."""
    await until(lambda: serving.uploads.leftovers.count == 0)
    assert await asyncio.to_thread(bucket.keys) == []
    assert await asyncio.to_thread(bucket.open_multipart_uploads) == []
    budget = serving.uploads.budget
    assert (budget.used_bytes, budget.waiting) == (0, 0)
    assert (serving.uploads.active, len(serving.uploads.buffers)) == ({}, 0)
    status, _ = await serving.post(BODY, headers=HEADERS)
    assert status == 202


@asynccontextmanager
async def serve_behind(settings: Settings, **changes: object) -> AsyncIterator[tuple[Serving, FaultProxy]]:
    """The service with a proxy between it and S3."""
    async with FaultProxy.before(str(settings.s3_endpoint_url)) as proxy:
        url = proxy.url(str(settings.s3_endpoint_url))
        async with serve(change(settings, s3_endpoint_url=url, **changes)) as serving:
            yield serving, proxy


@pytest.mark.parametrize("sent", [0, PART // 2, 2 * PART, 4 * PART], ids=["at once", "part 1", "part 3", "last part"])
async def test_s3_dies_in_the_middle_and_comes_back(
    small_each_store: Settings, bucket_each_store: Bucket, sent: int
) -> None:
    async with serve_behind(small_each_store, s3_max_attempts=2) as (serving, proxy):
        async with raw_client(serving.port) as client:
            await client.start(len(BODY))
            # More than whole parts: aiohttp holds a chunk back, as the boundary may lie in it.
            prefix = sent + MIB if sent else 0
            await client.send(BODY[:prefix])
            wanted = sent // PART
            await until(lambda: serving.uploads.active)
            (progress,) = serving.uploads.active.values()
            await until(lambda: progress.channel.stats.sent_items >= wanted)
            await proxy.refuse()
            sending = asyncio.create_task(client.send(BODY[prefix:]))
            status, _, document = await client.answer()
            await asyncio.gather(sending, return_exceptions=True)
        assert (status, document["code"]) == (503, "storage_unavailable")
        await proxy.restore()
        await check_nothing_left(serving, bucket_each_store)


async def test_s3_dies_while_the_upload_is_completed(small_each_store: Settings, bucket_each_store: Bucket) -> None:
    async with serve_behind(small_each_store, s3_max_attempts=1) as (serving, proxy):
        for size in (10, len(BIG)):
            body = file(BIG[:size])
            async with raw_client(serving.port) as client:
                await client.start(len(body) + len(END))
                await client.send(body)
                await until(lambda: serving.uploads.active)
                (progress,) = serving.uploads.active.values()
                parts = max(0, size // PART - 1)
                await until(lambda: progress.channel.stats.sent_items >= parts)  # noqa: B023
                await until(lambda: serving.uploads.budget.used_bytes <= PART)
                # From here on: the last part, complete or put, marker, manifest.
                await proxy.refuse()
                await client.send(END)
                status, _, document = await client.answer()
            assert (status, document["code"]) == (503, "storage_unavailable")
            await proxy.restore()
            await until(lambda: serving.uploads.leftovers.count == 0)
            assert await asyncio.to_thread(bucket_each_store.keys) == []
        await check_nothing_left(serving, bucket_each_store)


async def test_every_answer_of_s3_is_lost_once(small: Settings, bucket: Bucket) -> None:
    """Whatever request it is whose answer is lost, the upload is stored or nothing is left."""
    for after in range(12):
        async with serve_behind(small, s3_max_attempts=1) as (serving, proxy):
            # Answers are some hundred bytes each: this cuts at another one in each round.
            await proxy.reset_after(after * 150, "down")
            status, document = await serving.post(BODY, headers=HEADERS)
            await until(lambda: serving.uploads.leftovers.count == 0)
            keys = await asyncio.to_thread(bucket.keys)
            assert await asyncio.to_thread(bucket.open_multipart_uploads) == []
            if status == 202:
                manifest = await read_manifest(serving.store, UUID(document["uploadId"]))
                assert manifest is not None
                assert len(keys) == 3
                for key in keys:
                    await serving.store.delete(key)
            else:
                assert (status, document["code"]) == (503, "storage_unavailable")
                assert keys == []


async def test_s3_that_stalls(small: Settings, bucket: Bucket) -> None:
    async with serve_behind(small, s3_max_attempts=1, s3_read_timeout_seconds=0.5, s3_connect_timeout_seconds=0.5) as (
        serving,
        proxy,
    ):
        async with raw_client(serving.port) as client:
            await client.start(len(BODY))
            await client.send(BODY[: 2 * PART])
            await until(lambda: serving.uploads.active)
            (progress,) = serving.uploads.active.values()
            await until(lambda: progress.channel.stats.sent_items >= 1)
            await proxy.stall()
            sending = asyncio.create_task(client.send(BODY[2 * PART :]))
            status, _, document = await client.answer()
            await asyncio.gather(sending, return_exceptions=True)
        assert (status, document["code"]) == (503, "storage_unavailable")
        await proxy.restore()
    async with serve(small) as serving:
        # The process that gave up has ended; what its removal could not reach is for the next one to find.
        status, _ = await serving.post(BODY, headers=HEADERS)
        assert status == 202


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"bucket": "no-such-bucket-here"}, "STREAM_API_BUCKET"),
        ({"s3_secret_access_key": SecretStr("wrong")}, "AWS_SECRET_ACCESS_KEY"),
    ],
    ids=["bucket", "secret"],
)
@pytest.mark.parametrize("size", [10, len(BIG)])
async def test_s3_that_refuses(
    small_each_store: Settings, bucket_each_store: Bucket, changes: dict[str, object], hint: str, size: int
) -> None:
    async with serve(change(small_each_store, **changes)) as serving:
        status, document = await serving.post(file(BIG[:size]) + END, headers=HEADERS)
        assert (status, document["code"]) == (502, "storage_refused")
        assert hint in document["detail"]
        assert serving.uploads.budget.used_bytes == 0
    assert await asyncio.to_thread(bucket_each_store.keys) == []


async def test_a_slow_s3_stops_the_reading_of_the_client(small: Settings) -> None:
    settings = change(small, upload_budget_bytes=10 * PART, parts_in_flight=2)
    body = file(os.urandom(10 * PART)) + END
    async with serve_behind(settings) as (serving, proxy):
        async with raw_client(serving.port) as client:
            await client.start(len(body))
            await client.send(body[:PART])
            await until(lambda: serving.uploads.active)
            (progress,) = serving.uploads.active.values()
            await proxy.stall()
            sending = asyncio.create_task(client.send(body[PART:]))
            # Two on their way, one queued, one filled that cannot be sent: then nothing more is read.
            await until(lambda: progress.channel.stats.blocked_senders == 1)
            stats = progress.channel.stats
            assert (stats.items, stats.sent_items) == (1, 3)
            assert serving.uploads.budget.used_bytes == 4 * PART
            received = progress.stream.received_bytes
            assert received <= 4 * PART + MIB
            assert progress.stream.waiting_seconds == 0
            for _ in range(50):
                await asyncio.sleep(0)
            assert progress.stream.received_bytes == received
            assert not sending.done()
            await proxy.restore()
            status, _, _ = await client.answer()
            await sending
        assert status == 202
        assert progress.channel.stats.sent_items == 10
        assert serving.uploads.budget.used_bytes == 0


@pytest.mark.parametrize("fault", ["refuse", "stall"])
async def test_a_redis_that_is_down_does_not_stop_an_upload(small: Settings, fault: str) -> None:
    url = small.redis_url.get_secret_value()
    async with FaultProxy.before(url) as proxy:
        await getattr(proxy, fault)()
        async with serve(change(small, redis_url=SecretStr(proxy.url(url)))) as serving:
            async with asyncio.timeout(20):
                status, document = await serving.post(file(b"a,b\n") + END, headers=HEADERS)
            assert status == 202
            upload_id = UUID(document["uploadId"])
            assert await read_manifest(serving.store, upload_id) is not None
            assert [pending async for pending in list_pending(serving.store)] == [upload_id]
            status, document = await serving.get(document["statusUrl"])
            assert (status, document["status"]) == (200, "uploaded")
            await proxy.restore()
            status, document = await serving.post(file(b"a,b\n") + END, headers=HEADERS)
            assert status == 202
            assert await serving.statuses.read(UUID(document["uploadId"])) is not None


async def test_a_server_that_stops_leaves_nothing_of_an_upload_under_way(small: Settings, bucket: Bucket) -> None:
    async with AsyncExitStack() as clients:
        async with serve(small) as serving:
            client = await clients.enter_async_context(raw_client(serving.port))
            await client.start(len(BODY))
            await client.send(BODY[: 3 * PART])
            await until(lambda: serving.uploads.active)
            (progress,) = serving.uploads.active.values()
            await until(lambda: progress.channel.stats.sent_items >= 2)
        assert await asyncio.to_thread(bucket.keys) == []
        assert await asyncio.to_thread(bucket.open_multipart_uploads) == []


@pytest.mark.parametrize("sent", [0, MIB, 2 * PART], ids=["head only", "some", "parts"])
async def test_uploads_that_fail_let_go_of_their_parts_at_once(small: Settings, sent: int) -> None:
    """Without waiting for a collection of cycles: the room of a part is given to the next one, again and again."""
    settings = change(small, client_idle_timeout_seconds=0.5, upload_budget_bytes=4 * PART)
    async with serve(settings) as serving:
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(3):
                async with AsyncExitStack() as stack:
                    clients = [await stack.enter_async_context(raw_client(serving.port)) for _ in range(4)]
                    for client in clients:
                        await client.start(len(BODY))
                        await client.send(BODY[: sent + 200])
                    for client in clients:
                        status, _, document = await client.answer()
                        assert (status, document["code"]) == (408, "client_too_slow")
                await until(lambda: not serving.uploads.active and not serving.uploads.leftovers.count)
            assert tracemalloc.get_traced_memory()[0] < 2 * PART
        finally:
            tracemalloc.stop()
            gc.enable()
        assert serving.uploads.budget.used_bytes == 0


async def test_a_part_that_a_client_does_not_send_takes_no_memory() -> None:
    before = _resident_bytes()
    buffers = [zeros(64 * MIB) for _ in range(8)]
    for buffer in buffers:
        buffer.write(b"x")
    assert _resident_bytes() - before < 64 * MIB


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
