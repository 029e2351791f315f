from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_api.flow.budget import ByteBudget, Lease


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_room_is_given_in_line_and_given_back() -> None:
    budget = ByteBudget(10)
    first = await budget.acquire(8)
    large = asyncio.create_task(budget.acquire(9))
    await turns()
    small = asyncio.create_task(budget.acquire(1))
    await turns()
    assert (budget.waiting, budget.used_bytes) == (2, 8)
    first.release()
    first.release()
    with await large, await small:
        assert budget.used_bytes == 10
    assert (budget.used_bytes, budget.peak_bytes, budget.waiting) == (0, 10, 0)


async def test_what_can_never_be_had_is_refused() -> None:
    budget = ByteBudget(10)
    for size in (11, -1):
        with pytest.raises(ValueError, match="can never be had"):
            await budget.acquire(size)
    with pytest.raises(ValueError, match="at least 1"):
        ByteBudget(0)


async def test_cancelling_after_the_grant_gives_the_room_back() -> None:
    budget = ByteBudget(10)
    first = await budget.acquire(10)
    second = asyncio.create_task(budget.acquire(10))
    third = asyncio.create_task(budget.acquire(10))
    await turns()
    first.release()  # granted to `second`, which has not resumed
    second.cancel()
    (await third).release()
    assert second.cancelled()
    assert budget.used_bytes == 0


async def test_cancelling_the_head_of_the_line_lets_the_next_pass() -> None:
    budget = ByteBudget(10)
    first = await budget.acquire(5)
    large = asyncio.create_task(budget.acquire(10))
    await turns()
    small = asyncio.create_task(budget.acquire(5))
    await turns()
    large.cancel()
    (await small).release()
    first.release()
    assert budget.used_bytes == 0


@given(
    operations=st.lists(
        st.tuples(st.sampled_from(["acquire", "release", "cancel", "turn"]), st.integers(0, 10)), max_size=60
    )
)
@settings(max_examples=300, deadline=None)
def test_never_overdrawn_never_leaking_always_in_line(operations: list[tuple[str, int]]) -> None:
    async def run() -> None:
        budget = ByteBudget(10)
        leases: list[Lease] = []
        granted: list[int] = []
        tasks: list[asyncio.Task[None]] = []

        async def take(number: int, size: int) -> None:
            leases.append(await budget.acquire(size))
            granted.append(number)

        for number, (operation, argument) in enumerate(operations):
            if operation == "acquire":
                tasks.append(asyncio.create_task(take(number, argument)))
            elif operation == "release" and leases:
                leases.pop(argument % len(leases)).release()
            elif operation == "cancel" and tasks:
                tasks[argument % len(tasks)].cancel()
            else:
                await turns(argument % 3 + 1)
            assert 0 <= budget.used_bytes <= 10
        while not all(task.done() for task in tasks):
            await turns()
            while leases:
                leases.pop().release()
        for lease in leases:
            lease.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (budget.used_bytes, budget.waiting) == (0, 0)
        assert granted == sorted(granted)

    asyncio.run(run())
