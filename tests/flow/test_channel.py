from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_api.flow.channel import Channel, ChannelClosed, ChannelFailed, EndOfChannel


async def turns(count: int = 5) -> None:
    """Let every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_items_come_out_in_order_and_the_end_is_told() -> None:
    channel: Channel[int] = Channel("c", max_items=10, max_bytes=100)
    for number in range(5):
        await channel.send(number, 1)
    channel.close()
    assert [number async for number in channel] == [0, 1, 2, 3, 4]
    with pytest.raises(EndOfChannel):
        await channel.receive()
    with pytest.raises(ChannelClosed):
        await channel.send(1, 1)


async def test_bytes_bound_and_an_item_larger_than_the_bound() -> None:
    channel: Channel[str] = Channel("c", max_items=10, max_bytes=10)
    await channel.send("large", 50)
    assert channel.stats.bytes == 50
    blocked = asyncio.create_task(channel.send("small", 1))
    await turns()
    assert channel.stats.blocked_senders == 1
    assert channel.stats.sent_items == 1
    assert await channel.receive() == "large"
    await blocked
    assert await channel.receive() == "small"
    assert channel.stats.peak_bytes == 50
    assert channel.stats.blocked_seconds > 0


async def test_a_small_item_does_not_overtake_a_large_one() -> None:
    channel: Channel[str] = Channel("c", max_items=10, max_bytes=10)
    await channel.send("first", 5)
    large = asyncio.create_task(channel.send("large", 8))
    await turns()
    small = asyncio.create_task(channel.send("small", 1))
    await turns()
    assert channel.stats.blocked_senders == 2
    assert [await channel.receive() for _ in range(3)] == ["first", "large", "small"]
    await asyncio.gather(large, small)


async def test_cancelling_the_head_of_the_line_lets_the_next_pass() -> None:
    channel: Channel[str] = Channel("c", max_items=10, max_bytes=10)
    await channel.send("first", 5)
    large = asyncio.create_task(channel.send("large", 8))
    await turns()
    small = asyncio.create_task(channel.send("small", 1))
    await turns()
    large.cancel()
    await small
    channel.close()
    assert [item async for item in channel] == ["first", "small"]


async def test_close_wakes_blocked_senders_and_keeps_what_is_queued() -> None:
    channel: Channel[int] = Channel("c", max_items=1, max_bytes=10)
    await channel.send(1, 1)
    blocked = asyncio.create_task(channel.send(2, 1))
    await turns()
    channel.close()
    with pytest.raises(ChannelClosed):
        await blocked
    assert [item async for item in channel] == [1]


async def test_close_wakes_blocked_receivers() -> None:
    channel: Channel[int] = Channel("c", max_items=1, max_bytes=10)
    receivers = [asyncio.create_task(channel.receive()) for _ in range(3)]
    await turns()
    assert channel.stats.blocked_receivers == 3
    channel.close()
    results = await asyncio.gather(*receivers, return_exceptions=True)
    assert all(isinstance(result, EndOfChannel) for result in results)


async def test_fail_reaches_both_sides_at_once_and_drops_the_queue() -> None:
    channel: Channel[int] = Channel("c", max_items=1, max_bytes=10)
    await channel.send(1, 1)
    blocked = asyncio.create_task(channel.send(2, 1))
    await turns()
    cause = RuntimeError("boom")
    channel.fail(cause)
    channel.fail(ValueError("later"))
    channel.close()
    for operation in (blocked, channel.receive(), channel.send(3, 1)):
        with pytest.raises(ChannelFailed) as caught:
            await operation
        assert caught.value.__cause__ is cause
    assert channel.stats.bytes == channel.stats.items == 0


async def test_fail_after_close_is_not_taken_for_a_normal_end() -> None:
    channel: Channel[int] = Channel("c", max_items=2, max_bytes=10)
    await channel.send(1, 1)
    channel.close()
    channel.fail(RuntimeError("boom"))
    with pytest.raises(ChannelFailed):
        await channel.receive()


async def test_a_promised_item_that_comes_back_reaches_a_receiver_that_waits() -> None:
    channel: Channel[int] = Channel("c", max_items=2, max_bytes=10)
    first = asyncio.create_task(channel.receive())
    second = asyncio.create_task(channel.receive())
    await turns()
    await channel.send(1, 1)  # promised to `first`, which has not resumed
    channel.close()
    first.cancel()
    assert await second == 1
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(EndOfChannel):
        await channel.receive()


async def test_every_operation_is_a_checkpoint() -> None:
    channel: Channel[int] = Channel("c", max_items=1000, max_bytes=1000)
    ticks = 0

    async def ticker() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(ticker())
    for number in range(100):
        await channel.send(number, 1)
    for _ in range(100):
        await channel.receive()
    channel.close()
    for _ in range(100):
        with pytest.raises(EndOfChannel):
            await channel.receive()
        with pytest.raises(ChannelClosed):
            await channel.send(1, 1)
    task.cancel()
    assert ticks >= 400


@pytest.mark.parametrize("bad", [{"max_items": 0, "max_bytes": 1}, {"max_items": 1, "max_bytes": 0}])
def test_bounds_must_be_positive(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Channel("c", **bad)


@dataclass
class Machine:
    """Drives a channel with operations that are started, cancelled and awaited in any order."""

    channel: Channel[int]
    next_item: int = 0
    sends: deque[tuple[asyncio.Task[None], int]] = field(default_factory=deque)
    receives: deque[asyncio.Task[int]] = field(default_factory=deque)
    #: Items in the order in which receivers got them.
    got: list[int] = field(default_factory=list)

    def send(self, size: int) -> None:
        item = self.next_item
        self.next_item += 1
        self.sends.append((asyncio.create_task(self.channel.send(item, size)), item))

    def receive(self) -> None:
        async def take() -> int:
            item = await self.channel.receive()
            self.got.append(item)
            return item

        self.receives.append(asyncio.create_task(take()))


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 15)),
        st.tuples(st.just("receive"), st.just(0)),
        st.tuples(st.just("cancel_send"), st.integers(0, 20)),
        st.tuples(st.just("cancel_receive"), st.integers(0, 20)),
        st.tuples(st.just("turn"), st.integers(1, 3)),
    ),
    max_size=60,
)


@given(operations=OPERATIONS, max_items=st.integers(1, 4), max_bytes=st.integers(1, 12))
@settings(max_examples=400, deadline=None)
def test_nothing_is_lost_doubled_or_reordered_by_cancellation(
    operations: list[tuple[str, int]], max_items: int, max_bytes: int
) -> None:
    async def run() -> None:
        channel: Channel[int] = Channel("c", max_items=max_items, max_bytes=max_bytes)
        machine = Machine(channel)
        for operation, argument in operations:
            if operation == "send":
                machine.send(argument)
            elif operation == "receive":
                machine.receive()
            elif operation == "cancel_send" and machine.sends:
                machine.sends[argument % len(machine.sends)][0].cancel()
            elif operation == "cancel_receive" and machine.receives:
                machine.receives[argument % len(machine.receives)].cancel()
            elif operation == "turn":
                await turns(argument)
            stats = channel.stats
            assert stats.items <= max_items
            assert stats.bytes <= max_bytes or stats.items == 1
        # Nobody who could go on may be left waiting.
        await turns(10)
        stats = channel.stats
        assert not (stats.items and stats.blocked_receivers)
        assert not (stats.blocked_senders and stats.items == 0)
        # End: take what is left, so that every send that was not cancelled can finish.
        for task in machine.receives:
            task.cancel()
        await asyncio.gather(*machine.receives, return_exceptions=True)
        assert all(task.cancelled() or task.exception() is None for task in machine.receives)

        async def drain() -> None:
            with suppress(EndOfChannel):
                while True:
                    machine.got.append(await channel.receive())

        drainer = asyncio.create_task(drain())
        await asyncio.gather(*(task for task, _ in machine.sends), return_exceptions=True)
        sent = [item for task, item in machine.sends if not task.cancelled() and task.exception() is None]
        channel.close()
        await drainer
        # Exactly the sends that returned were received, once, in the order in which they were started.
        assert machine.got == sent
        assert channel.stats.sent_items == len(sent)
        assert channel.stats.items == channel.stats.bytes == 0

    asyncio.run(run())


@given(operations=OPERATIONS, end=st.sampled_from(["close", "fail"]), at=st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_an_end_leaves_nobody_waiting(operations: list[tuple[str, int]], end: str, at: int) -> None:
    async def run() -> None:
        channel: Channel[int] = Channel("c", max_items=2, max_bytes=8)
        machine = Machine(channel)
        for number, (operation, argument) in enumerate(operations):
            if number == at:
                channel.close() if end == "close" else channel.fail(RuntimeError("boom"))
            if operation == "send":
                machine.send(argument)
            elif operation == "receive":
                machine.receive()
            elif operation == "cancel_send" and machine.sends:
                machine.sends[argument % len(machine.sends)][0].cancel()
            elif operation == "cancel_receive" and machine.receives:
                machine.receives[argument % len(machine.receives)].cancel()
            else:
                await turns(argument or 1)
        channel.close() if end == "close" else channel.fail(RuntimeError("boom"))
        await asyncio.gather(*(task for task, _ in machine.sends), *machine.receives, return_exceptions=True)
        errors = {type(task.exception()) for task in machine.receives if not task.cancelled() and task.exception()}
        assert errors <= {EndOfChannel, ChannelFailed}
        if end == "close":
            async for item in channel:
                machine.got.append(item)
            sent = [item for task, item in machine.sends if not task.cancelled() and task.exception() is None]
            assert machine.got == sent

    asyncio.run(run())
