"""S3 that cuts, truncates, stalls, is busy or is away, while a file goes in and while it comes out."""

from __future__ import annotations

import asyncio
import hashlib
import io
from typing import Any, Literal
from uuid import UUID

import aiohttp
import pytest

from stream_api.storage.downloads import read_range
from stream_api.storage.manifests import read_manifest
from stream_api.storage.objects import open_object_store
from tests.faults.files import make_file
from tests.faults.stand import Stand
from tests.support.faults import Direction
from tests.support.service import Client, until

pytestmark = pytest.mark.timeout(400)

#: More than one part.
FILE = make_file(40_000)
PART_BYTES = 5 * 1024 * 1024
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
Fault = Literal["reset", "truncated", "stalled", "busy", "gone"]
FAULTS: list[Fault] = ["reset", "truncated", "stalled", "busy", "gone"]


async def begin(stand: Stand, fault: Fault, direction: Direction) -> None:
    """Break S3 in the middle of what flows in this direction."""
    if fault == "reset":
        await stand.s3.reset_after(200_000, direction, times=3)
    elif fault == "truncated":
        await stand.s3.close_after(200_000, direction, times=3)
    elif fault == "stalled":
        await stand.s3.stall(direction)
    elif fault == "busy":
        await stand.s3.answer("503 Slow Down", BUSY)
        await stand.s3.drop()  # what is under way too
    else:
        await stand.s3.refuse()


async def test_while_a_file_comes_out(stand: Stand) -> None:
    """One load that meets all of them. What is cut goes on where it was cut; longer outages delay the load."""
    client = await stand.start_api(through=stand.settings)
    worker = await stand.start("worker", s3_read_timeout_seconds=0.5, s3_max_attempts=3, load_attempts=2)
    await stand.s3.throttle(1_500_000, "down")
    upload_id = (await client.upload(FILE.data))["uploadId"]
    delayed = 0
    for number, fault in enumerate(FAULTS):
        status = await client.until(upload_id, lambda status: status["progress"] > number * 0.15)  # noqa: B023
        assert status["status"] == "processing"
        accepted = stand.s3.accepted
        await begin(stand, fault, "down")
        if fault in {"reset", "truncated"}:
            await stand.s3.until(lambda proxy: proxy.accepted >= accepted + 3)  # noqa: B023
            assert (await client.status(upload_id))["run"] == 1
            continue
        await until(lambda: [event["event"] for event in worker.events()].count("jobs.delayed") > delayed)  # noqa: B023
        delayed = [event["event"] for event in worker.events()].count("jobs.delayed")
        waiting = await client.status(upload_id)
        assert (waiting["status"], waiting["waitingFor"]) == ("processing", "storage")
        await stand.check_consistent(upload_id)
        await stand.s3.restore()
        await stand.s3.throttle(1_500_000, "down")
    await stand.s3.restore()
    await stand.check_loaded(client, upload_id, FILE)
    assert not worker.logged("jobs.attempt_failed")
    await stand.check_stopped()


async def test_while_a_file_goes_in(stand: Stand) -> None:
    """Either the file is stored, whole, or the client is told, and nothing is left."""
    client = await stand.start_api(part_bytes=PART_BYTES, s3_read_timeout_seconds=0.5, s3_max_attempts=2)
    stored: list[str] = []
    for fault in FAULTS:
        await stand.s3.throttle(8_000_000, "up")
        sent = stand.s3.passed_bytes["up"]
        uploading = asyncio.create_task(_upload(client))
        await stand.s3.until(lambda proxy: proxy.passed_bytes["up"] > sent + 500_000)  # noqa: B023
        await begin(stand, fault, "up")
        status, document = await uploading
        await stand.s3.restore()
        if status == 202:
            stored.append(document["uploadId"])
        else:
            assert (status, document["code"]) == (503, "storage_unavailable")
        await stand.check_at_rest(kept=lambda key: any(upload_id in key for upload_id in stored))
    assert len(stored) < len(FAULTS)
    status, document = await _upload(client)
    assert status == 202
    for upload_id in (*stored, document["uploadId"]):
        assert await _stored_sha256(stand, upload_id) == hashlib.sha256(FILE.data).hexdigest()
    await stand.check_stopped()


async def _upload(client: Client) -> tuple[int, dict[str, Any]]:
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(FILE.data), filename="rows.csv", content_type="text/csv")
    async with client.http.post(f"{client.url}/upload", data=form) as answer:
        return answer.status, await answer.json(content_type=None)


async def _stored_sha256(stand: Stand, upload_id: str) -> str:
    """Of the data as it lies in S3."""
    digest = hashlib.sha256()
    async with open_object_store(stand.settings) as store:
        manifest = await read_manifest(store, UUID(upload_id))
        assert manifest is not None
        size = manifest.size_bytes
        async for piece in read_range(store, manifest.key, etag=manifest.etag, start=0, end=size, chunk_bytes=65536):
            digest.update(piece)
    return digest.hexdigest()
