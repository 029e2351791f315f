"""Accepts clients up to a bound; the others wait in the kernel's listen queue, where they cost next to nothing.

asyncio's own server accepts whatever comes. Each connection has a receive buffer in the kernel, which is charged to
the container, and buffers in aiohttp, so their number has to be bounded before they are accepted.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

import structlog
from aiohttp import web

from stream_api.flow.tasks import cancel_and_wait
from stream_api.http.protocol import Protocol

log = structlog.stdlib.get_logger(__name__)

#: Connections that have not been accepted yet; the kernel refuses or delays what comes beyond.
_BACKLOG: Final = 1024
#: asyncio reads up to 256 KiB from a socket at once, which can lie in the read buffer on top of its bound.
_READ_BYTES: Final = 64 * 1024
#: After a failed accept (out of file descriptors, mostly): it would fail again at once.
_ACCEPT_PAUSE_SECONDS: Final = 0.1


def open_listener(host: str, port: int, *, receive_buffer_bytes: int) -> socket.socket:
    """A listening socket whose connections have receive buffers of a fixed size.

    The size must be set before the connection is made, so on the listening socket, from which it is inherited; the
    kernel doubles it for its bookkeeping, and stops tuning it (socket(7), tcp(7)).

    :param port: 0 for any free one.
    :raises OSError: if the address is not ours or is taken.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


class BoundedSite(web.BaseSite):
    """A site with at most `max_connections` open connections.

    :param listener: of `open_listener`; closed by `stop`.
    """

    __slots__ = ("_accepting", "_connections", "_listener", "_slots")

    def __init__(self, runner: web.AppRunner, listener: socket.socket, *, max_connections: int) -> None:
        super().__init__(runner)
        self._listener = listener
        self._slots = asyncio.Semaphore(max_connections)
        self._accepting: asyncio.Task[None] | None = None
        self._connections = 0

    @property
    def name(self) -> str:
        """Where it listens, as a URL."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def port(self) -> int:
        """The port, also where 0 was asked for."""
        return cast("int", self._listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return self._connections

    async def start(self) -> None:
        """Begin to accept."""
        await super().start()
        self._accepting = asyncio.create_task(self._accept(), name="accept")

    async def stop(self) -> None:
        """Stop accepting; the runner ends what is open."""
        await super().stop()
        if self._accepting is not None:
            await cancel_and_wait(self._accepting)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        server = cast("web.AppRunner", self._runner).server
        if server is None:
            msg = "the runner has not been set up"
            raise RuntimeError(msg)
        while True:
            await self._slots.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as exc:
                self._slots.release()
                log.warning("http.accept_failed", error=repr(exc))
                await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)
                continue
            self._connections += 1
            try:
                await loop.connect_accepted_socket(
                    lambda: _Counted(Protocol(server, loop=loop), self._closed), connection
                )
            except OSError as exc:
                connection.close()
                self._closed()
                log.info("http.connection_lost_at_once", error=repr(exc))

    def _closed(self) -> None:
        self._connections -= 1
        self._slots.release()


class _Counted(asyncio.Protocol):
    """Passes everything to the protocol of one connection, and says when the connection is gone."""

    def __init__(self, protocol: asyncio.Protocol, closed: Callable[[], None]) -> None:
        self._protocol = protocol
        self._closed = closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_BYTES
        self._protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._closed()

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
