from __future__ import annotations

import asyncio

from stream_api.flow.stopping import Stopping


async def test_everybody_who_waits_is_told_and_whoever_comes_later_too() -> None:
    stopping = Stopping()
    waiting = [asyncio.create_task(stopping.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    stopping.begin()
    stopping.begin()
    assert stopping.begun
    await asyncio.gather(*waiting, stopping.wait())
