"""`?wait=` on the upload and on its status, with real servers and no worker: the tests end the uploads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from yarl import URL

from stream_api.config import Settings
from stream_api.http import waiting
from stream_api.ledger.rows import UploadRow
from stream_api.load.reporting import status_record
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.http.test_routes import FORM, failed, taken, uploaded
from tests.support.faults import FaultProxy
from tests.support.patience import PATIENCE_SECONDS
from tests.support.settings import change
from tests.upload.forms import HEADERS

Answer = tuple[int, dict[str, Any]]


async def post(serving: Serving, wait: str = "true") -> Answer:
    return await serving.post(FORM, headers=HEADERS, params={"wait": wait})


async def waiters(serving: Serving, count: int = 1) -> list[UUID]:
    """The uploads that are waited for, once there are so many."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(serving.signals._waiting) < count:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.01)
    return list(serving.signals._waiting)


async def nobody_waits(serving: Serving) -> None:
    async with asyncio.timeout(10):
        while serving.signals._waiting:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.01)


async def complete(serving: Serving, upload_id: UUID) -> UploadRow:
    """End it as a worker does, in PostgreSQL alone: nobody is told."""
    run = await taken(serving, upload_id)
    async with serving.ledger._pool.acquire() as connection:
        await connection.execute(
            "UPDATE stream_api.uploads SET size_bytes = 0, decoded_bytes = 0 WHERE id = $1", upload_id
        )
    return await serving.ledger.complete(upload_id, run)


@asynccontextmanager
async def waiting_post(serving: Serving, wait: str = "true") -> AsyncIterator[tuple[UUID, asyncio.Task[Answer]]]:
    """An upload that waits for its end."""
    answer = asyncio.create_task(post(serving, wait))
    (upload_id,) = await waiters(serving)
    yield upload_id, answer
    await nobody_waits(serving)


async def test_an_upload_that_waits_is_answered_when_its_rows_are_in_the_table(settings: Settings) -> None:
    async with serve(settings) as serving, waiting_post(serving) as (upload_id, answer):
        await complete(serving, upload_id)
        await serving.signals.tell_ended(upload_id)
        status, document = await answer
        assert (status, document["status"], document["progress"]) == (200, "completed", 1.0)
        assert document["uploadId"] == str(upload_id)
        # What has ended is answered at once, also where Redis has not heard of it.
        status, document = await serving.get(f"/upload/{upload_id}/status?wait=3000")
        assert (status, document["status"], document["fileName"]) == (200, "completed", document["fileName"])


async def test_an_upload_that_fails_meanwhile_is_answered_with_the_reason(settings: Settings) -> None:
    async with serve(settings) as serving, waiting_post(serving) as (upload_id, answer):
        await failed(serving, upload_id)
        await serving.signals.tell_ended(upload_id)
        status, document = await answer
        assert (status, document["code"], document["detail"]) == (422, "header_mismatch", "no")
        assert (document["uploadId"], document["missing"]) == (str(upload_id), ["id"])
        assert document["statusUrl"] == f"/upload/{upload_id}/status"


async def test_an_upload_that_is_cancelled_meanwhile(settings: Settings) -> None:
    async with serve(settings) as serving, waiting_post(serving) as (upload_id, answer):
        async with serving.client.delete(f"{serving.url}/upload/{upload_id}") as deleted:
            assert deleted.status == 200
        status, document = await answer
        assert (status, document["code"], document["uploadId"]) == (409, "upload_cancelled", str(upload_id))
        assert document["rowsProcessed"] == 0


async def test_when_the_time_is_over_it_is_202_as_ever(settings: Settings) -> None:
    async with serve(change(settings, max_wait_seconds=0.2)) as serving:
        for wait in ("0", "0.1", "99999"):
            assert (await post(serving, wait))[0] == 202
        status, document = await post(serving, "true")
        assert (status, document["status"]) == (202, "uploaded")
        upload_id = document["uploadId"]
        await taken(serving, UUID(upload_id))
        status, document = await serving.get(f"/upload/{upload_id}/status?wait=0.1")
        assert (status, document["status"]) == (200, "uploaded")  # Redis has not been told
        assert (await post(serving, "false"))[0] == 202


@pytest.mark.parametrize("wait", ["-1", "soon", "", "nan", "inf", "1e999", "1&wait=2"])
async def test_a_wait_that_is_none_is_refused_before_the_body_is_read(
    settings: Settings, bucket: Bucket, wait: str
) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        keys = await asyncio.to_thread(bucket.keys)
        status, document = await serving.get(f"/upload/{upload_id}/status?wait={wait}")
        assert (status, document["code"]) == (400, "bad_request")
        assert "wait" in document["detail"]
        url = URL(f"{serving.url}/upload?wait={wait}", encoded=True)
        async with serving.client.post(url, data=b"no form at all") as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (400, "bad_request")
        assert await asyncio.to_thread(bucket.keys) == keys


async def test_a_status_is_waited_for(settings: Settings) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        path = f"/upload/{upload_id}/status"
        answers = [asyncio.create_task(serving.get(f"{path}?wait=30")) for _ in range(5)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(serving.signals._waiting.get(upload_id, ())) < 5:  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.01)
        await failed(serving, upload_id)
        await serving.signals.tell_ended(upload_id)
        for status, document in await asyncio.gather(*answers):
            assert (status, document["status"], document["run"]) == (200, "failed", 1)
            assert document["sha256"]
        await nobody_waits(serving)


async def test_a_signal_comes_from_another_process(settings: Settings) -> None:
    async with serve(settings) as serving, serve(settings) as other, waiting_post(serving) as (upload_id, answer):
        await complete(serving, upload_id)
        await other.signals.tell_ended(upload_id)
        assert (await answer)[0] == 200


async def test_a_lost_signal_is_made_up_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_AGAIN_SECONDS", 0.2)
    async with serve(settings) as serving, waiting_post(serving) as (upload_id, answer):
        await complete(serving, upload_id)
        assert (await answer)[0] == 200


async def test_a_new_connection_to_redis_is_a_reason_to_look(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOOK_AGAIN_SECONDS", 3600)
    url = settings.redis_url.get_secret_value()
    async with (
        FaultProxy.before(url) as proxy,
        serve(change(settings, redis_url=SecretStr(proxy.url(url)))) as serving,
        waiting_post(serving) as (upload_id, answer),
    ):
        await proxy.refuse()
        await complete(serving, upload_id)
        await proxy.restore()
        assert (await answer)[0] == 200


async def test_a_database_that_is_away_is_waited_for_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_AGAIN_SECONDS", 0.2)
    dsn = settings.database_url.get_secret_value()
    async with (
        FaultProxy.before(dsn) as proxy,
        serve(change(settings, database_url=proxy.url(dsn))) as serving,
        waiting_post(serving) as (upload_id, answer),
    ):
        await proxy.refuse()
        status, document = await serving.get(f"/upload/{upload_id}/status?wait=0.5")
        assert (status, document["status"]) == (200, "uploaded")
        await proxy.restore()
        await complete(serving, upload_id)
        assert (await answer)[0] == 200


async def leave(serving: Serving, _upload_id: UUID, answer: asyncio.Task[Answer]) -> None:
    answer.cancel()
    await asyncio.wait({answer})


async def stop(serving: Serving, _upload_id: UUID, answer: asyncio.Task[Answer]) -> None:
    serving.stopping.begin()
    status, document = await answer
    assert (status, document["status"]) == (202, "uploaded")


@pytest.mark.parametrize("end", [leave, stop])
async def test_nobody_is_kept_waiting_who_has_left_or_whose_server_stops(
    settings: Settings, end: Callable[[Serving, UUID, asyncio.Task[Answer]], Awaitable[None]], bucket: Bucket
) -> None:
    async with serve(settings) as serving:
        async with waiting_post(serving) as (upload_id, answer):
            await end(serving, upload_id, answer)
        # And nothing is cancelled by that.
        status, document = await serving.get(f"/upload/{upload_id}/status?wait=0.1")
        assert (status, document["status"]) == (200, "uploaded")
        assert f"pending/{upload_id}" in await asyncio.to_thread(bucket.keys)


async def test_a_client_that_pipelines_and_leaves_is_not_waited_for(settings: Settings) -> None:
    async with serve(change(settings, max_connections=2)) as serving:
        upload_id = await uploaded(serving)
        ask = f"GET /upload/{upload_id}/status?wait=3600 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        writers = []
        for _ in range(2):
            _, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            writer.write(ask + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
            writers.append(writer)
        for writer in writers:
            writer.close()
        await nobody_waits(serving)
        assert (await serving.get("/healthz"))[0] == 200


async def test_a_status_that_only_the_manifest_knows_says_that_it_may_be_stale(settings: Settings) -> None:
    dsn = settings.database_url.get_secret_value()
    async with FaultProxy.before(dsn) as proxy, serve(change(settings, database_url=proxy.url(dsn))) as serving:
        upload_id = await uploaded(serving)
        path = f"/upload/{upload_id}/status"
        assert (await serving.get(path))[1]["stale"] is False
        await serving.redis.flushdb()
        assert (await serving.get(path))[1]["stale"] is False
        await proxy.refuse()
        status, document = await serving.get(path)
        assert (status, document["status"], document["stale"]) == (200, "uploaded", True)
        await proxy.restore()
        await failed(serving, upload_id)
        status, document = await serving.get(path)
        assert (status, document["status"], document["stale"]) == (200, "failed", False)


@pytest.mark.parametrize("state", ["uploaded", "processing", "failed"])
async def test_a_redis_that_has_missed_the_end_is_not_believed(settings: Settings, state: str) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        path = f"/upload/{upload_id}/status"
        record = await serving.statuses.read(upload_id)
        assert record is not None
        manifest = await serving.manifests.read(upload_id)
        assert manifest is not None
        run = await taken(serving, upload_id)
        if state == "failed":
            await serving.ledger.fail(upload_id, run, code="header_mismatch", message="no")
        row = await serving.ledger.get(upload_id)
        assert row is not None
        if state != "uploaded":
            await serving.statuses.write(status_record(manifest, row))
        assert (await serving.get(path))[1]["status"] == state
        await serving.ledger.cancel(row.intake)
        status, document = await serving.get(path)
        assert (status, document["status"], document["stale"]) == (200, "cancelled", False)
        assert (document["sha256"], document["fileName"]) == (manifest.sha256, manifest.file_name)
        repaired = await serving.statuses.read(upload_id)
        assert repaired is not None
        assert repaired.status == "cancelled"


async def test_a_retry_without_data_is_refused(settings: Settings, bucket: Bucket) -> None:
    async with open_proxied(settings) as (serving, proxy):
        upload_id = await uploaded(serving)
        await failed(serving, upload_id)
        manifest = await serving.manifests.read(upload_id)
        assert manifest is not None
        retry = f"{serving.url}/upload/{upload_id}/retry"
        await proxy.refuse()
        async with serving.client.post(retry) as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (503, "storage_unavailable")
        await proxy.restore()
        await serving.store.delete(manifest.key)
        async with serving.client.post(retry) as answer:
            document = await answer.json(content_type=None)
            assert (answer.status, document["code"], document["uploadStatus"]) == (410, "upload_gone", "failed")
        row = await serving.ledger.get(upload_id)
        assert row is not None
        assert row.state == "failed"


@asynccontextmanager
async def open_proxied(settings: Settings) -> AsyncIterator[tuple[Serving, FaultProxy]]:
    """The service, with a fault proxy before the store."""
    async with FaultProxy.before(str(settings.s3_endpoint_url)) as proxy:
        url = proxy.url(str(settings.s3_endpoint_url))
        async with serve(change(settings, s3_endpoint_url=url, s3_max_attempts=1)) as serving:
            yield serving, proxy
