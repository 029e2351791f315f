"""Who may be in with whom."""

from __future__ import annotations

import asyncio

from stream_api.load.turns import Turns
from tests.support.patience import PATIENCE_SECONDS


async def test_some_together_or_one_alone() -> None:
    turns, inside = Turns(), set[str]()
    leave = {name: asyncio.Event() for name in ("a", "b", "c", "d")}
    entered = {name: asyncio.Event() for name in leave}

    async def be(name: str, *, alone: bool = False) -> None:
        async with turns.alone() if alone else turns.together():
            inside.add(name)
            assert not alone or inside == {name}
            entered[name].set()
            await leave[name].wait()
            inside.remove(name)

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(be("a"))
        group.create_task(be("b"))
        await asyncio.gather(entered["a"].wait(), entered["b"].wait())
        group.create_task(be("c", alone=True))
        await asyncio.sleep(0)
        group.create_task(be("d"))
        leave["a"].set()
        await asyncio.sleep(0)
        assert not entered["c"].is_set()
        leave["b"].set()
        # Who came later than the one that wants to be alone does not pass it.
        await entered["c"].wait()
        assert inside == {"c"}
        leave["c"].set()
        await entered["d"].wait()
        leave["d"].set()


async def test_whoever_is_cancelled_lets_the_others_in() -> None:
    turns = Turns()

    async def alone() -> None:
        async with turns.alone():
            await asyncio.Event().wait()

    async with asyncio.timeout(PATIENCE_SECONDS):
        async with turns.together():
            waiting = asyncio.create_task(alone())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            async with turns.together():
                pass
        inside = asyncio.create_task(alone())
        await asyncio.sleep(0)
        inside.cancel()
        await asyncio.wait({inside})
        async with turns.alone():
            pass
