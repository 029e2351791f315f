"""The life of an upload over several processes: cancelled, waited for, retried."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from tests.conftest import Bucket
from tests.e2e.test_service import ROWS, exact, some_rows
from tests.load.conftest import Loading, events, open_loading
from tests.support.faults import FaultProxy
from tests.support.patience import PATIENCE_SECONDS
from tests.support.service import Client, client_of, running, until
from tests.support.settings import change

pytestmark = pytest.mark.timeout(400)
SMALL = {"segment_bytes": 65536, "batch_bytes": 65536}


@pytest.fixture
async def look(settings: Settings) -> AsyncIterator[Loading]:
    """To look into the stores."""
    async with open_loading(settings) as opened:
        yield opened


async def delete(client: Client, upload_id: str) -> tuple[int, dict[str, Any]]:
    async with client.http.delete(f"{client.url}/upload/{upload_id}") as answer:
        return answer.status, await answer.json(content_type=None)


async def upload_and_wait(client: Client, data: bytes, wait: str = "true", **fields: str) -> tuple[int, dict[str, Any]]:
    form = aiohttp.FormData(fields)
    form.add_field("file", io.BytesIO(data), filename="test.csv", content_type="text/csv")
    async with client.http.post(f"{client.url}/upload?wait={wait}", data=form) as answer:
        return answer.status, await answer.json(content_type=None)


@pytest.mark.parametrize("redis_is_there", [True, False])
async def test_a_load_is_cancelled_on_whichever_worker_it_runs(
    settings: Settings,
    own_redis: Valkey,
    look: Loading,
    bucket: Bucket,
    tmp_path: Path,
    *,
    redis_is_there: bool,
) -> None:
    dsn = settings.database_url.get_secret_value()
    settings = change(settings, redis_url=own_redis.url)
    async with (
        FaultProxy.before(dsn) as postgres,
        running("serve", settings, tmp_path, "--no-worker", **SMALL) as api,
        client_of(api) as client,
    ):
        await postgres.throttle(100_000, "up")
        slow = change(settings, database_url=postgres.url(dsn))
        async with running("worker", slow, tmp_path) as one, running("worker", slow, tmp_path) as two:
            upload = await client.upload(events(range(ROWS)))
            upload_id = upload["uploadId"]
            await client.until(upload_id, some_rows)
            # In the middle of its segments, and PostgreSQL has no way to tell the worker that their sessions are ended.
            await postgres.stall()
            if not redis_is_there:
                await asyncio.to_thread(own_redis.stop)
            status, document = await delete(client, upload_id)
            assert (status, document["status"]) == (200, "cancelled")
            assert 0 < document["rowsProcessed"] < ROWS
            assert await asyncio.to_thread(bucket.keys) == [f"uploads/{upload_id}/manifest.json"]
            if redis_is_there:
                await until(lambda: one.logged("jobs.cancelled") or two.logged("jobs.cancelled"))
                await postgres.restore()
            else:
                await postgres.restore()
                # It finds out by itself, at the latest with the next segment.
                found = ("upload.ended", "load.run_lost")
                await until(lambda: any(worker.logged(event) for worker in (one, two) for event in found))
                await asyncio.to_thread(own_redis.start)
            assert await look.count() == document["rowsProcessed"]
            # Also of a Redis that comes back with what it had.
            assert await client.status(upload_id) == document
            assert await delete(client, upload_id) == (200, document)
            # What comes next is not held up by it.
            await client.end((await client.upload(events(range(ROWS, ROWS + 10))))["uploadId"])
            assert await look.count() == document["rowsProcessed"] + 10
            assert await one.stop() == 0
            assert await two.stop() == 0
            assert not [line for each in (api, one, two) for line in each.errors()]


async def test_an_upload_that_waits_is_answered_by_one_process_when_another_has_loaded_it(
    settings: Settings, look: Loading, tmp_path: Path
) -> None:
    async with (
        running("serve", settings, tmp_path, "--no-worker") as api,
        running("worker", settings, tmp_path) as worker,
        client_of(api) as client,
    ):
        status, document = await upload_and_wait(client, events(range(1000)))
        assert (status, document["status"]) == (200, "completed")
        await exact(look, document, 1000)
        # The same rows again: duplicate keys.
        status, document = await upload_and_wait(client, events(range(1000)), maxRejects="999")
        assert (status, document["code"]) == (422, "too_many_rejects")
        upload_id = document["uploadId"]
        await look.execute("TRUNCATE webhook_events")
        async with client.http.post(f"{api.url}/upload/{upload_id}/retry") as answer:
            assert answer.status == 202
        async with client.http.get(f"{api.url}/upload/{upload_id}/status?wait=30") as answer:
            await exact(look, await answer.json(content_type=None), 1000)
        assert await worker.stop() == 0
        status, document = await upload_and_wait(client, events(range(1000, 1001)), "0.5")
        assert (status, document["status"]) == (202, "uploaded")


async def test_who_waits_is_answered_at_once_when_the_process_is_told_to_stop(
    settings: Settings, bucket: Bucket, tmp_path: Path
) -> None:
    async with running("serve", settings, tmp_path, "--no-worker") as api, client_of(api) as client:
        uploading = asyncio.create_task(upload_and_wait(client, events(range(10))))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (keys := await asyncio.to_thread(bucket.keys)) or "manifest" not in keys[-1]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        upload_id = keys[0].rpartition("/")[2]
        long_poll = asyncio.create_task(status_of(client, upload_id, wait="30"))
        # A later request has been answered: the one before it has begun to wait.
        assert (await status_of(client, upload_id, wait="0.2"))["status"] == "uploaded"
        async with asyncio.timeout(15):
            assert await api.stop() == 0
            status, document = await uploading
            assert (await long_poll)["status"] == "uploaded"
        assert (status, document["uploadId"], document["status"]) == (202, upload_id, "uploaded")


async def status_of(client: Client, upload_id: str, *, wait: str) -> dict[str, Any]:
    async with client.http.get(f"{client.url}/upload/{upload_id}/status?wait={wait}") as answer:
        document: dict[str, Any] = await answer.json(content_type=None)
        assert answer.status == 200, document
        return document
