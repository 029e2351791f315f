"""An upload that is tried again, as its users do it: whatever became of the first request, it is loaded once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stream_api.config import MIB, Settings
from stream_api.status.connection import open_redis
from stream_api.upload.claims import claim_key
from stream_api.upload.ids import derived_upload_id
from tests.conftest import Bucket
from tests.load.conftest import Loading, events, open_loading
from tests.support.faults import FaultProxy
from tests.support.patience import PATIENCE_SECONDS
from tests.support.service import Client, client_of, running
from tests.upload.forms import END, file, raw_client

ROWS = 30_000
KEY = "once-and-only-once"
UPLOAD_ID = str(derived_upload_id(KEY))
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
async def look(settings: Settings) -> AsyncIterator[Loading]:
    """To look into the stores."""
    async with open_loading(settings) as opened:
        yield opened


async def curl(url: str, csv: Path, *options: str, query: str = "") -> tuple[str, dict[str, Any]]:
    """As the README says; the last head, in lower case, and the document."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-i", *options, "-X", "POST", "-H", f"Idempotency-Key: {KEY}", "-F", f"file=@{csv}",
        f"{url}/upload{query}", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors
    head, _, body = output.decode().rpartition("\r\n\r\n")
    return head.rpartition("HTTP/1.1 ")[2].lower(), json.loads(body)


async def loaded_once(client: Client, look: Loading) -> None:
    status = await client.end(UPLOAD_ID)
    assert (status["status"], status["rowsProcessed"], status["run"]) == ("completed", ROWS, 1)
    assert await look.count() == ROWS


async def test_curl_tries_again_when_the_answer_is_lost(
    settings: Settings, look: Loading, bucket: Bucket, tmp_path: Path
) -> None:
    csv = tmp_path / "large.csv"
    csv.write_bytes(events(range(ROWS)))
    async with (
        running("serve", settings, tmp_path) as service,
        client_of(service) as client,
        FaultProxy.before(service.url) as proxy,
    ):
        # Past "100 Continue": the answer itself breaks off.
        await proxy.reset_after(60)
        head, document = await curl(proxy.url(service.url), csv, "--retry", "10", "--retry-all-errors")
        assert head.startswith("202 ")
        assert "idempotency-replayed: true" in head
        assert document["uploadId"] == UPLOAD_ID
        assert proxy.accepted == 2
        await loaded_once(client, look)
        head, document = await curl(service.url, csv)
        assert head.startswith("202 ")
        assert document == {
            "uploadId": UPLOAD_ID, "status": "completed", "statusUrl": f"/upload/{UPLOAD_ID}/status",
        }  # fmt: skip
        assert await look.count() == ROWS
        assert [key for key in await asyncio.to_thread(bucket.keys) if "/data-" in key] == []
        assert await service.stop() == 0


async def test_a_killed_api_process(settings: Settings, look: Loading, tmp_path: Path) -> None:
    csv = tmp_path / "large.csv"
    csv.write_bytes(events(range(ROWS)))
    body = file(csv.read_bytes()) + END
    async with (
        running("serve", settings, tmp_path) as service,
        client_of(service) as client,
        open_redis(settings) as redis,
        asyncio.timeout(PATIENCE_SECONDS),
    ):
        async with running("serve", settings, tmp_path, "--no-worker") as killed, raw_client(killed.port) as raw:
            await raw.start(len(body), **{"Idempotency-Key": KEY})
            await raw.send(body[:MIB])
            # Its claim is what another process sees of it.
            while not await redis.exists(claim_key(derived_upload_id(KEY))):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.01)
            head, document = await curl(service.url, csv)
            assert head.startswith("409 ")
            assert document["code"] == "idempotency_key_in_use"
            assert "retry-after: " in head
            await killed.kill()
        # As a client would wait; the claim ends 10 s after its last renewal.
        while not (await curl(service.url, csv))[0].startswith("202 "):  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        await loaded_once(client, look)


async def test_a_replay_waits_too(settings: Settings, look: Loading, tmp_path: Path) -> None:
    csv = tmp_path / "large.csv"
    csv.write_bytes(events(range(ROWS)))
    async with running("serve", settings, tmp_path) as service, client_of(service) as client:
        # At once: one of them is under way or has just ended when the other comes.
        first, second = await asyncio.gather(*(curl(service.url, csv, query="?wait=true") for _ in range(2)))
        for head, document in (first, second):
            if head.startswith("409 "):
                assert document["code"] == "idempotency_key_in_use"
            else:
                assert head.startswith("200 ")
        head, document = await curl(service.url, csv, query="?wait=true")
        assert head.startswith("200 ")
        assert "idempotency-replayed: true" in head
        assert (document["status"], document["rowsProcessed"]) == ("completed", ROWS)
        await loaded_once(client, look)
