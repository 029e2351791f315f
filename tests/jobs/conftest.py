from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.jobs.queue import LoadQueue
from stream_api.jobs.worker import Backoff, LoadWorker
from stream_api.status.connection import open_redis
from tests.support.patience import PATIENCE_SECONDS

FAST = Backoff(base_seconds=0.01, cap_seconds=0.05)


class Calls:
    """A load that does what it is told, and says how often it was called."""

    def __init__(self) -> None:
        self.started: list[UUID] = []
        self.ended: list[UUID] = []
        self.cancelled: list[UUID] = []
        #: Set: runs end at once. Clear: they wait for it.
        self.open = asyncio.Event()
        self.open.set()
        #: What the coming calls raise, one each.
        self.errors: list[Exception] = []
        self._changed = asyncio.Condition()

    async def __call__(self, upload_id: UUID) -> None:
        await self._note(self.started, upload_id)
        error = self.errors.pop(0) if self.errors else None
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            await self._note(self.cancelled, upload_id)
            raise
        await self._note(self.ended, upload_id)
        if error is not None:
            raise error

    async def _note(self, where: list[UUID], upload_id: UUID) -> None:
        async with self._changed:
            where.append(upload_id)
            self._changed.notify_all()

    async def until(self, condition: Callable[[Calls], bool], seconds: float = PATIENCE_SECONDS) -> None:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: condition(self))


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def job_settings(redis_url: str) -> Settings:
    # Longer than this process is ever kept from renewing it: what waits for the end of a lease makes it short.
    return Settings(redis_url=SecretStr(redis_url), job_lease_seconds=20)


@pytest.fixture
async def redis(job_settings: Settings) -> AsyncIterator[Redis]:
    async with open_redis(job_settings) as client:
        yield client


@pytest.fixture
async def queue(job_settings: Settings) -> AsyncIterator[LoadQueue]:
    queue = LoadQueue(job_settings)
    yield queue
    await queue.close()


@pytest.fixture
def upload_id() -> UUID:
    return uuid4()


@asynccontextmanager
async def working(
    settings: Settings, run: Callable[[UUID], Awaitable[None]], backoff: Backoff = FAST
) -> AsyncIterator[LoadWorker]:
    worker = LoadWorker(settings, run, backoff=backoff)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a state of Redis, which tells nobody of its changes."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_idle(redis: Redis) -> None:
    """Wait until no job is left in Redis."""

    async def idle() -> bool:
        return not await job_keys(redis)

    await eventually(idle)


async def job_keys(redis: Redis) -> list[Any]:
    return [key async for key in redis.scan_iter("stream-api:loads:????????-*")]


@pytest.fixture(autouse=True)
async def nothing_is_left_unretrieved() -> AsyncIterator[None]:
    """Exceptions that nobody looked at, and tasks that were left behind, reach the loop's handler."""
    reported: list[dict[str, Any]] = []

    def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "client_connected_cb" not in context["message"]:  # the fault proxy's own: its peers are gone
            reported.append(context)

    asyncio.get_running_loop().set_exception_handler(report)
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    assert not left
    assert not reported
