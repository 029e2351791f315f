"""Transactions on the connection of a lane, and what becomes of them when that connection ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import asyncpg
import structlog

from stream_api.errors import Failure

log = structlog.get_logger()

#: How long a transaction may take to be rolled back before its session is ended instead.
_ROLLBACK_SECONDS: Final = 2.0


@asynccontextmanager
async def transaction(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """A transaction whose end never hides what ended it, as asyncpg's own does."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    except BaseException:
        await _rolled_back(connection, transaction.rollback)
        raise
    await transaction.commit()


@asynccontextmanager
async def rolled_back_if_left(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """The same, where the body itself begins and commits, by statements that carry something else as well."""
    try:
        yield
    except BaseException:
        # Also where asyncpg knows of no transaction: the answer to the BEGIN may not have come any more.
        await _rolled_back(connection, partial(connection.execute, "ROLLBACK"))
        raise


async def _rolled_back(connection: asyncpg.Connection, roll_back: Callable[[], Awaitable[object]]) -> None:
    """Roll back, or end the session, and with it what was to be rolled back.

    A COPY that was cut off by a lost session, or by a cancellation while the server takes nothing, leaves a connection
    on which nothing can be rolled back, or only some time.
    """
    try:
        async with asyncio.timeout(_ROLLBACK_SECONDS):
            await roll_back()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
        log.debug("load.not_rolled_back", error=repr(exc))
        connection.terminate()


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
