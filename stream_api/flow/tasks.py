"""The end of background tasks, and many small tasks at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from stream_api.flow.causes import first_cause

T = TypeVar("T")

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


@asynccontextmanager
async def begun(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Begin something that goes on beside the body, which awaits it where it needs it; it ends with the body."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        await cancel_and_wait(task)
        if not task.cancelled():
            task.exception()  # where the body has failed first, nobody else asks


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """Run what opens a `TaskGroup` in a task of its own, which is cancelled with the one that waits for it.

    On Python 3.11 a group that fails while its owner waits for the others leaves the owner counted as being cancelled
    for ever. aiohttp believes that count: a PUT without a body then raises `CancelledError`, also in a later request of
    the same connection, which runs in the same task.
    """
    return await asyncio.create_task(work)


async def for_each(items: Iterable[T], do: Callable[[T], Awaitable[object]], *, at_once: int) -> None:
    """Do something with each item, with some of them at a time. After the first failure no other is begun.

    :raises Exception: the cause of all failures, as `first_cause` finds it.
    """
    left = iter(items)

    async def lane() -> None:
        for item in left:
            await do(item)

    async def lanes() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(lane())
        except BaseExceptionGroup as failures:
            raise first_cause(failures) from None

    await in_own_task(lanes())
