"""Tables as the catalogue had them a moment ago, for whoever cannot wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from stream_api.datasets.catalogue import Table
from stream_api.errors import Failure

log = structlog.stdlib.get_logger(__name__)

#: A copy that is older is not looked at.
MAX_AGE_SECONDS: Final = 30.0
#: How long anybody waits for a look at the catalogue.
LOOK_SECONDS: Final = 2.0
#: At the end: a server that does not answer holds up nobody's farewell.
_CLOSE_SECONDS: Final = 1.0


class TableCache:
    """Made by `open_table_cache`. Holds a table for each dataset of which somebody has asked.

    A look that takes long goes on when nobody waits for it any more: it is the answer to whoever asks next, and while
    it hangs no other is begun, nor waited for.

    :param look: reads one table; raises `Failure`.
    """

    def __init__(self, look: Callable[[str], Awaitable[Table]]) -> None:
        self._look: Final = look
        self._copies: Final[dict[str, tuple[Table, float]]] = {}
        self._looks: Final[dict[str, tuple[asyncio.Task[Table], float]]] = {}

    def copy(self, name: str) -> Table | None:
        """The table as it was a moment ago, if somebody has looked."""
        found = self._copies.get(name)
        return found[0] if found is not None and _now() - found[1] < MAX_AGE_SECONDS else None

    async def fresh(self, name: str) -> Table | None:
        """The table as it is now; `None` when the catalogue does not say so in time.

        :raises Failure: of the look.
        """
        asked = _now()
        while True:
            look, begun = self._looks.get(name) or self._begin(name)
            left = LOOK_SECONDS - (_now() - min(begun, asked))
            if left > 0:
                await asyncio.wait({look}, timeout=left)
            if not look.done():
                log.info("catalogue.slow", table=name)
                return None
            if begun >= asked:
                return look.result()
            # It was begun before we asked, and may have seen what is no more.

    async def close(self) -> None:
        """Give up what is under way."""
        looks = {look for look, _ in self._looks.values()}
        for look in looks:
            look.cancel()
        if looks:
            await asyncio.wait(looks, timeout=_CLOSE_SECONDS)

    def _begin(self, name: str) -> tuple[asyncio.Task[Table], float]:
        begun = _now()
        look = asyncio.create_task(self._keep(name, begun), name="look-at-table")
        self._looks[name] = look, begun
        look.add_done_callback(_noted)
        return look, begun

    async def _keep(self, name: str, begun: float) -> Table:
        try:
            table = await self._look(name)
        except Failure as failure:
            if not failure.transient:
                self._copies.pop(name, None)
            log.info("catalogue.not_read", table=name, code=failure.code)
            raise
        finally:
            del self._looks[name]
        self._copies[name] = table, begun
        return table


@asynccontextmanager
async def open_table_cache(look: Callable[[str], Awaitable[Table]]) -> AsyncIterator[TableCache]:
    """For the life of the process."""
    cache = TableCache(look)
    try:
        yield cache
    finally:
        await cache.close()


def _noted(look: asyncio.Task[Table]) -> None:
    if not look.cancelled():
        # Perhaps nobody waits for it any more, and its failure has been said.
        look.exception()


def _now() -> float:
    return asyncio.get_running_loop().time()
