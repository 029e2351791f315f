"""Redis that is emptied, restarted or away, in every phase of an upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from tests.conftest import Bucket
from tests.faults.files import make_file
from tests.faults.stand import Stand, open_stand
from tests.support.service import Client
from tests.support.settings import change
from tests.upload.forms import END, file, raw_client

pytestmark = pytest.mark.timeout(400)

FILE = make_file(20_000)
Break = Callable[[], Awaitable[None]]


@pytest.fixture
async def own_stand(settings: Settings, own_redis: Valkey, bucket: Bucket, tmp_path: Path) -> AsyncIterator[Stand]:
    async with open_stand(change(settings, redis_url=own_redis.url), bucket, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("how", ["emptied", "restarted", "restarted empty"])
async def test_in_every_phase(own_stand: Stand, own_redis: Valkey, how: str) -> None:
    async def break_it() -> None:
        if how != "restarted":
            await own_stand.flush()
        if how != "emptied":
            await asyncio.to_thread(own_redis.restart)

    client = await own_stand.start_api()
    upload_id = await _broken_while_uploading(client, break_it)
    # While it waits: there is no worker.
    await break_it()
    assert (await client.status(upload_id))["status"] == "uploaded"
    # While it is loaded, by a worker in good health.
    await own_stand.postgres.throttle(600_000, "up")
    worker = await own_stand.start("worker", "--die-at", "between status and deletion")
    await client.until(upload_id, lambda status: bool(status["rowsProcessed"]))
    await break_it()
    rows = await own_stand.check_consistent(upload_id)
    assert 0 < rows < FILE.good
    assert (await client.status(upload_id))["status"] == "processing"
    await own_stand.postgres.restore()
    # While it settles: the end state is recorded, and the data is still there.
    await worker.ended()
    assert worker.logged("faults.died")
    await break_it()
    assert (await client.status(upload_id))["status"] == "completed"
    await own_stand.start("worker")
    await own_stand.check_loaded(client, upload_id, FILE)
    await own_stand.check_stopped()


async def _broken_while_uploading(client: Client, break_it: Break) -> str:
    body = file(FILE.data) + END
    half = len(body) // 2
    async with raw_client(int(client.url.rpartition(":")[2])) as raw:
        await raw.start(len(body))
        await raw.send(body[:half])
        await break_it()
        await raw.send(body[half:])
        status, _, document = await raw.answer()
    assert status == 202, document
    return str(document["uploadId"])


async def test_redis_away_for_longer_than_the_lease(own_stand: Stand, own_redis: Valkey) -> None:
    """Uploads are taken in, loads under way go on or wait; all end once it is back."""
    client = await own_stand.start_api()
    await own_stand.start("worker")
    await own_stand.postgres.throttle(600_000, "up")
    upload_id = (await client.upload(FILE.data))["uploadId"]
    await client.until(upload_id, lambda status: bool(status["rowsProcessed"]))
    await asyncio.to_thread(own_redis.stop)
    assert (await client.status(upload_id))["status"] == "processing"
    async with client.http.get(f"{client.url}/readyz") as answer:
        assert answer.status == 503
    small = make_file(1, bad_every=1)
    late = (await client.upload(small.data))["uploadId"]
    assert (await client.status(late))["status"] == "uploaded"
    await asyncio.sleep(3)  # the outage
    await own_stand.postgres.restore()
    await asyncio.to_thread(own_redis.start)
    assert (await client.end(late))["rowsFailed"] == 1
    await own_stand.check_loaded(client, upload_id, FILE)
    await own_stand.check_stopped()
