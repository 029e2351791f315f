"""The service as its users meet it: processes, HTTP, real servers, and faults that no process foresees."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from tests.conftest import Bucket
from tests.load.conftest import Loading, event, events, open_loading
from tests.support.faults import FaultProxy
from tests.support.patience import PATIENCE_SECONDS
from tests.support.service import client_of, running, until
from tests.support.settings import change

ROWS = 30_000
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
async def look(settings: Settings) -> AsyncIterator[Loading]:
    """To look into the stores."""
    async with open_loading(settings) as opened:
        yield opened


def some_rows(status: dict[str, Any]) -> bool:
    return bool(status["rowsProcessed"])


async def exact(look: Loading, status: dict[str, Any], rows: int = ROWS) -> None:
    """The load has completed, and each row is there once."""
    assert status["status"] == "completed", status
    assert (status["rowsRead"], status["rowsProcessed"], status["rowsFailed"], status["progress"]) == (rows, rows, 0, 1)
    assert await look.count() == rows
    await until_async(look, lambda keys: not keys)


async def until_async(look: Loading, condition: Callable[[list[str]], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition(await look.keys()):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.05)


async def test_the_main_job_by_curl(settings_each_store: Settings, tmp_path: Path) -> None:
    file = tmp_path / "large.csv"
    file.write_bytes(events(range(ROWS)))
    async with running("serve", settings_each_store, tmp_path) as service, client_of(service) as client:
        curl = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-i", "-X", "POST", "-F", f"file=@{file}", f"{service.url}/upload",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await curl.communicate()
        head, _, body = output.decode().rpartition("\r\n\r\n")
        answer = json.loads(body)
        assert " 202 " in head.split("100 Continue")[-1]
        assert answer["status"] == "uploaded"
        assert f"location: {answer['statusUrl']}".lower() in head.lower()
        status = await client.end(answer["uploadId"])
        async with open_loading(settings_each_store) as look:
            await exact(look, status)
        assert status["startedAt"] <= status["completedAt"]
        assert await service.stop() == 0


async def test_a_killed_worker_is_taken_over(settings: Settings, look: Loading, tmp_path: Path) -> None:
    dsn = settings.database_url.get_secret_value()
    async with (
        FaultProxy.before(dsn) as postgres,
        running("serve", settings, tmp_path, "--no-worker") as api,
        client_of(api) as client,
    ):
        await postgres.throttle(300_000, "up")
        slow = change(settings, database_url=postgres.url(dsn))
        upload = await client.upload(events(range(ROWS)))
        async with running("worker", slow, tmp_path, segment_bytes=65536, batch_bytes=65536) as first:
            await client.until(upload["uploadId"], some_rows)
            await first.kill()
        assert 0 < await look.count() < ROWS
        async with running("worker", settings, tmp_path) as second:
            await exact(look, await client.end(upload["uploadId"]))
            assert await second.stop() == 0


async def test_a_frozen_worker_is_taken_over_and_changes_nothing_when_it_wakes(
    settings: Settings, look: Loading, tmp_path: Path
) -> None:
    dsn = settings.database_url.get_secret_value()
    async with (
        FaultProxy.before(dsn) as postgres,
        running("serve", settings, tmp_path, "--no-worker") as api,
        client_of(api) as client,
    ):
        await postgres.throttle(300_000, "up")
        slow = change(settings, database_url=postgres.url(dsn))
        upload = await client.upload(events(range(ROWS)))
        async with running("worker", slow, tmp_path) as first:
            await client.until(upload["uploadId"], some_rows)
            first.signal(signal.SIGSTOP)
            async with running("worker", settings, tmp_path):
                status = await client.end(upload["uploadId"])
                await exact(look, status)
                await postgres.restore()
                first.signal(signal.SIGCONT)
                # What it was about to do has failed, and it may not try again: it finds that the run is over, or it is
                # told first that the job is another's.
                await until(lambda: first.logged("load.run_lost") or first.logged("jobs.lease_lost"))
                assert await first.stop() == 0
            assert await client.status(upload["uploadId"]) == status
        await exact(look, status)


async def test_sigterm_hands_a_load_back(settings: Settings, look: Loading, tmp_path: Path) -> None:
    dsn = settings.database_url.get_secret_value()
    async with (
        FaultProxy.before(dsn) as postgres,
        running("serve", settings, tmp_path, "--no-worker") as api,
        client_of(api) as client,
    ):
        await postgres.throttle(300_000, "up")
        slow = change(settings, database_url=postgres.url(dsn))
        upload = await client.upload(events(range(ROWS)))
        # A lease that nobody could wait for: only a job that is handed back can be taken in time.
        async with running("worker", slow, tmp_path, job_lease_seconds=300) as first:
            await client.until(upload["uploadId"], some_rows)
            assert await first.stop() == 0
            assert first.logged("jobs.handed_back")
        async with running("worker", settings, tmp_path):
            await exact(look, await client.end(upload["uploadId"]))


async def test_an_upload_while_redis_is_away_is_loaded_when_it_is_back(
    settings: Settings, own_redis: Valkey, look: Loading, tmp_path: Path
) -> None:
    own = change(settings, redis_url=own_redis.url)
    async with running("serve", own, tmp_path, reconcile_seconds=0.5) as service, client_of(service) as client:
        await asyncio.to_thread(own_redis.stop)
        upload = await client.upload(events(range(ROWS)))
        assert (await client.status(upload["uploadId"]))["status"] == "uploaded"
        await asyncio.to_thread(own_redis.start)
        await exact(look, await client.end(upload["uploadId"]))
        assert await service.stop() == 0


async def test_a_failed_load_is_retried_without_a_new_upload(
    settings: Settings, look: Loading, bucket: Bucket, tmp_path: Path
) -> None:
    async with running("serve", settings, tmp_path) as service, client_of(service) as client:
        await client.end((await client.upload(events(range(7, 8))))["uploadId"])
        upload_id = (await client.upload(events(range(10)), maxRejects="0"))["uploadId"]
        status = await client.end(upload_id)
        assert status["status"] == "failed"
        assert status["error"]["code"] == "too_many_rejects"
        assert [key for key in bucket.keys() if key.startswith(f"uploads/{upload_id}/data-")]  # noqa: SIM118 - no dict
        await look.execute("TRUNCATE webhook_events")
        async with client.http.post(f"{service.url}/upload/{upload_id}/retry") as answer:
            assert answer.status == 202
        await exact(look, await client.end(upload_id), 10)
        async with client.http.post(f"{service.url}/upload/{upload_id}/retry") as answer:
            assert answer.status == 409
            assert (await answer.json(content_type=None))["code"] == "upload_not_failed"


async def test_a_database_that_is_away_delays_the_load(settings: Settings, look: Loading, tmp_path: Path) -> None:
    dsn = settings.database_url.get_secret_value()
    async with FaultProxy.before(dsn) as postgres:
        away = change(settings, database_url=postgres.url(dsn))
        await postgres.refuse()
        async with running("serve", away, tmp_path) as service, client_of(service) as client:
            upload = await client.upload(events(range(10)))
            await until(lambda: service.logged("jobs.delayed"))
            assert (await client.status(upload["uploadId"]))["waitingFor"] == "database"
            async with client.http.get(f"{service.url}/readyz") as answer:
                assert answer.status == 503
            async with client.http.get(f"{service.url}/healthz") as answer:
                assert answer.status == 200
            await postgres.restore()
            await exact(look, await client.end(upload["uploadId"]), 10)


async def test_bad_rows_end_up_in_the_status(settings: Settings, look: Loading, tmp_path: Path) -> None:
    async with running("serve", settings, tmp_path) as service, client_of(service) as client:
        upload = await client.upload(events(range(3)) + b"one,two\n" + event(9, id="x"))
        status = await client.end(upload["uploadId"])
        assert (status["status"], status["rowsRead"], status["rowsProcessed"], status["rowsFailed"]) == (
            "completed", 5, 3, 2,
        )  # fmt: skip
        assert status["rejected"] == {"wrong_field_count": 1, "invalid_uuid": 1}
