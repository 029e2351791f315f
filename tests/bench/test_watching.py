from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from bench.prober import FAILED_SECONDS, probe
from bench.proxy import DelayProxy
from bench.ticker import Ticks, ticking
from stream_api.dev.ports import find_port
from tests.support.service import until


async def test_a_loop_that_was_held_up_is_seen() -> None:
    ticks = Ticks()
    began = time.monotonic()
    with ticking(ticks):
        await until(lambda: bool(ticks.between(began, time.monotonic())))
        held = time.monotonic()
        while time.monotonic() < held + 0.2:  # Nothing else of this loop runs meanwhile.
            pass
        await until(lambda: max(ticks.between(began, time.monotonic())) >= 0.15)


def test_ticks_are_written_and_read(tmp_path: Path) -> None:
    ticks = Ticks()
    ticks.add(1.5, 0.25)
    ticks.add(2.5, 0.5)
    ticks.write(tmp_path / "ticks.json")
    read = Ticks.read(tmp_path / "ticks.json")
    assert (read.between(0, 3), read.between(2, 3), read.between(3, 4)) == ([0.25, 0.5], [0.5], [])


async def test_a_probers_latency_counts_from_when_a_question_was_due() -> None:
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 2:
            await asyncio.sleep(0.2)
        return web.Response(status=503 if asked == 4 else 200)

    app = web.Application()
    app.router.add_get("/healthz", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        url = URL(f"http://127.0.0.1:{runner.addresses[0][1]}/healthz")
        ticks = await asyncio.to_thread(probe, url, 0.01, lambda: asked >= 4)
    finally:
        await runner.cleanup()
    _, second, third, fourth = ticks.between(0, time.monotonic())
    assert second >= 0.2
    # It was due while the second was not answered yet.
    assert third >= 0.1
    assert fourth == FAILED_SECONDS


@pytest.mark.parametrize("delay_seconds", [0.0, 0.1])
async def test_a_distant_server_answers_later_and_whole(delay_seconds: float) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        with DelayProxy("127.0.0.1", server.sockets[0].getsockname()[1], delay_seconds) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            began = time.monotonic()
            writer.write(b"?")
            assert await reader.readexactly(1) == b"?"
            assert time.monotonic() - began >= delay_seconds
            sent = bytes(range(256)) * 4096
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == sent
            writer.close()
            await writer.wait_closed()


async def test_a_server_that_is_gone_is_a_closed_connection() -> None:
    with DelayProxy("127.0.0.1", find_port(), 0.0) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()
