"""Deliveries without a queue: tries against a real receiver, recorded in a real outbox."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import datetime

import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from stream_api import __version__
from stream_api.config import Settings
from stream_api.ledger.outbox import Delivery, NotDue
from stream_api.webhooks.delivery import MAX_ATTEMPTS, pause_seconds
from tests.support.settings import change
from tests.webhooks.conftest import Deliveries, Receiver, open_deliveries

OLD, NEW = (f"whsec_{base64.b64encode(bytes([number]) * 24).decode()}" for number in (1, 2))


async def test_the_spec_s_payload_is_posted(deliveries: Deliveries, receiver: Receiver) -> None:
    ended = await deliveries.ended(f"{receiver.url}/hook?token=s3cret#frag", fail=True)
    row = await deliveries.deliver(ended)
    (request,) = receiver.received
    assert (request.method, request.path) == ("POST", "/hook?token=s3cret")
    assert ended.ended_at is not None
    body = json.loads(request.body)
    assert datetime.fromisoformat(body.pop("timestamp")) == ended.ended_at
    assert body == {
        "uploadId": str(ended.id),
        "status": "failed",
        "rowsProcessed": 0,
        "rowsFailed": 0,
        "error": {"code": "header_mismatch", "message": "no", "missing": ["id"]},
    }
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"stream-api/{__version__}"
    assert request.headers["webhook-id"] == f"msg_{ended.id}_{ended.run}"
    assert "webhook-signature" not in request.headers
    assert "cookie" not in request.headers
    assert (row.webhook_state, row.webhook_attempts, row.webhook_error) == ("delivered", 1, None)
    assert [changed.webhook_state for changed in deliveries.changed] == ["delivered"]


async def test_without_an_error_the_payload_has_none(deliveries: Deliveries, receiver: Receiver) -> None:
    await deliveries.deliver(await deliveries.ended(receiver.url))
    body = json.loads(receiver.received[0].body)
    assert body["status"] == "cancelled"
    assert sorted(body) == ["rowsFailed", "rowsProcessed", "status", "timestamp", "uploadId"]


async def test_every_secret_verifies_and_another_does_not(quick: Settings, receiver: Receiver) -> None:
    async with open_deliveries(change(quick, webhook_secrets=f"{NEW}, {OLD}")) as deliveries:
        await deliveries.deliver(await deliveries.ended(receiver.url))
    (request,) = receiver.received
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(request.body, request.headers) == json.loads(request.body)
    with pytest.raises(WebhookVerificationError):
        Webhook(base64.b64encode(b"another" * 4).decode()).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(request.body + b" ", request.headers)


async def test_a_receiver_that_fails_three_times_and_then_accepts(deliveries: Deliveries, receiver: Receiver) -> None:
    receiver.answers = [500, 404, 503]
    row = await deliveries.deliver(await deliveries.ended(receiver.url))
    assert (row.webhook_state, row.webhook_attempts, row.webhook_error) == ("delivered", 4, None)
    assert len(receiver.received) == 4
    assert len({request.body for request in receiver.received}) == 1
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
    assert [changed.webhook_state for changed in deliveries.changed] == ["pending"] * 3 + ["delivered"]
    assert deliveries.changed[0].webhook_error == "webhook_rejected: the receiver answered 500"


async def test_a_receiver_that_never_accepts(deliveries: Deliveries, receiver: Receiver) -> None:
    receiver.answers = [500] * 10
    row = await deliveries.deliver(await deliveries.ended(receiver.url))
    assert (row.webhook_state, row.webhook_attempts) == ("failed", MAX_ATTEMPTS)
    assert row.webhook_error == "webhook_rejected: the receiver answered 500"
    assert len(receiver.received) == 4


async def test_gone_ends_it_at_once(deliveries: Deliveries, receiver: Receiver) -> None:
    receiver.answers = [410]
    row = await deliveries.deliver(await deliveries.ended(receiver.url))
    assert (row.webhook_state, row.webhook_attempts) == ("failed", 1)
    assert len(receiver.received) == 1


async def test_redirects_are_failures_and_not_followed(deliveries: Deliveries, receiver: Receiver) -> None:
    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"location": f"{receiver.url}/elsewhere"})

    receiver.answers = [redirect] * 4
    row = await deliveries.deliver(await deliveries.ended(f"{receiver.url}/here"))
    assert row.webhook_state == "failed"
    assert row.webhook_error == "webhook_redirected: the receiver answered 307, and redirects are not followed"
    assert {request.path for request in receiver.received} == {"/here"}


@pytest.mark.parametrize("head", [False, True], ids=["nothing", "a byte now and then"])
async def test_an_answer_that_never_ends_is_timed_out(quick: Settings, receiver: Receiver, head: bool) -> None:
    dripped = 0

    async def drip(request: web.Request) -> web.StreamResponse:
        nonlocal dripped
        answer = web.StreamResponse(status=200)
        if head:
            await answer.prepare(request)
        while True:
            await asyncio.sleep(0.02)
            if head:
                await answer.write(b".")
                dripped += 1

    receiver.answers = [drip] * 4
    async with open_deliveries(change(quick, webhook_timeout_seconds=0.3)) as deliveries:
        row = await deliveries.deliver(await deliveries.ended(receiver.url))
    assert (row.webhook_state, row.webhook_attempts) == ("failed", 4)
    assert row.webhook_error == "webhook_timeout: no whole answer within 0.3 s"
    assert bool(dripped) is head


async def test_of_a_huge_answer_only_the_beginning_is_read(deliveries: Deliveries, receiver: Receiver) -> None:
    written = 0

    async def pour(request: web.Request) -> web.StreamResponse:
        nonlocal written
        answer = web.StreamResponse(status=200)
        await answer.prepare(request)
        while True:  # until the connection is closed
            await answer.write(b"x" * 65536)
            written += 65536

    receiver.answers = [pour]
    row = await deliveries.deliver(await deliveries.ended(receiver.url))
    assert (row.webhook_state, row.webhook_attempts) == ("delivered", 1)
    assert 0 < written < 32 * 1024 * 1024  # what the sockets' buffers hold, and not more


async def test_a_receiver_that_is_not_there(deliveries: Deliveries, receiver: Receiver) -> None:
    row = await deliveries.deliver(await deliveries.ended("http://127.0.0.1:1/"))
    assert (row.webhook_state, row.webhook_attempts) == ("failed", 4)
    assert row.webhook_error == "webhook_unreachable: the connection was not made (ECONNREFUSED)"


async def test_a_host_that_is_not_there(deliveries: Deliveries) -> None:
    row = await deliveries.deliver(await deliveries.ended("http://no-such-host.invalid/"))
    assert row.webhook_error == "webhook_unreachable: the host's name has no address"


async def test_a_connection_that_is_cut_off(deliveries: Deliveries, receiver: Receiver) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    receiver.answers = [cut]
    row = await deliveries.deliver(await deliveries.ended(receiver.url))
    assert (row.webhook_state, row.webhook_attempts) == ("delivered", 2)
    assert deliveries.changed[0].webhook_error is not None
    assert deliveries.changed[0].webhook_error.startswith("webhook_broken: there was no whole answer")


async def test_retry_after_puts_the_next_try_off(deliveries: Deliveries, receiver: Receiver) -> None:
    async def busy(request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"retry-after": "1800"})

    receiver.answers = [busy]
    ended = await deliveries.ended(receiver.url)
    assert await deliveries.deliverer.deliver(ended.id, ended.webhook_round) == 1800
    claimed = await deliveries.outbox.claim(Delivery(ended.id, ended.webhook_round), lease_seconds=1, max_attempts=4)
    assert isinstance(claimed, NotDue)
    assert 1790 < claimed.seconds <= 1800
    # Whoever comes too early does nothing.
    seconds = await deliveries.deliverer.deliver(ended.id, ended.webhook_round)
    assert seconds is not None
    assert 1790 < seconds <= 1800
    assert len(receiver.received) == 1


async def test_sending_again_has_tries_of_its_own_and_the_same_id_and_body(
    deliveries: Deliveries, receiver: Receiver
) -> None:
    receiver.answers = [500] * 4
    first = await deliveries.deliver(await deliveries.ended(receiver.url, fail=True))
    assert first.webhook_state == "failed"
    again = await deliveries.outbox.rearm(first.id)
    assert (again.webhook_state, again.webhook_attempts, again.webhook_round) == ("pending", 0, first.webhook_round + 1)
    # The job of the round before finds nothing to do.
    assert await deliveries.deliverer.deliver(first.id, first.webhook_round) is None
    row = await deliveries.deliver(again)
    assert (row.webhook_state, row.webhook_attempts) == ("delivered", 1)
    assert len(receiver.received) == 5
    assert len({(request.headers["webhook-id"], request.body) for request in receiver.received}) == 1


async def test_a_retry_of_the_upload_ends_a_delivery_under_way(deliveries: Deliveries, receiver: Receiver) -> None:
    ended = await deliveries.ended(receiver.url, fail=True)

    async def reopen(request: web.Request) -> web.Response:
        await deliveries.ledger.reopen(ended.id)
        return web.Response(status=500)

    receiver.answers = [reopen]
    assert (await deliveries.deliver(ended)).webhook_state is None
    assert len(receiver.received) == 1
    assert deliveries.changed == []


async def test_a_try_that_is_cancelled_counts_and_can_be_made_again_at_once(
    deliveries: Deliveries, receiver: Receiver
) -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    receiver.answers = [hang]
    ended = await deliveries.ended(receiver.url)
    trying = asyncio.create_task(deliveries.deliver(ended))
    await receiver.until(1)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    row = await deliveries.deliver(ended)
    assert (row.webhook_state, row.webhook_attempts) == ("delivered", 2)


async def test_a_last_try_whose_end_nobody_saw_is_recorded_as_failed(
    deliveries: Deliveries, receiver: Receiver
) -> None:
    ended = await deliveries.ended(receiver.url)
    name = Delivery(ended.id, ended.webhook_round)
    for _ in range(MAX_ATTEMPTS):
        await deliveries.outbox.claim(name, lease_seconds=0, max_attempts=MAX_ATTEMPTS)
    assert await deliveries.deliverer.deliver(ended.id, ended.webhook_round) is None
    (row,) = deliveries.changed
    assert (row.webhook_state, row.webhook_attempts) == ("failed", 4)
    assert (row.webhook_error or "").startswith("webhook_interrupted:")
    assert receiver.received == []


def test_pauses_grow_with_jitter() -> None:
    for attempts, middle in ((1, 5.0), (2, 25.0), (3, 125.0)):
        pauses = [pause_seconds(attempts, base_seconds=5.0) for _ in range(300)]
        assert middle * 0.5 <= min(pauses) < middle * 0.6
        assert middle * 1.4 < max(pauses) <= middle * 1.5
