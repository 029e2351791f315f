"""The bounded channel that both stages are built of: an `asyncio.Queue` and what it lacks.

What it adds: a bound in bytes, two distinct ends (close and fail), a checkpoint in every operation, and statistics.
Room and items are *promised* to a task before it suspends and taken after it resumes; a task that is cancelled in
between gives its promise back. So a cancelled `send` has sent nothing, a cancelled `receive` has taken nothing, and
whatever returned has happened exactly once.

Memory: queued + promised <= max(`max_bytes`, the largest single item).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")


class ChannelClosed(Exception):
    """The channel was closed; nothing more can be sent."""


class ChannelFailed(Exception):
    """The other side of the channel failed; the cause is `__cause__`. What was queued has been dropped."""


class EndOfChannel(Exception):
    """The channel was closed and everything that was sent has been received."""


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """A snapshot of one channel.

    :param items: items queued now; `bytes` is their size.
    :param peak_bytes: the most bytes ever queued or promised at once.
    :param sent_items: items ever queued; `sent_bytes` is their size.
    :param blocked_senders: tasks that now wait for room.
    :param blocked_seconds: time that senders have waited for room, those that wait now included, summed over senders.
    :param blocked_receivers: tasks that now wait for an item.
    """

    name: str
    items: int
    bytes: int
    peak_bytes: int
    max_items: int
    max_bytes: int
    sent_items: int
    sent_bytes: int
    blocked_senders: int
    blocked_seconds: float
    blocked_receivers: int


class _Waiter:
    """A task that waits in line. `granted` tells a promise from a wake-up because of close or fail."""

    __slots__ = ("future", "granted", "since", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self.future: Final = loop.create_future()
        self.since: Final = loop.time()
        self.size_bytes: Final = size_bytes
        self.granted = False

    def grant(self) -> None:
        self.granted = True
        self.wake()

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Channel(Generic[T]):
    """A bounded channel between stages of a pipeline, for any number of senders and receivers.

    Senders that wait are served in the order in which they came, and so are receivers. `async for` ends after
    `close`, once all items have been received, and raises `ChannelFailed` after `fail`.

    :param name: for statistics and messages.
    :param max_items: bound on items, at least 1.
    :param max_bytes: bound on the bytes of the items, at least 1. An item larger than it passes when the channel is
        empty, so that it cannot wait for ever.
    """

    def __init__(self, name: str, *, max_items: int, max_bytes: int) -> None:
        if max_items < 1 or max_bytes < 1:
            msg = "max_items and max_bytes must be at least 1"
            raise ValueError(msg)
        self.name: Final = name
        self._max_items: Final = max_items
        self._max_bytes: Final = max_bytes
        self._queue: Final[asyncio.Queue[tuple[T, int]]] = asyncio.Queue(maxsize=max_items)
        self._bytes = 0
        #: Room promised to senders that have not resumed yet.
        self._promised_slots = 0
        self._promised_bytes = 0
        #: Queued items promised to receivers that have not resumed yet.
        self._promised_items = 0
        self._senders: Final[deque[_Waiter]] = deque()
        self._receivers: Final[deque[_Waiter]] = deque()
        self._closed = False
        self._error: BaseException | None = None
        self._peak_bytes = 0
        self._sent_items = 0
        self._sent_bytes = 0
        self._blocked_seconds = 0.0

    async def send(self, item: T, size_bytes: int) -> None:
        """Queue an item, waiting for room. A cancelled send has not sent.

        :param size_bytes: what the item counts for; 0 or more.
        :raises ChannelClosed: if the channel is closed, now or while waiting.
        :raises ChannelFailed: if the channel has failed, now or while waiting.
        """
        if size_bytes < 0:
            msg = "size_bytes must not be negative"
            raise ValueError(msg)
        waiter = _Waiter(size_bytes)
        if self._closed or self._error is not None:
            waiter.wake()
        else:
            self._senders.append(waiter)
            self._admit_senders()
        blocked = not waiter.future.done()
        try:
            # A checkpoint even where there is room: awaiting a future that is done does not suspend.
            await (waiter.future if blocked else asyncio.sleep(0))
            self._check_open()
        except BaseException:
            self._end_wait(waiter, blocked=blocked)
            if not waiter.granted and waiter in self._senders:
                self._senders.remove(waiter)
            self._admit_senders()
            raise
        self._end_wait(waiter, blocked=blocked)
        # Nothing may come between giving the promise back and using the room.
        self._queue.put_nowait((item, size_bytes))
        self._bytes += size_bytes
        self._sent_items += 1
        self._sent_bytes += size_bytes
        self._admit_receivers()

    async def receive(self) -> T:
        """Take the oldest item, waiting for one. A cancelled receive has taken nothing.

        :raises EndOfChannel: if the channel is closed and drained.
        :raises ChannelFailed: if the channel has failed; at once, whatever was queued.
        """
        waiter = _Waiter(0)
        self._receivers.append(waiter)
        self._admit_receivers()
        try:
            await (asyncio.sleep(0) if waiter.future.done() else waiter.future)
        except BaseException:
            if waiter.granted:
                self._promised_items -= 1
            elif waiter in self._receivers:
                self._receivers.remove(waiter)
            self._admit_receivers()
            raise
        if waiter.granted:
            self._promised_items -= 1
        if self._error is not None:
            raise ChannelFailed(self.name) from self._error
        if not waiter.granted:
            raise EndOfChannel(self.name)
        item, size_bytes = self._queue.get_nowait()
        self._bytes -= size_bytes
        self._admit_senders()
        # The last item of a closed channel has gone: those who waited for it to come back can end.
        self._admit_receivers()
        return item

    def close(self) -> None:
        """End normally: what is queued can still be received, nothing more can be sent. Idempotent; either side."""
        self._closed = True
        self._wake_senders()
        self._admit_receivers()

    def fail(self, exc: BaseException) -> None:
        """End abnormally: both sides get `ChannelFailed` from `exc`, queued items are dropped. The first one stays."""
        if self._error is not None:
            return
        self._error = exc
        while not self._queue.empty():
            self._queue.get_nowait()
        self._bytes = 0
        self._wake_senders()
        self._admit_receivers()

    def __aiter__(self) -> Channel[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except EndOfChannel:
            raise StopAsyncIteration from None

    @property
    def stats(self) -> ChannelStats:
        """A snapshot; must be read in the event loop."""
        now = asyncio.get_running_loop().time()
        return ChannelStats(
            name=self.name,
            items=self._queue.qsize(),
            bytes=self._bytes,
            peak_bytes=self._peak_bytes,
            max_items=self._max_items,
            max_bytes=self._max_bytes,
            sent_items=self._sent_items,
            sent_bytes=self._sent_bytes,
            blocked_senders=len(self._senders),
            blocked_seconds=self._blocked_seconds + sum(now - waiter.since for waiter in self._senders),
            blocked_receivers=len(self._receivers),
        )

    def _check_open(self) -> None:
        if self._error is not None:
            raise ChannelFailed(self.name) from self._error
        if self._closed:
            raise ChannelClosed(self.name)

    def _fits(self, size_bytes: int) -> bool:
        items = self._queue.qsize() + self._promised_slots
        if items == 0:
            return True
        return items < self._max_items and self._bytes + self._promised_bytes + size_bytes <= self._max_bytes

    def _admit_senders(self) -> None:
        """Promise room to senders, strictly in line: a small item never overtakes a large one that waits."""
        while self._senders and self._fits(self._senders[0].size_bytes):
            waiter = self._senders.popleft()
            self._promised_slots += 1
            self._promised_bytes += waiter.size_bytes
            self._peak_bytes = max(self._peak_bytes, self._bytes + self._promised_bytes)
            waiter.grant()

    def _admit_receivers(self) -> None:
        """Promise queued items to receivers in line, and wake all of them when there is nothing left to wait for.

        A promised item can come back if its receiver is cancelled, so the end is told only once the queue is empty.
        """
        if self._error is None:
            while self._receivers and self._queue.qsize() > self._promised_items:
                self._promised_items += 1
                self._receivers.popleft().grant()
        if self._error is not None or (self._closed and self._queue.empty()):
            while self._receivers:
                self._receivers.popleft().wake()

    def _wake_senders(self) -> None:
        while self._senders:
            self._senders.popleft().wake()

    def _end_wait(self, waiter: _Waiter, *, blocked: bool) -> None:
        if blocked:
            self._blocked_seconds += asyncio.get_running_loop().time() - waiter.since
        if waiter.granted:
            self._promised_slots -= 1
            self._promised_bytes -= waiter.size_bytes
