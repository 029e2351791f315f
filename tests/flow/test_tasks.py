from __future__ import annotations

import asyncio

from stream_api.flow.tasks import cancel_and_wait


async def test_one_that_swallows_a_cancellation_ends_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 2:
                    raise

    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            msg = "while it ended"
            raise OSError(msg)

    async def quick() -> int:
        return 1

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(failing()), asyncio.create_task(quick())]
    await asyncio.sleep(0)
    await cancel_and_wait(*tasks)
    assert swallowed == 2
    assert tasks[0].cancelled()
    assert isinstance(tasks[1].exception(), OSError)
    assert tasks[2].result() == 1
    await cancel_and_wait()
