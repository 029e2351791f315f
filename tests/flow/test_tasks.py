from __future__ import annotations

import asyncio

import pytest

from stream_api.flow.tasks import begun, cancel_and_wait, for_each, in_own_task


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


async def test_a_group_that_fails_does_not_count_as_a_cancellation() -> None:
    async def fail(item: int = 0) -> None:
        await asyncio.sleep(0)
        raise OSError(item)

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(BaseExceptionGroup):
        await in_own_task(group())
    with pytest.raises(OSError, match="1"):
        await for_each([1], fail, at_once=1)
    assert task.cancelling() == 0


async def test_a_task_of_its_own_is_cancelled_with_who_waits_for_it() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(in_own_task(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_what_has_begun_goes_on_beside_the_body() -> None:
    asked = asyncio.Event()

    async def answer() -> int:
        await asked.wait()
        return 7

    async with begun(answer()) as task:
        asked.set()
        assert await task == 7


@pytest.mark.parametrize("fails", [True, False])
async def test_what_has_begun_ends_with_a_body_that_fails(*, fails: bool) -> None:
    async def work() -> None:
        if fails:
            raise ValueError
        await asyncio.Event().wait()

    tasks = []

    async def body() -> None:
        async with begun(work()) as task:
            tasks.append(task)
            await asyncio.sleep(0)
            _ = 1 // 0

    with pytest.raises(ZeroDivisionError):
        await body()
    assert tasks[0].done()


async def test_what_has_begun_and_fails_is_told_to_who_awaits_it() -> None:
    async def fail() -> None:
        raise ValueError

    async with begun(fail()) as task:
        with pytest.raises(ValueError):
            await task
