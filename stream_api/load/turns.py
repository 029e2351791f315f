"""Who of a load's lanes may have a transaction open: all together, or one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Keeps lanes apart that are in each other's way.

    Lanes that meet in a file's keys wait for each other's transactions in Postgres, and two for one another until it
    sees the deadlock, after a second. A lane that cannot go on beside the others goes alone.
    """

    def __init__(self) -> None:
        #: Lanes have met in a key: the file has it in several segments, and others most likely too.
        self.apart = False
        self._together = 0
        self._changed = asyncio.Condition()
        self._alone = False

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Be in with others; whoever waits to be alone goes first."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone)
            self._together += 1
        try:
            yield
        finally:
            self._together -= 1
            await self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be in alone."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone)
            self._alone = True
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._together)
            yield
        finally:
            self._alone = False
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
