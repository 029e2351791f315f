"""The same `Idempotency-Key` again: one upload, whatever happens to the requests."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from pydantic import SecretStr

from stream_api.config import MIB, Settings
from stream_api.datasets.dataset import built_in
from stream_api.http.status import record_of_manifest
from stream_api.ledger.expiry import Expiry
from stream_api.ledger.pool import open_pool
from stream_api.load.loader import intake_of
from stream_api.storage.manifests import read_manifest
from stream_api.upload.claims import claim_key
from stream_api.upload.ids import derived_upload_id
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.support.faults import FaultProxy
from tests.support.settings import change
from tests.upload.conftest import PART
from tests.upload.forms import END, HEADERS, field, file, raw_client, until

KEY = "6f0c1b1e-retry"
WITH_KEY = {**HEADERS, "Idempotency-Key": KEY}
UPLOAD_ID = derived_upload_id(KEY)
SMALL = b"id,event_type\n"
BIG = os.urandom(2 * PART + 100)
FIELDS = field("a", b"b") + field("callbackUrl", b"https://x.test/y")

Answer = tuple[int, dict[str, Any], bool]


async def post(serving: Serving, body: bytes, headers: dict[str, str] = WITH_KEY) -> Answer:
    """Status and document of the answer, and whether it says that it is a replay."""
    async with serving.client.post(f"{serving.url}/upload", data=io.BytesIO(body), headers=headers) as answer:
        document = await answer.json(content_type=None)
        if answer.status == 202:
            assert answer.headers["Location"] == document["statusUrl"] == f"/upload/{document['uploadId']}/status"
        if answer.status == 409:
            assert int(answer.headers["Retry-After"]) > 0
        return answer.status, document, answer.headers.get("Idempotency-Replayed") == "true"


async def post_at_once(serving: Serving, body: bytes, times: int) -> list[Answer]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=times)) as client:

        async def upload() -> Answer:
            async with client.post(f"{serving.url}/upload", data=io.BytesIO(body), headers=WITH_KEY) as answer:
                replayed = answer.headers.get("Idempotency-Replayed") == "true"
                return answer.status, await answer.json(content_type=None), replayed

        return await asyncio.gather(*(upload() for _ in range(times)))


async def check_one_is_stored(serving: Serving, bucket: Bucket, content: bytes) -> None:
    """One object, one manifest, one marker, of the upload of the key; and nothing is held."""
    await until(lambda: serving.uploads.leftovers.count == 0)
    manifest = await read_manifest(serving.store, UPLOAD_ID)
    assert manifest is not None
    assert await serving.store.get(manifest.key) == content
    keys = await asyncio.to_thread(bucket.keys)
    assert sorted(keys) == sorted([manifest.key, f"uploads/{UPLOAD_ID}/manifest.json", f"pending/{UPLOAD_ID}"])
    assert await asyncio.to_thread(bucket.open_multipart_uploads) == []
    assert (serving.uploads.budget.used_bytes, serving.uploads.budget.waiting) == (0, 0)
    assert serving.uploads.active == {}


async def claim_is_free(serving: Serving) -> None:
    async with asyncio.timeout(6):  # before it would expire
        while await serving.redis.exists(claim_key(UPLOAD_ID)):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serve_behind_redis(settings: Settings) -> AsyncIterator[tuple[Serving, FaultProxy]]:
    """The service with a proxy between it and Redis."""
    url = settings.redis_url.get_secret_value()
    async with FaultProxy.before(url) as proxy, serve(change(settings, redis_url=SecretStr(proxy.url(url)))) as serving:
        yield serving, proxy


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["one part", "several"])
async def test_the_same_again_is_answered_with_the_first(
    small_each_store: Settings, bucket_each_store: Bucket, content: bytes
) -> None:
    async with serve(small_each_store) as serving:
        status, first, replayed = await post(serving, FIELDS + file(content) + END)
        assert (status, first["uploadId"], replayed) == (202, str(UPLOAD_ID), False)
        stored = await read_manifest(serving.store, UPLOAD_ID)
        # Another order, name and content type are no other upload.
        again = field("file", content, file_name="other.bin") + FIELDS + END
        peak = serving.uploads.budget.peak_bytes
        assert await post(serving, again) == (202, first, True)
        assert serving.uploads.budget.peak_bytes == peak
        assert await read_manifest(serving.store, UPLOAD_ID) == stored
        await check_one_is_stored(serving, bucket_each_store, content)
        assert not await serving.redis.exists(claim_key(UPLOAD_ID))
        # Without the key it is another upload, as ever.
        status, other, replayed = await post(serving, FIELDS + file(content) + END, HEADERS)
        assert (status, UUID(other["uploadId"]).version, replayed) == (202, 7, False)


@pytest.mark.parametrize(
    ("body", "differs"),
    [
        (FIELDS + file(BIG[:-1]) + END, ["file"]),
        (FIELDS + file(BIG + b"x") + END, ["file"]),
        (FIELDS + file(BIG + BIG) + END, ["file"]),
        (FIELDS + file(b"x" + BIG[1:]) + END, ["file"]),
        (file(BIG) + field("a", b"b") + END, ["callbackUrl"]),
        (file(BIG) + field("callbackUrl", b"https://x.test/z") + field("a", b"c") + END, ["callbackUrl", "a"]),
        (file(BIG) + FIELDS + field("mode", b"atomic") + END, ["mode"]),
    ],
    ids=["shorter", "longer", "far longer", "other bytes", "no callbackUrl", "other values", "one more field"],
)
async def test_another_upload_with_the_key_is_refused(
    small: Settings, bucket: Bucket, body: bytes, differs: list[str]
) -> None:
    async with serve(small) as serving:
        assert (await post(serving, FIELDS + file(BIG) + END))[0] == 202
        status, document, _ = await post(serving, body)
        assert (status, document["code"], document["differs"]) == (422, "idempotency_key_reused", differs)
        assert document["uploadId"] == str(UPLOAD_ID)
        assert all(name in document["detail"] for name in differs)
        await check_one_is_stored(serving, bucket, BIG)
        assert (await post(serving, FIELDS + file(BIG) + END))[2]


async def test_a_replay_is_a_form_like_any_other(small: Settings, bucket: Bucket) -> None:
    async with serve(small) as serving:
        assert (await post(serving, file(BIG) + END))[0] == 202
        for body, code in (
            (file(b"") + END, "file_empty"),
            (END, "file_missing"),
            (file(BIG), "upload_incomplete"),
            (file(BIG) + field("dataset", b"nope") + END, "dataset_unknown"),
        ):
            assert (await post(serving, body))[1]["code"] == code
        await check_one_is_stored(serving, bucket, BIG)


async def test_a_replay_says_what_has_become_of_the_upload(small: Settings, bucket: Bucket) -> None:
    async with serve(small) as serving:
        await post(serving, file(BIG) + END)
        manifest = await read_manifest(serving.store, UPLOAD_ID)
        assert manifest is not None
        await serving.redis.flushdb()
        assert (await post(serving, file(BIG) + END))[1]["status"] == "uploaded"
        # The job that was lost is there again.
        assert await serving.redis.exists(f"stream-api:loads:{UPLOAD_ID}")
        # As if its data had gone without anybody having loaded it: that is not stored.
        await serving.store.delete(manifest.key)
        status, document, _ = await post(serving, file(BIG) + END)
        assert (status, document["code"]) == (503, "storage_unavailable")
        taken = await serving.ledger.take(intake_of(manifest, built_in("webhook_events")))
        await serving.ledger.fail(UPLOAD_ID, taken.run, code="data_gone", message="no", extra={})  # type: ignore[union-attr]
        # Whether Redis has not heard of it, or knows nothing.
        await serving.statuses.write(record_of_manifest(manifest))
        for _ in range(2):
            status, document, replayed = await post(serving, file(BIG) + END)
            assert (status, document["status"], replayed) == (202, "failed", True)
            await serving.redis.flushdb()


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "gr\u00fcn", "a\tb"])
async def test_what_is_no_key_is_refused_before_the_body_is_read(small: Settings, key: str) -> None:
    async with serve(small) as serving, raw_client(serving.port) as client:
        await client.start(100 * MIB, **{"Idempotency-Key": key})
        status, _, document = await client.answer()
        assert (status, document["code"]) == (400, "idempotency_key_invalid")
        status, document, _ = await post(serving, file(SMALL) + END, {**HEADERS, "Idempotency-Key": "x" * 255})
        assert status == 202


async def test_two_keys_are_no_key(small: Settings) -> None:
    async with serve(small) as serving, raw_client(serving.port) as client:
        await client.start(100 * MIB, **{"Idempotency-Key": "a\r\nIdempotency-Key: b"})
        status, _, document = await client.answer()
        assert (status, document["code"]) == (400, "idempotency_key_invalid")


async def test_while_the_first_is_running_the_key_is_in_use(small: Settings, bucket: Bucket) -> None:
    body = file(BIG) + END
    async with serve(small) as serving, serve(small) as another_process:
        async with raw_client(serving.port) as client:
            await client.start(len(body), **{"Idempotency-Key": KEY})
            await client.send(body[:PART])
            await until(lambda: serving.uploads.active)
            for process in (serving, another_process):
                status, document, _ = await post(process, body)
                assert (status, document["code"]) == (409, "idempotency_key_in_use")
            await client.send(body[PART:])
            status, headers, _ = await client.answer()
            assert status == 202
            assert "idempotency-replayed" not in headers
        assert (await post(another_process, body))[::2] == (202, True)
        await check_one_is_stored(serving, bucket, BIG)


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["one part", "several"])
async def test_twenty_at_once(small_each_store: Settings, bucket_each_store: Bucket, content: bytes) -> None:
    async with serve(small_each_store) as serving:
        answers = await post_at_once(serving, file(content) + END, 20)
        assert {status for status, _, _ in answers} <= {202, 409}
        assert {document["uploadId"] for _, document, _ in answers} == {str(UPLOAD_ID)}
        assert [replayed for status, _, replayed in answers if status == 202].count(False) == 1
        await check_one_is_stored(serving, bucket_each_store, content)


@pytest.mark.parametrize("content", [SMALL, BIG], ids=["one part", "several"])
async def test_twenty_at_once_without_redis(
    small_each_store: Settings, bucket_each_store: Bucket, content: bytes
) -> None:
    async with serve_behind_redis(small_each_store) as (serving, proxy):
        await proxy.refuse()
        answers = await post_at_once(serving, file(content) + END, 20)
        assert {status for status, _, _ in answers} == {202}
        assert {document["uploadId"] for _, document, _ in answers} == {str(UPLOAD_ID)}
        assert [replayed for _, _, replayed in answers].count(False) == 1
        await check_one_is_stored(serving, bucket_each_store, content)


async def test_a_flush_of_redis_during_an_upload_harms_nothing(small: Settings, bucket: Bucket) -> None:
    body = file(BIG) + END
    async with serve(small) as serving, raw_client(serving.port) as client:
        await client.start(len(body), **{"Idempotency-Key": KEY})
        await client.send(body[:PART])
        await until(lambda: serving.uploads.active)
        await serving.redis.flushdb()
        # Nobody knows of the first any more, so this one goes on and comes first.
        assert (await post(serving, body))[::2] == (202, False)
        await client.send(body[PART:])
        status, headers, document = await client.answer()
        assert (status, document["uploadId"]) == (202, str(UPLOAD_ID))
        assert headers["idempotency-replayed"] == "true"
        await check_one_is_stored(serving, bucket, BIG)


async def test_of_two_different_ones_at_once_the_second_is_refused(small: Settings, bucket: Bucket) -> None:
    body = file(BIG) + END
    async with serve(small) as serving, raw_client(serving.port) as client:
        await client.start(len(body), **{"Idempotency-Key": KEY})
        await client.send(body[:PART])
        await until(lambda: serving.uploads.active)
        await serving.redis.flushdb()
        assert (await post(serving, file(SMALL) + END))[::2] == (202, False)
        await client.send(body[PART:])
        status, _, document = await client.answer()
        assert (status, document["code"], document["differs"]) == (422, "idempotency_key_reused", ["file"])
        await check_one_is_stored(serving, bucket, SMALL)


async def test_a_killed_client_may_try_again_at_once(small_each_store: Settings, bucket_each_store: Bucket) -> None:
    body = file(BIG) + END
    async with serve(small_each_store) as serving:
        async with raw_client(serving.port) as client:
            await client.start(len(body), **{"Idempotency-Key": KEY})
            await client.send(body[: PART + MIB])
            await until(lambda: serving.uploads.active)
            (progress,) = serving.uploads.active.values()
            await until(lambda: progress.channel.stats.sent_items >= 1)
        await claim_is_free(serving)
        assert (await post(serving, body))[::2] == (202, False)
        await check_one_is_stored(serving, bucket_each_store, BIG)


async def test_a_key_whose_upload_is_being_removed_is_in_use_and_then_free(small: Settings, bucket: Bucket) -> None:
    async with serve(small) as serving, await open_pool(small) as pool:
        assert (await post(serving, file(BIG) + END))[0] == 202
        manifest = await read_manifest(serving.store, UPLOAD_ID)
        assert manifest is not None
        run = (await serving.ledger.take(intake_of(manifest, built_in("webhook_events")))).run  # type: ignore[union-attr]
        await serving.ledger.fail(UPLOAD_ID, run, code="header_mismatch", message="no", extra={})
        expiry = Expiry(pool)
        (expired,) = await expiry.expire(retention_seconds=0, limit=10)
        for key in await asyncio.to_thread(bucket.keys):
            await serving.store.delete(key)
        status, document, _ = await post(serving, file(SMALL) + END)
        assert (status, document["code"]) == (409, "idempotency_key_in_use")
        await expiry.forget(expired)
        status, document, replayed = await post(serving, file(SMALL) + END)
        assert (status, document["status"], replayed) == (202, "uploaded", False)
        await check_one_is_stored(serving, bucket, SMALL)
        assert (await serving.get(document["statusUrl"]))[1]["status"] == "uploaded"


async def test_without_postgres_a_key_is_as_good(small: Settings, bucket: Bucket) -> None:
    url = small.database_url.get_secret_value()
    async with FaultProxy.before(url) as proxy:
        await proxy.stall()
        async with serve(change(small, database_url=SecretStr(proxy.url(url)))) as serving:
            async with asyncio.timeout(20):
                assert (await post(serving, file(BIG) + END))[::2] == (202, False)
            await check_one_is_stored(serving, bucket, BIG)
