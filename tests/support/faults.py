"""A TCP proxy that breaks connections on command, to stand between the service and a real server."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Self

from yarl import URL

from stream_api.dev.ports import find_port

Direction = Literal["up", "down"]
_READ_BYTES: Final = 64 * 1024
#: What a request begins with: a client writes its head in one piece.
_REQUESTS: Final = (b"GET /", b"HEAD /", b"PUT /", b"POST /", b"DELETE /")


class FaultProxy:
    """`async with FaultProxy(host, port) as proxy`: clients connect to `proxy.host`, `proxy.port`.

    "up" is from the client to the server, "down" from the server to the client. Every fault holds for connections that
    are open and for those that come, until `restore`; faults of one kind replace one another.

    :param host: of the server behind it.
    :param port: of the server behind it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self.host: Final = "127.0.0.1"
        # No ephemeral one, which a connection of anybody might have when we want it again after `refuse`.
        self.port: Final = find_port()
        #: Bytes passed on since the start.
        self.passed_bytes: Final[dict[Direction, int]] = {"up": 0, "down": 0}
        #: Connections accepted since the start.
        self.accepted = 0
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._stalled: set[Direction] = set()
        self._rates: dict[Direction, float] = {}
        self._left_bytes: dict[Direction, int] = {}
        #: For the breaks after the next one.
        self._then_bytes: list[int] = []
        self._end: Literal["reset", "close"] = "reset"
        self._answer: bytes | None = None
        #: Requests answered by `answer` since the start.
        self.answered = 0
        self._changed = asyncio.Condition()

    @classmethod
    def before(cls, url: str) -> Self:
        """A proxy before the server of a URL; `proxy.url(url)` is the way through it."""
        parsed = URL(url)
        if parsed.host is None or parsed.port is None:
            msg = f"{parsed.host}: the URL names no host and port"
            raise ValueError(msg)
        return cls(parsed.host, parsed.port)

    def url(self, url: str) -> str:
        """The same URL, by way of this proxy."""
        return str(URL(url).with_host(self.host).with_port(self.port))

    @property
    def open_connections(self) -> int:
        """Connections of clients that are open now."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop_listening()
        await self.drop()

    # -- faults ----------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """End every fault: listen, and pass everything. What was stalled flows on."""
        self._stalled.clear()
        self._rates.clear()
        self._left_bytes.clear()
        self._then_bytes.clear()
        self._answer = None
        if self._listener is None:
            await self._listen()
        await self._notify()

    async def drop(self) -> None:
        """Reset every open connection, towards both ends. New ones are accepted."""
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refuse(self, *, drop: bool = True) -> None:
        """Refuse new connections, as a server that is not running does.

        :param drop: reset the open ones too.
        """
        await self._stop_listening()
        if drop:
            await self.drop()

    async def stall(self, *directions: Direction) -> None:
        """Pass nothing and close nothing, as a network that swallows packets; both directions unless named."""
        self._stalled = set(directions or ("up", "down"))
        await self._notify()

    async def throttle(self, bytes_per_second: float, *directions: Direction) -> None:
        """Pass each connection's bytes at this rate; both directions unless named."""
        self._rates = dict.fromkeys(directions or ("up", "down"), bytes_per_second)
        await self._notify()

    async def reset_after(self, size_bytes: int, direction: Direction = "down", *, times: int = 1) -> None:
        """Let this many more bytes pass, over all connections, then reset the connection that brings the next.

        It happens so many times, each after as many bytes; what comes after passes.
        """
        self._break_after([size_bytes] * times, direction, "reset")
        await self._notify()

    async def close_after(self, size_bytes: int, direction: Direction = "down", *, times: int = 1) -> None:
        """As `reset_after`, but the connection is closed in an orderly way: the data is cut short without an error."""
        self._break_after([size_bytes] * times, direction, "close")
        await self._notify()

    async def answer(self, status: str, body: bytes = b"") -> None:
        """Answer every HTTP request that begins from now on, on open connections too; what is under way passes.

        :param status: as in `503 Slow Down`.
        """
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
        self._answer = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        await self._notify()

    def _break_after(self, sizes_bytes: list[int], direction: Direction, end: Literal["reset", "close"]) -> None:
        self._left_bytes, self._then_bytes, self._end = {direction: sizes_bytes[0]}, sizes_bytes[1:], end

    # -- watching --------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[FaultProxy], bool]) -> None:
        """Wait until something holds; asked whenever bytes pass, a connection comes or goes, or a fault changes."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # -- within ----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, self.host, self.port, limit=_READ_BYTES)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await self._notify()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            msg = "a connection is served by a task"
            raise RuntimeError(msg)
        writers = [writer]
        self._connections[task] = writers
        self.accepted += 1
        await self._notify()
        try:
            await self._serve(reader, writer, writers)
        except (OSError, asyncio.CancelledError):
            # Cancelled by `drop`, or one end is gone: the other end is to see it. Nobody awaits this task's result.
            for each in writers:
                _reset(each)
        finally:
            for each in writers:
                each.close()
            del self._connections[task]
            await self._notify()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, writers: list[asyncio.StreamWriter]
    ) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream, limit=_READ_BYTES)
        writers.append(upstream_writer)
        pumps = [
            asyncio.ensure_future(self._pump(reader, upstream_writer, "up", back=writer)),
            asyncio.ensure_future(self._pump(upstream_reader, writer, "down")),
        ]
        try:
            await asyncio.gather(*pumps)
        except _ClosedByFault:
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
        back: asyncio.StreamWriter | None = None,
    ) -> None:
        while True:
            await self.until(lambda proxy: direction not in proxy._stalled)
            rate = self._rates.get(direction)
            # Small pieces when throttled, so that a change of the rate is felt soon.
            data = await reader.read(_READ_BYTES if rate is None else max(1, min(_READ_BYTES, int(rate / 20))))
            await self.until(lambda proxy: direction not in proxy._stalled)
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            if back is not None and self._answer is not None and data.startswith(_REQUESTS):
                self.answered += 1
                back.write(self._answer)
                await back.drain()
                raise _ClosedByFault
            await self._pass(data, writer, direction)
            if rate is not None:
                await asyncio.sleep(len(data) / rate)

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter, direction: Direction) -> None:
        left = self._left_bytes.get(direction)
        cut = left is not None and len(data) > left
        if left is not None:
            data = data[:left]
            self._left_bytes[direction] = left - len(data)
        writer.write(data)
        await writer.drain()
        self.passed_bytes[direction] += len(data)
        await self._notify()
        if cut:
            self._left_bytes.clear()
            if self._then_bytes:
                self._left_bytes[direction] = self._then_bytes.pop()
            if self._end == "reset":
                raise ConnectionResetError
            raise _ClosedByFault


class _ClosedByFault(Exception):
    """A connection is to be closed in an orderly way."""


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: the peer gets ECONNRESET instead of an end of file."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() != -1:
        # SO_LINGER of zero seconds: close() discards what is buffered and resets.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
