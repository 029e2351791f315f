"""The same `Idempotency-Key` again after a fault: the upload is stored once, and whoever got 202 was told the truth."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.storage.keys import manifest_key
from stream_api.storage.manifests import read_manifest
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.upload.conftest import PART
from tests.upload.forms import END, file, raw_client, until
from tests.upload.test_faults import serve_behind
from tests.upload.test_idempotency import BIG, KEY, SMALL, UPLOAD_ID, check_one_is_stored, post

BODY = file(BIG) + END


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["one part", "several"])
async def test_every_answer_of_s3_is_lost_once(
    small_each_store: Settings, bucket_each_store: Bucket, content: bytes
) -> None:
    """Whatever request it is whose answer is lost, the client tries again and the upload is stored once."""
    statuses = []
    for after in itertools.count(0, 300):
        async with serve_behind(small_each_store, s3_max_attempts=1) as (serving, proxy):
            # Twice, for aiohttp sends a PUT again by itself.
            await proxy.reset_after(after, "down", times=2)
            status, document, _ = await post(serving, file(content) + END)
            statuses.append(status)
            assert status == 202 or document["code"] == "storage_unavailable"
            none_lost = proxy.passed_bytes["down"] < after
            await proxy.restore()
            await until(lambda: serving.uploads.leftovers.count == 0)
            status, _, _ = await post(serving, file(content) + END)
            assert status == 202
            await check_one_is_stored(serving, bucket_each_store, content)
            async for key in serving.store.list_keys(""):
                await serving.store.delete(key)
        if none_lost:
            break
    assert set(statuses) == {202, 503}


async def test_the_answer_to_the_manifest_is_lost_for_good(
    small: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(small) as serving:
        put = serving.store.put

        async def lossy(key: str, *arguments: Any, **options: Any) -> str:
            etag = await put(key, *arguments, **options)
            if key == manifest_key(UPLOAD_ID):
                raise Failure("storage_unavailable", "lost")
            return etag

        monkeypatch.setattr(serving.store, "put", lossy)
        # It is there, and says so itself.
        status, _, replayed = await post(serving, BODY)
        assert (status, replayed) == (202, False)
        await check_one_is_stored(serving, bucket, BIG)
        assert (await post(serving, BODY))[::2] == (202, True)
        await check_one_is_stored(serving, bucket, BIG)


async def lose(
    settings: Settings, bucket: Bucket, fault: Callable[[Serving], Awaitable[None]], content: bytes
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """An upload that ends while another with its key has been stored, with a fault as soon as it is known to have lost.

    :returns: the loser's answer.
    """
    body = file(content) + END
    async with serve(settings) as serving:
        async with raw_client(serving.port) as client:
            await client.start(len(body), **{"Idempotency-Key": KEY})
            await client.send(body[:PART])
            await until(lambda: serving.uploads.active)
            await serving.redis.flushdb()
            status, _, replayed = await post(serving, BODY)
            assert (status, replayed) == (202, False)
            await fault(serving)
            await client.send(body[PART:])
            answer = await client.answer()
        await check_one_is_stored(serving, bucket, BIG)
        assert (await post(serving, BODY))[::2] == (202, True)
        return answer


async def test_the_loser_cannot_remove_its_data_at_first(
    small: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = []

    async def fault(serving: Serving) -> None:
        delete = serving.store.delete

        async def refuse_once(key: str) -> None:
            deleted.append(key)
            if len(deleted) == 1:
                raise Failure("storage_unavailable", "away")
            await delete(key)

        monkeypatch.setattr(serving.store, "delete", refuse_once)

    status, headers, document = await lose(small, bucket, fault, BIG)
    assert (status, document["uploadId"]) == (202, str(UPLOAD_ID))
    assert headers["idempotency-replayed"] == "true"
    assert len(deleted) == 2
    assert len(set(deleted)) == 1
    assert deleted[0].startswith(f"uploads/{UPLOAD_ID}/data-")


async def test_the_loser_cannot_read_what_has_won(
    small: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fault(serving: Serving) -> None:
        get, delete, deleted = serving.store.get, serving.store.delete, asyncio.Event()

        async def refuse_once(key: str) -> bytes:
            if deleted.is_set():
                deleted.clear()
                raise Failure("storage_unavailable", "away")
            return await get(key)

        async def delete_and_break(key: str) -> None:
            await delete(key)
            deleted.set()

        monkeypatch.setattr(serving.store, "get", refuse_once)
        monkeypatch.setattr(serving.store, "delete", delete_and_break)

    # It does not know, and what has won stays; the next try will tell.
    status, _, document = await lose(small, bucket, fault, BIG)
    assert (status, document["code"]) == (503, "storage_unavailable")


async def test_a_server_that_stops_lets_go_of_the_key(small: Settings, bucket: Bucket) -> None:
    async with serve(small) as another_process, AsyncExitStack() as clients:
        async with serve(small) as serving:
            client = await clients.enter_async_context(raw_client(serving.port))
            await client.start(len(BODY), **{"Idempotency-Key": KEY})
            await client.send(BODY[: PART * 2])
            await until(lambda: serving.uploads.active)
            (progress,) = serving.uploads.active.values()
            await until(lambda: progress.channel.stats.sent_items >= 1)
            assert (await post(another_process, BODY))[0] == 409
        assert (await post(another_process, BODY))[::2] == (202, False)
        await check_one_is_stored(another_process, bucket, BIG)


async def test_s3_dies_before_the_manifest(small: Settings, bucket: Bucket) -> None:
    async with serve_behind(small, s3_max_attempts=1) as (serving, proxy):
        async with raw_client(serving.port) as client:
            await client.start(len(BODY), **{"Idempotency-Key": KEY})
            await client.send(BODY[: -len(END)])
            await until(lambda: serving.uploads.active)
            (progress,) = serving.uploads.active.values()
            await until(lambda: progress.channel.stats.sent_items >= 1)
            await proxy.refuse()
            await client.send(END)
            status, _, document = await client.answer()
        assert (status, document["code"]) == (503, "storage_unavailable")
        await proxy.restore()
        await until(lambda: serving.uploads.leftovers.count == 0)
        assert await asyncio.to_thread(bucket.keys) == []
        assert await read_manifest(serving.store, UPLOAD_ID) is None
        assert (await post(serving, BODY))[::2] == (202, False)
        await check_one_is_stored(serving, bucket, BIG)
