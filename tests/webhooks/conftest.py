"""A receiver of webhooks on the loopback, and deliveries with everything behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import web

from stream_api.config import Settings
from stream_api.ledger.outbox import Outbox
from stream_api.ledger.pool import Pool, open_pool
from stream_api.ledger.rows import Intake, UploadRow
from stream_api.ledger.uploads import Ledger, Taken
from stream_api.webhooks.delivery import Deliverer
from stream_api.webhooks.sender import Resolver, Sender
from tests.support.patience import PATIENCE_SECONDS
from tests.support.settings import change

LOOPBACK = "127.0.0.0/8"


@dataclass(frozen=True)
class Received:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers as it is told, in order, and then with 200."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    #: For the coming requests, one each: a status, or what makes an answer.
    answers: list[int | Callable[[web.Request], Awaitable[web.StreamResponse]]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        async with self.changed:
            self.received.append(Received(request.method, request.path_qs, headers, await request.read()))
            answer = self.answers.pop(0) if self.answers else 200
            self.changed.notify_all()
        return web.Response(status=answer) if isinstance(answer, int) else await answer(request)

    async def until(self, count: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(lambda: len(self.received) >= count)


@asynccontextmanager
async def receiving(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver that listens while the body runs."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    name = f"[{host}]" if ":" in host else host
    receiver.url = f"http://{name}:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Settings by which nobody waits, and the loopback is allowed."""
    return change(
        settings,
        webhook_allow=LOOPBACK,
        webhook_backoff_seconds=0.02,
        webhook_connect_timeout_seconds=1.0,
        webhook_timeout_seconds=2.0,
        webhook_sweep_seconds=0.2,
    )


@dataclass
class Deliveries:
    """Uploads that have ended, and what becomes of their webhooks."""

    settings: Settings
    pool: Pool
    ledger: Ledger
    outbox: Outbox
    deliverer: Deliverer
    #: The rows that were told of.
    changed: list[UploadRow]

    async def ended(self, url: str | None, *, fail: bool = False) -> UploadRow:
        """An upload that has been cancelled, or has failed."""
        upload_id = uuid4()
        intake = Intake(
            upload_id=upload_id,
            dataset="webhook_events",
            table="webhook_events",
            size_bytes=100,
            segment_bytes=10,
            callback_url=url,
            created_at=datetime.now(UTC),
        )
        if not fail:
            return await self.ledger.cancel(intake)
        taken = await self.ledger.take(intake)
        assert isinstance(taken, Taken)
        return await self.ledger.fail(
            upload_id, taken.run, code="header_mismatch", message="no", extra={"missing": ["id"]}
        )

    async def row(self, upload_id: UUID) -> UploadRow:
        row = await self.ledger.get(upload_id)
        assert row is not None
        return row

    async def deliver(self, row: UploadRow) -> UploadRow:
        """Make tries until there is nothing left to do, without any queue."""
        while (seconds := await self.deliverer.deliver(row.id, row.webhook_round)) is not None:  # noqa: ASYNC110
            await asyncio.sleep(seconds)
        return await self.row(row.id)

    async def until_state(self, upload_id: UUID, state: str) -> UploadRow:
        """Wait for what somebody else records."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (row := await self.row(upload_id)).webhook_state != state:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return row


@asynccontextmanager
async def open_deliveries(settings: Settings, resolver: Any = None) -> AsyncIterator[Deliveries]:
    pool = await open_pool(settings)
    changed: list[UploadRow] = []

    async def tell(row: UploadRow) -> None:
        changed.append(row)

    own = resolver or Resolver()
    outbox = Outbox(pool)
    deliverer = Deliverer(settings, outbox, Sender(settings, own), tell)
    try:
        yield Deliveries(settings, pool, Ledger(pool), outbox, deliverer, changed)
    finally:
        await own.close()
        await pool.close()


@pytest.fixture
async def deliveries(quick: Settings) -> AsyncIterator[Deliveries]:
    async with open_deliveries(quick) as opened:
        yield opened
