"""The service as a process of its own, as its users run it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any, ClassVar, Final, Literal
from uuid import uuid4

import aiohttp

from stream_api.config import Settings
from stream_api.dev.ports import find_port
from stream_api.dev.server import spawn
from tests.support.patience import PATIENCE_SECONDS

_ENDED = frozenset({"completed", "failed", "cancelled"})


def environment(settings: Settings, **values: object) -> dict[str, str]:
    """The settings as the environment variables of a process."""
    assert settings.s3_secret_access_key is not None
    return {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "AWS_ENDPOINT_URL_S3": str(settings.s3_endpoint_url),
        "AWS_ACCESS_KEY_ID": str(settings.s3_access_key_id),
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_access_key.get_secret_value(),
        "AWS_REGION": settings.s3_region,
        "STREAM_API_BUCKET": settings.bucket,
        "STREAM_API_LOG_FORMAT": "json",
        **{f"STREAM_API_{name.upper()}": str(value) for name, value in values.items()},
    }


class Service:
    """One process of `stream-api serve` or `stream-api worker`.

    :param values: settings for this process, by their names in `Settings`.
    """

    #: What Python runs.
    module: ClassVar[str] = "stream_api"

    def __init__(
        self, role: Literal["serve", "worker"], settings: Settings, folder: Path, *options: str, **values: object
    ) -> None:
        self.role: Final = role
        self.port = find_port()
        self.log = folder / f"{role}-{uuid4().hex}.log"
        arguments = ["--port", str(self.port)] if role == "serve" else []
        self.process: Popen[bytes] = spawn(
            [sys.executable, "-m", self.module, role, *arguments, *options],
            log=self.log,
            environment=environment(settings, **values),
            death_signal=signal.SIGKILL,
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    async def started(self) -> None:
        """Wait until it has begun to serve."""
        event = "serve.listening" if self.role == "serve" else "worker.started"
        await until(lambda: self.process.poll() is not None or self.logged(event))
        assert self.process.poll() is None, self.log.read_text()

    async def ended(self) -> int:
        """Wait for its end; its exit code."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asyncio.to_thread(self.process.wait)

    def errors(self) -> list[str]:
        """What it has written that is no event: tracebacks, warnings of Python."""
        return [line for line in self.log.read_text().splitlines() if not line.startswith("{")]

    async def kill(self) -> None:
        """End it with SIGKILL."""
        if self.process.poll() is None:
            self.process.kill()
        await self.ended()

    async def stop(self) -> int:
        """End it with SIGTERM; its exit code."""
        self.process.terminate()
        return await self.ended()

    def events(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def logged(self, event: str) -> bool:
        """Whether it has logged this event."""
        return any(each["event"] == event for each in self.events())


@asynccontextmanager
async def running(
    role: Literal["serve", "worker"], settings: Settings, folder: Path, *options: str, **values: object
) -> AsyncIterator[Service]:
    """A process that has begun to serve; killed on leaving if it still runs."""
    service = Service(role, settings, folder, *options, **values)
    try:
        await service.started()
        yield service
    finally:
        if service.process.poll() is None:
            service.signal(signal.SIGCONT)
            await service.kill()


async def until(condition: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something holds that nobody tells us of."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


class Client:
    """A client of the API."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http = http
        self.url = url

    async def upload(self, data: bytes, **fields: str) -> dict[str, Any]:
        """Upload a file; the body of the 202."""
        form = aiohttp.FormData(fields)
        form.add_field("file", io.BytesIO(data), filename="test.csv", content_type="text/csv")
        async with self.http.post(f"{self.url}/upload", data=form) as answer:
            body: dict[str, Any] = await answer.json(content_type=None)
            assert answer.status == 202, body
            return body

    async def status(self, upload_id: str) -> dict[str, Any]:
        """The status of an upload."""
        async with self.http.get(f"{self.url}/upload/{upload_id}/status") as answer:
            body: dict[str, Any] = await answer.json(content_type=None)
            assert answer.status == 200, body
            return body

    async def until(self, upload_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for the status until something holds of it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition(status := await self.status(upload_id)):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.02)
        return status

    async def end(self, upload_id: str) -> dict[str, Any]:
        """The status once the upload is in an end state."""
        return await self.until(upload_id, lambda status: status["status"] in _ENDED)


@asynccontextmanager
async def client_of(service: Service) -> AsyncIterator[Client]:
    """A client of a service."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        yield Client(http, service.url)
