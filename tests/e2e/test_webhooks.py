"""Webhooks of a service that runs as its users run it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from redis.asyncio import Redis
from standardwebhooks import Webhook

from stream_api.config import Settings
from stream_api.dev.valkey import Valkey
from tests.load.conftest import event, events
from tests.support.service import client_of, running, until
from tests.support.settings import change
from tests.webhooks.conftest import Receiver, receiving

pytestmark = pytest.mark.timeout(400)
SECRET = f"whsec_{base64.b64encode(b'k' * 32).decode()}"
QUICK: dict[str, object] = {"webhook_allow": "127.0.0.1", "webhook_backoff_seconds": 0.05, "webhook_sweep_seconds": 0.3}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


def delivered(status: dict[str, Any]) -> bool:
    webhook = status["webhook"]
    return isinstance(webhook, dict) and webhook["state"] == "delivered"


def failed(status: dict[str, Any]) -> bool:
    webhook = status["webhook"]
    return isinstance(webhook, dict) and webhook["state"] == "failed"


async def test_the_outcome_of_a_load_arrives_signed(settings: Settings, receiver: Receiver, tmp_path: Path) -> None:
    receiver.answers = [500, 500, 500]
    async with (
        running("serve", settings, tmp_path, webhook_secrets=SECRET, **QUICK) as service,
        client_of(service) as client,
    ):
        upload = await client.upload(events(range(3)) + event(9, id="x"), callbackUrl=f"{receiver.url}/hook?t=s3cret")
        await receiver.until(4)
        status = await client.until(upload["uploadId"], delivered)
        assert status["webhook"]["attempts"] == 4
        assert status["webhook"]["lastError"] is None
        assert status["webhook"]["lastAt"] > status["completedAt"]
        for request in receiver.received:
            body = Webhook(SECRET).verify(request.body, request.headers)
            assert body == {
                "uploadId": upload["uploadId"],
                "status": "completed",
                "rowsProcessed": 3,
                "rowsFailed": 1,
                "timestamp": status["completedAt"],
            }
        url = f"{service.url}/upload/{upload['uploadId']}/webhook"
        async with client.http.post(url) as answer:
            assert answer.status == 202
            document = await answer.json(content_type=None)
            assert (document["status"], document["webhook"]["state"]) == ("completed", "pending")
        await receiver.until(5)
        assert (await client.until(upload["uploadId"], delivered))["webhook"]["attempts"] == 1
        assert len({(each.headers["webhook-id"], each.body) for each in receiver.received}) == 1
        assert await service.stop() == 0
        assert "s3cret" not in service.log.read_text()


async def test_nothing_goes_to_this_machine_unless_it_is_allowed(
    settings: Settings, receiver: Receiver, tmp_path: Path
) -> None:
    values = QUICK | {"webhook_allow": "10.0.0.0/8"}
    async with running("serve", settings, tmp_path, **values) as service, client_of(service) as client:
        port = receiver.url.rpartition(":")[2]
        for number, host in enumerate(("127.0.0.1", "localhost", "0x7f.1", "[::ffff:127.0.0.1]")):
            upload = await client.upload(events(range(number, number + 1)), callbackUrl=f"http://{host}:{port}/")
            status = await client.until(upload["uploadId"], failed)
            assert status["webhook"]["attempts"] == 4
            assert status["webhook"]["lastError"].startswith("webhook_refused: ")
        assert receiver.received == []


async def test_a_webhook_outlives_redis(
    settings: Settings, own_redis: Valkey, receiver: Receiver, tmp_path: Path
) -> None:
    """Redis is emptied while the receiver holds the first try."""
    held = asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        await held.wait()
        return web.Response(status=500)

    receiver.answers = [hold]
    own = change(settings, redis_url=own_redis.url)
    values = QUICK | {"webhook_backoff_seconds": 1.0}
    async with running("serve", own, tmp_path, **values) as service, client_of(service) as client:
        upload = await client.upload(events(range(3)), callbackUrl=receiver.url)
        await receiver.until(1)
        held.set()
        await until(lambda: service.logged("webhooks.postponed"))
        async with Redis.from_url(own_redis.url) as redis:
            await redis.flushall()
        await receiver.until(2)
        status = await client.until(upload["uploadId"], delivered)
        assert status["webhook"]["attempts"] == 2
    assert len(receiver.received) == 2
    assert json.loads(receiver.received[1].body)["status"] == "completed"


async def test_a_cancellation_is_told_too(settings: Settings, receiver: Receiver, tmp_path: Path) -> None:
    async with running("serve", settings, tmp_path, "--no-worker") as api, client_of(api) as client:
        upload = await client.upload(events(range(3)), callbackUrl=receiver.url)
        async with client.http.delete(f"{api.url}/upload/{upload['uploadId']}") as answer:
            assert answer.status == 200
        async with running("worker", settings, tmp_path, **QUICK):
            await receiver.until(1)
            await client.until(upload["uploadId"], delivered)
    body = json.loads(receiver.received[0].body)
    assert (body["status"], body["rowsProcessed"], body["rowsFailed"]) == ("cancelled", 0, 0)
    assert "error" not in body


async def test_a_worker_that_is_killed_while_it_sends(settings: Settings, receiver: Receiver, tmp_path: Path) -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    receiver.answers = [hang]
    values = QUICK | {"webhook_timeout_seconds": 0.5, "job_lease_seconds": 2}
    async with running("serve", settings, tmp_path, "--no-worker") as api, client_of(api) as client:
        upload = await client.upload(events(range(3)), callbackUrl=receiver.url)
        async with running("worker", settings, tmp_path, **(values | {"webhook_timeout_seconds": 5})) as first:
            await receiver.until(1)
            await first.kill()
        async with running("worker", settings, tmp_path, **values):
            await receiver.until(2)
            status = await client.until(upload["uploadId"], delivered)
    assert status["webhook"]["attempts"] == 2
    assert len({(each.headers["webhook-id"], each.body) for each in receiver.received}) == 1
