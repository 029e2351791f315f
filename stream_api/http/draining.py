"""Answering a client that is still sending.

A server that closes a connection with unread bytes makes the kernel send a reset, which can reach the client before it
has read the answer. So the answer is sent first, then the rest of the body is read and thrown away, within bounds, and
then the connection is closed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

MAX_DRAIN_BYTES: Final = 16 * 1024 * 1024
MAX_DRAIN_SECONDS: Final = 5.0


def has_unread_body(request: web.Request) -> bool:
    """The client has not sent, or we have not seen, the end of the body."""
    return request.body_exists and not request.content.is_eof() and request.content.exception() is None


async def answer_and_drain(request: web.Request, response: web.StreamResponse) -> None:
    """Send a whole response, with `Connection: close`, then read what the client still sends.

    The runner must have `lingering_time=0`, or aiohttp goes on reading afterwards, without a bound in bytes.
    """
    # The client may be gone, or its body be nonsense: there is nobody left to tell.
    with suppress(TimeoutError, OSError, ClientError, HttpProcessingError, web.RequestPayloadError):
        async with asyncio.timeout(MAX_DRAIN_SECONDS):
            response.force_close()
            await response.prepare(request)
            await response.write_eof()
            drained = 0
            while drained < MAX_DRAIN_BYTES and (data := await request.content.readany()):
                drained += len(data)
