from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.faults import FaultProxy


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()


async def _ask(proxy: FaultProxy, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


async def test_passes_both_ways_and_counts(proxy: FaultProxy) -> None:
    assert await _ask(proxy, b"hello" * 100_000) == b"hello" * 100_000
    assert proxy.passed_bytes == {"up": 500_000, "down": 500_000}
    await proxy.until(lambda p: p.open_connections == 0)
    assert proxy.accepted == 1


async def test_drop_resets_open_connections_and_takes_new_ones(proxy: FaultProxy) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    await proxy.drop()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert await _ask(proxy, b"again") == b"again"


async def test_refuse_and_restore_keep_the_port(proxy: FaultProxy) -> None:
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await _ask(proxy, b"x")
    await proxy.restore()
    assert await _ask(proxy, b"back") == b"back"


async def test_stall_holds_bytes_until_restore(proxy: FaultProxy) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    await proxy.until(lambda p: p.open_connections == 1)
    await proxy.stall("down")
    writer.write(b"held")
    await proxy.until(lambda p: p.passed_bytes["up"] == 4)
    assert proxy.passed_bytes["down"] == 0
    await proxy.restore()
    assert await reader.readexactly(4) == b"held"
    writer.close()


async def test_reset_after_some_bytes_then_passes_again(proxy: FaultProxy) -> None:
    await proxy.reset_after(1000)
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"x" * 5000)
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(5000)
    writer.close()
    assert proxy.passed_bytes["down"] == 1000
    assert await _ask(proxy, b"y" * 5000) == b"y" * 5000


async def test_close_after_cuts_short_without_an_error(proxy: FaultProxy) -> None:
    await proxy.close_after(1000)
    assert await _ask(proxy, b"x" * 5000) == b"x" * 1000
    assert await _ask(proxy, b"y" * 5000) == b"y" * 5000


async def test_throttle_passes_everything_in_small_pieces(proxy: FaultProxy) -> None:
    await proxy.throttle(100_000, "up")
    assert await _ask(proxy, b"x" * 20_000) == b"x" * 20_000


async def test_answers_requests_that_begin_from_now_on(proxy: FaultProxy) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"PUT /key HTTP/1.1\r\n")
    assert await reader.readexactly(19) == b"PUT /key HTTP/1.1\r\n"
    await proxy.answer("503 Slow Down", b"<Error/>")
    writer.write(b"more of the body")
    assert await reader.readexactly(16) == b"more of the body"
    writer.write(b"PUT /another HTTP/1.1\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 503 Slow Down\r\n")
    writer.close()
    assert (await _ask(proxy, b"GET / HTTP/1.1\r\n")).endswith(b"Content-Length: 8\r\n\r\n<Error/>")
    assert proxy.answered == 2
    await proxy.restore()
    assert await _ask(proxy, b"GET / HTTP/1.1\r\n") == b"GET / HTTP/1.1\r\n"


async def test_a_server_that_is_away_ends_the_connection() -> None:
    async with FaultProxy("127.0.0.1", 1) as proxy:
        with pytest.raises(ConnectionResetError):
            await _ask(proxy, b"")


def test_url_leads_through_the_proxy() -> None:
    proxy = FaultProxy.before("postgresql://user:pass@10.0.0.1:5432/name")
    through = f"postgresql://user:pass@127.0.0.1:{proxy.port}/name"
    assert proxy.url("postgresql://user:pass@10.0.0.1:5432/name") == through
