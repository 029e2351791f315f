"""aiohttp's protocol for one connection, with our options, and with problem documents for what is not HTTP."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import _ErrInfo

from stream_api.http.problems import problem
from stream_api.upload.pipeline import READ_BUFFER_BYTES

log = structlog.stdlib.get_logger(__name__)

#: The memory formula and the draining of refused bodies rest on these.
_OPTIONS: Final[dict[str, Any]] = {
    "access_log": None,
    # A connection without a request is closed after so long; it would otherwise hold one of `max_connections`.
    "keepalive_timeout": 30.0,
    # We drain ourselves, within a bound in bytes too.
    "lingering_time": 0.0,
    "read_bufsize": READ_BUFFER_BYTES,
    # An upload is stored as it is sent; one with a Content-Encoding is refused.
    "auto_decompress": False,
}
#: Requests of one client that wait for the one before them. Clients in use send none before they have their answer.
_MOST_IN_LINE: Final = 8


class Protocol(web.RequestHandler):
    """Serves the requests of one connection.

    :param server: of the runner; knows every connection, and ends them when it is shut down.
    """

    def __init__(self, server: web.Server, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, **_OPTIONS)
        #: Set when the client has left, or the connection is lost for another reason.
        self.gone: Final = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Take what has come; a client with too many requests in line loses its connection.

        Where the chunks of a body are none, aiohttp tells of that in the answer to a request that never was, and leaves
        whoever reads the body waiting. It is the end of the body.

        aiohttp would stop reading when 32 are in line, and so never see that the client has left: the one whose turn it
        is, which may wait for an hour, would hold its place among `max_connections`.
        """
        super().data_received(data)
        request = self._current_request
        if request is not None and self._messages and not request.content.is_eof():
            last = self._messages[-1][0]
            if isinstance(last, _ErrInfo):
                self._messages.pop()
                request.content.set_exception(last.exc)
                self.close()
        if len(self._messages) > _MOST_IN_LINE and self.transport is not None:
            log.info("http.too_many_in_line", requests=len(self._messages))
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection has ended, whoever ended it."""
        self.gone.set()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not read as a request; errors of handlers are answered by the middleware."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        # Port scans and TLS on a plain port look like this: nothing to be alarmed by.
        log.info("http.not_understood", remote=request.remote, error=type(exc).__name__)
        if isinstance(exc, LineTooLong):
            status, exc.message = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "its URL or a header is too long"
            message = None
        why = (message or exc.message).strip().partition("\n")[0].rstrip(":. ")
        response = problem(request, "bad_request", f"The request is not valid HTTP: {why}.", status=status)
        response.force_close()
        return response
