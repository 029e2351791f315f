"""Transactions on the connection of a lane, and what becomes of them when that connection ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import structlog

from stream_api.errors import Failure

log = structlog.get_logger()

#: How long a transaction may take to be rolled back before its session is ended instead.
_ROLLBACK_SECONDS: Final = 2.0


@asynccontextmanager
async def transaction(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """A transaction whose end never hides what ended it, as asyncpg's own does.

    A COPY that was cut off by a lost session, or by a cancellation while the server takes nothing, leaves a connection
    on which nothing can be rolled back, or only some time.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    except BaseException:
        try:
            async with asyncio.timeout(_ROLLBACK_SECONDS):
                await transaction.rollback()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
            # The session goes, and with it what was to be rolled back.
            log.debug("load.not_rolled_back", error=repr(exc))
            connection.terminate()
        raise
    await transaction.commit()


@asynccontextmanager
async def ended_with(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """End the body when the connection ends: a throttled COPY would wait for ever (see FACTS on `copy_to_table`).

    :raises Failure: `database_unavailable`.
    """
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout(None)
    left = False

    def on_termination(_: object) -> None:
        # asyncpg calls it one turn of the loop later, when the body may be over and the listener removed.
        if not left:
            scope.reschedule(loop.time())

    try:
        async with scope:
            connection.add_termination_listener(on_termination)
            try:
                if connection.is_closed():
                    raise Failure("database_unavailable", "The connection to the database was lost.")
                yield
            finally:
                left = True
                connection.remove_termination_listener(on_termination)
    except TimeoutError as exc:
        if not scope.expired():
            raise
        message = "The connection to the database was lost in the middle of a COPY."
        raise Failure("database_unavailable", message) from exc
