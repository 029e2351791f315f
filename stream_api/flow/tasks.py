"""The end of background tasks."""

from __future__ import annotations

import asyncio
from typing import Any, Final

#: Until a task that goes on is cancelled again; time enough for one that cleans up behind itself.
_AGAIN_SECONDS: Final = 0.5


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return when they have ended, however they end.

    A single `cancel()` can get lost: `asyncio.wait_for` of Python 3.11, by which redis-py sends every command,
    swallows one that arrives together with the result, and a task in a loop then goes on for ever.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_AGAIN_SECONDS)
