"""DELETE, retry and expiry against a load that runs, in every order; and one Idempotency-Key many times at once."""

from __future__ import annotations

import asyncio
import io
import signal
from itertools import permutations
from typing import Any

import aiohttp
import pytest

from tests.faults.files import HEADER, make_file
from tests.faults.process import PLACES
from tests.faults.stand import Process, Stand
from tests.support.patience import PATIENCE_SECONDS
from tests.support.service import Client, until

pytestmark = pytest.mark.timeout(400)

FILE = make_file(20_000)


async def ask(client: Client, method: str, path: str) -> tuple[int, dict[str, Any]]:
    async with client.http.request(method, f"{client.url}{path}") as answer:
        return answer.status, await answer.json(content_type=None)


async def clear(stand: Stand) -> None:
    await stand.database.value("TRUNCATE webhook_events")


async def test_delete_retry_and_expiry_of_a_running_load_in_every_order(stand: Stand) -> None:
    """What runs does not expire and cannot be retried; what is cancelled stays cancelled, and expires."""
    client = await stand.start_api()
    # Uploads expire at once, and the janitor hardly rests.
    worker = await stand.start("worker", retention_seconds=1, janitor_seconds=0.2)
    for order in permutations(("delete", "retry", "expiry")):
        await clear(stand)
        await stand.postgres.throttle(120_000, "up")
        upload_id = (await client.upload(FILE.data))["uploadId"]
        await client.until(upload_id, lambda status: bool(status["rowsProcessed"]))
        deleted = False
        for step in order:
            if step == "delete":
                status, document = await ask(client, "DELETE", f"/upload/{upload_id}")
                assert (status in {200, 202}, document["status"]) == (True, "cancelled"), document
                deleted = True
            elif step == "retry":
                status, document = await ask(client, "POST", f"/upload/{upload_id}/retry")
                assert (status, document["code"]) in (
                    {(410, "upload_gone"), (404, "upload_not_found")} if deleted else {(409, "upload_not_failed")}
                )
            else:
                await _a_round_of_the_janitor(worker)
                if not deleted:
                    assert (await client.status(upload_id))["status"] == "processing"
        await stand.postgres.restore()
        rows = await stand.database.value("SELECT count(*) FROM webhook_events")
        assert 0 < rows < FILE.good
        await _until_forgotten(client, upload_id)
        assert await asyncio.to_thread(stand.bucket.keys) == []
        await stand.check_at_rest()
        # What was committed is the client's.
        assert await stand.database.value("SELECT count(*) FROM webhook_events") == rows
        assert await stand.database.value("SELECT count(*) FROM stream_api.segments") == 0
    assert not worker.logged("load.crashed")
    await stand.check_stopped()


async def test_a_cancelled_load_with_its_worker_killed_at_every_place(stand: Stand) -> None:
    """Cancelled while the worker that had it is dead, and while nobody has heard of that yet."""
    client = await stand.start_api()
    for place in ("between COPY and commit", "after the last commit"):
        assert place in PLACES
        await clear(stand)
        upload_id = (await client.upload(FILE.data))["uploadId"]
        worker = await stand.start("worker", "--die-at", place)
        assert await worker.ended() == -signal.SIGKILL
        status, _ = await ask(client, "DELETE", f"/upload/{upload_id}")
        assert status in {200, 202}
        successor = await stand.start("worker")
        rows = (await client.status(upload_id))["rowsProcessed"]
        if place == "after the last commit":
            assert rows == FILE.good
            await stand.check_table(FILE)
            await stand.check_at_rest()
        else:
            await stand.check_cancelled(client, upload_id, FILE)
        assert await successor.stop() == 0
    await stand.check_stopped()


async def test_retries_and_a_delete_of_a_failed_load_at_once(stand: Stand) -> None:
    """Whichever comes first: it is loaded, or cancelled and gone, and everybody is told what fits that."""
    client = await stand.start_api()
    await stand.start("worker")
    first_id = FILE.data[len(HEADER) :].partition(b",")[0].decode()
    for _ in range(3):
        await clear(stand)
        await stand.database.value(
            "INSERT INTO webhook_events (id, event_type, source, payload, occurred_at)"
            " VALUES ($1, '', '', '{}', now())",
            first_id,
        )
        upload_id = (await client.upload(FILE.data, maxRejects="0"))["uploadId"]
        assert (await client.end(upload_id))["error"]["code"] == "too_many_rejects"
        await stand.database.value("DELETE FROM webhook_events WHERE id = $1", first_id)
        asked = [ask(client, "POST", f"/upload/{upload_id}/retry") for _ in range(5)]
        answers = await asyncio.gather(*asked[:3], ask(client, "DELETE", f"/upload/{upload_id}"), *asked[3:])
        statuses = [status for status, _ in answers]
        delete = statuses.pop(3)
        assert set(statuses) <= {202, 409, 410}
        assert statuses.count(202) <= 1
        if delete == 409:
            await stand.check_loaded(client, upload_id, FILE)
        else:
            assert delete in {200, 202}
            await stand.check_cancelled(client, upload_id, FILE)
    await stand.check_stopped()


async def test_the_same_idempotency_key_twenty_times_at_once(stand: Stand) -> None:
    """Over two API processes: one upload, one load, and no trace of the others."""
    clients = [await stand.start_api(), await stand.start_api()]
    await stand.start("worker")

    async def upload(number: int) -> str:
        while True:
            form = aiohttp.FormData()
            form.add_field("file", io.BytesIO(FILE.data), filename="rows.csv", content_type="text/csv")
            url = f"{clients[number % 2].url}/upload"
            async with stand.http.post(url, data=form, headers={"Idempotency-Key": "twenty"}) as answer:
                document = await answer.json(content_type=None)
            if answer.status == 202:
                return str(document["uploadId"])
            assert (answer.status, document["code"]) == (409, "idempotency_key_in_use")
            await asyncio.sleep(0.1)

    upload_ids = set(await asyncio.gather(*(upload(number) for number in range(20))))
    (upload_id,) = upload_ids
    await stand.check_loaded(clients[0], upload_id, FILE)
    keys = await asyncio.to_thread(stand.bucket.keys)
    assert keys == [f"uploads/{upload_id}/manifest.json"]
    await stand.check_stopped()


async def _a_round_of_the_janitor(worker: Process) -> None:
    """Wait for the end of a round that begins from now on."""

    def rounds() -> int:
        return [event["event"] for event in worker.events()].count("janitor.round")

    before = rounds()
    await until(lambda: rounds() >= before + 2)


async def _until_forgotten(client: Client, upload_id: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await ask(client, "GET", f"/upload/{upload_id}/status"))[0] != 404:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.05)
