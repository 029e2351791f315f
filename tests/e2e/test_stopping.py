"""What a signal does to the service: who is told, who may end, what is left behind."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from stream_api.config import MIB, Settings
from tests.conftest import Bucket
from tests.load.conftest import events
from tests.support.faults import FaultProxy
from tests.support.patience import PATIENCE_SECONDS
from tests.support.service import Service, client_of, running, until
from tests.support.settings import change

pytestmark = pytest.mark.timeout(400)

HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.csv"\r\n\r\n'


class HalfAnUpload:
    """A client that has sent some megabytes, and then nothing: parts of it are in S3."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, service: Service, bucket: Bucket) -> HalfAnUpload:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(
            b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 100000000\r\n\r\n" + HEAD
        )
        for _ in range(12):
            writer.write(b"a,b,c,d\n" * (MIB // 8))
            await writer.drain()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await asyncio.to_thread(bucket.open_multipart_uploads):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.02)
        return cls(reader, writer)

    async def answer(self) -> tuple[int, dict[str, Any]]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            head, _, body = (await self._reader.read()).partition(b"\r\n\r\n")
        self.close()
        return int(head.split()[1]), json.loads(body)

    def close(self) -> None:
        self._writer.close()


async def test_readiness_ends_first_and_requests_are_taken_for_a_while(
    settings: Settings, bucket: Bucket, tmp_path: Path
) -> None:
    async with (
        running("serve", settings, tmp_path, "--no-worker", shutdown_delay_seconds=3) as service,
        client_of(service) as client,
    ):
        async with client.http.get(f"{service.url}/readyz") as answer:
            assert answer.status == 200
        service.signal(signal.SIGTERM)
        await until(lambda: service.logged("serve.stopping"))
        async with client.http.get(f"{service.url}/readyz") as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (503, "stopping")
        await client.upload(events(range(10)))
        # The client keeps its connection open, without a request.
        async with asyncio.timeout(15):
            assert await service.ended() == 0
    assert service.errors() == []
    assert len([key for key in bucket.keys() if "/data-" in key]) == 1  # noqa: SIM118 - no dict


async def test_an_upload_that_does_not_end_is_aborted_and_leaves_nothing(
    settings: Settings, bucket: Bucket, tmp_path: Path
) -> None:
    async with running("serve", settings, tmp_path, "--no-worker", shutdown_timeout_seconds=4) as service:
        upload = await HalfAnUpload.to(service, bucket)
        service.signal(signal.SIGTERM)
        status, document = await upload.answer()
        assert (status, document["code"]) == (503, "stopping")
        async with asyncio.timeout(15):
            assert await service.ended() == 0
        assert service.logged("serve.requests_aborted")
        assert service.errors() == []
    assert bucket.open_multipart_uploads() == []
    assert bucket.keys() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_interrupt_after_the_first_signal_stops_now_and_sigterm_changes_nothing(
    settings: Settings, bucket: Bucket, tmp_path: Path, number: signal.Signals
) -> None:
    dsn = settings.database_url.get_secret_value()
    async with FaultProxy.before(dsn) as postgres:
        slow = change(settings, database_url=postgres.url(dsn))
        async with (
            running(
                "serve", slow, tmp_path, shutdown_timeout_seconds=60, segment_bytes=65536, batch_bytes=65536
            ) as service,
            client_of(service) as client,
        ):
            await postgres.throttle(300_000, "up")
            upload = await client.upload(events(range(30_000)))
            await client.until(upload["uploadId"], lambda status: bool(status["rowsProcessed"]))
            await postgres.stall()
            upload_under_way = await HalfAnUpload.to(service, bucket)
            service.signal(number)
            await until(lambda: service.logged("serve.stopping"))
            # As docker compose does it.
            service.signal(signal.SIGTERM)
            await until(lambda: service.logged("process.already_stopping"))
            assert service.process.poll() is None
            service.signal(signal.SIGINT)
            async with asyncio.timeout(15):
                assert await service.ended() == 128 + signal.SIGINT
            assert service.logged("process.stopped_now")
            assert service.errors() == []
            upload_under_way.close()
