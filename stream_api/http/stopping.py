"""Requests under way when the process is told to stop: they may end, and those that do not in time are aborted."""

from __future__ import annotations

import asyncio

from aiohttp import web

from stream_api.errors import Failure
from stream_api.http.problems import Handler


class UnderWay:
    """The requests that are being handled: `middleware` keeps count of them, `finish` ends them."""

    def __init__(self) -> None:
        self._scopes: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._aborting = False

    @property
    def count(self) -> int:
        """Requests that are being handled now."""
        return len(self._scopes)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the request, and abort it when `finish` says so.

        :raises Failure: `stopping`, when it was aborted; its handler has cleaned up by then.
        """
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout_at(loop.time() if self._aborting else None)
        self._scopes.add(scope)
        self._idle.clear()
        try:
            async with scope:
                return await handler(request)
        except TimeoutError as exc:
            if not scope.expired():
                raise
            raise Failure("stopping", "The server is stopping, and the request was not done: send it again.") from exc
        finally:
            self._scopes.discard(scope)
            if not self._scopes:
                self._idle.set()

    async def finish(self, *, seconds: float) -> int:
        """Wait so long for the requests to end by themselves, then abort the others, which still have to clean up.

        :returns: how many were aborted.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            self._aborting = True
            now = asyncio.get_running_loop().time()
            for scope in self._scopes:
                scope.reschedule(now)
            return len(self._scopes)
        return 0
