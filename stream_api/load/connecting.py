"""The connections of a load's lanes: made together, and while the rest of the load is being prepared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID

from stream_api.config import Settings
from stream_api.flow.tasks import cancel_and_wait
from stream_api.ledger.pool import LaneConnection, connect_lane, disconnect
from stream_api.ledger.slots import name_after


@asynccontextmanager
async def connecting(
    settings: Settings, upload_id: UUID, run: int, *, count: int, slot: LaneConnection | None
) -> AsyncIterator[Callable[[], Awaitable[list[LaneConnection]]]]:
    """Begin to connect that many lanes. Yields what waits for them; they are closed with the body.

    What waits raises `Failure`, as `connect_lane`.

    :param slot: the connection that holds the load's slot, if there is one: the first lane, which stays open.
    """
    own = count if slot is None else count - 1
    tasks = [asyncio.create_task(connect_lane(settings, upload_id, run), name="connect") for _ in range(own)]

    async def connected() -> list[LaneConnection]:
        if slot is None:
            return await asyncio.gather(*tasks)
        await name_after(slot, upload_id, run)
        return [slot, *await asyncio.gather(*tasks)]

    try:
        yield connected
    finally:
        try:
            await cancel_and_wait(*tasks)
        finally:
            # Also where this is cancelled while it waits; and each is asked for its exception, which nobody has where
            # the body has failed first.
            ended = [task for task in tasks if task.done() and not task.cancelled()]
            await asyncio.gather(*(disconnect(task.result()) for task in ended if task.exception() is None))
