"""S3 that cuts, truncates, stalls, is busy or is away, while a file goes in and while it comes out."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.faults.files import make_file
from tests.faults.stand import Stand
from tests.support.service import Client, until

pytestmark = pytest.mark.timeout(150)

#: More than two parts.
FILE = make_file(80_000)
PART_BYTES = 5 * 1024 * 1024
FAULTS = ["reset", "truncated", "stalled", "busy", "gone"]
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


async def begin(stand: Stand, fault: str, direction: Any) -> None:
    """Break S3 in the middle of what flows in this direction."""
    if fault == "reset":
        await stand.s3.reset_after(700_000, direction, times=3)
    elif fault == "truncated":
        await stand.s3.close_after(700_000, direction, times=3)
    elif fault == "stalled":
        await stand.s3.stall(direction)
    elif fault == "busy":
        await stand.s3.answer("503 Slow Down", BUSY)
        # Also what is under way.
        await stand.s3.drop()
    else:
        await stand.s3.refuse()


@pytest.mark.parametrize("fault", FAULTS)
async def test_while_a_file_comes_out(stand: Stand, fault: str) -> None:
    client = await stand.start_api(through=stand.settings)
    worker = await stand.start("worker", s3_read_timeout_seconds=0.5, s3_max_attempts=3, load_attempts=2)
    await stand.s3.throttle(4_000_000, "down")
    upload_id = (await client.upload(FILE.data))["uploadId"]
    await client.until(upload_id, lambda status: bool(status["rowsProcessed"]))
    accepted = stand.s3.accepted
    await begin(stand, fault, "down")
    if fault in {"reset", "truncated"}:
        # It goes on where it was cut, without a new run.
        status = await stand.check_loaded(client, upload_id, FILE)
        assert status["run"] == 1
        assert stand.s3.accepted >= accepted + 3
    else:
        waiting = await client.until(upload_id, lambda status: bool(status["waitingFor"]))
        assert (waiting["status"], waiting["waitingFor"]) == ("processing", "storage")
        await until(lambda: worker.logged("jobs.delayed"))
        await stand.check_consistent(upload_id)
        await stand.s3.restore()
        await stand.check_loaded(client, upload_id, FILE)
    assert not worker.logged("jobs.attempt_failed")
    await stand.check_stopped()


async def test_while_a_file_goes_in(stand: Stand) -> None:
    """Either the file is stored all the same, or the client is told, and nothing is left."""
    client = await stand.start_api(part_bytes=PART_BYTES, s3_read_timeout_seconds=0.5, s3_max_attempts=2)
    stored = []
    for fault in FAULTS:
        await stand.s3.throttle(8_000_000, "up")
        sent = stand.s3.passed_bytes["up"]
        uploading = asyncio.create_task(_answer(client))
        await stand.s3.until(lambda proxy: proxy.passed_bytes["up"] > sent + 1_000_000)  # noqa: B023
        await begin(stand, fault, "up")
        status, document = await uploading
        await stand.s3.restore()
        if status == 202:
            stored.append(document["uploadId"])
        else:
            assert (status, document["code"]) == (503, "storage_unavailable")
        await stand.check_at_rest(kept=lambda key: any(upload_id in key for upload_id in stored))
    assert len(stored) < len(FAULTS)
    _, document = await _answer(client)
    await stand.start("worker")
    for upload_id in stored:
        # They are loaded side by side; only one of them can have its rows in the table.
        await client.end(upload_id)
    await client.end(document["uploadId"])
    await stand.check_table(FILE)
    await stand.check_stopped()


async def _answer(client: Client) -> tuple[int, dict[str, Any]]:
    form = aiohttp.FormData()
    form.add_field("file", FILE.data, filename="rows.csv", content_type="text/csv")
    async with client.http.post(f"{client.url}/upload", data=form) as answer:
        return answer.status, await answer.json(content_type=None)
