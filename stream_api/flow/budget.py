"""A budget of bytes that several tasks share, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType


class Lease:
    """Room that was taken from a `ByteBudget`; a context manager that gives it back."""

    __slots__ = ("_budget", "size_bytes")

    def __init__(self, budget: ByteBudget, size_bytes: int) -> None:
        self._budget: ByteBudget | None = budget
        self.size_bytes: Final = size_bytes

    def release(self) -> None:
        """Give the room back. Idempotent."""
        if self._budget is not None:
            budget, self._budget = self._budget, None
            budget._give_back(self.size_bytes)  # noqa: SLF001  (one unit: only a lease may give back)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class _Waiter:
    __slots__ = ("future", "granted", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.future: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()
        self.size_bytes: Final = size_bytes
        self.granted = False


class ByteBudget:
    """Bounds the bytes that all holders of a lease have in memory together.

    Strictly in line: a small request never overtakes a large one that waits, so nobody starves.

    :param total_bytes: what may be leased at once, at least 1.
    """

    def __init__(self, total_bytes: int) -> None:
        if total_bytes < 1:
            msg = "total_bytes must be at least 1"
            raise ValueError(msg)
        self.total_bytes: Final = total_bytes
        self._used_bytes = 0
        self._peak_bytes = 0
        self._line: Final[deque[_Waiter]] = deque()

    @property
    def used_bytes(self) -> int:
        """Bytes leased now."""
        return self._used_bytes

    @property
    def peak_bytes(self) -> int:
        """The most bytes ever leased at once."""
        return self._peak_bytes

    @property
    def waiting(self) -> int:
        """Tasks that now wait for room."""
        return len(self._line)

    async def acquire(self, size_bytes: int) -> Lease:
        """Take room, waiting for it. Always a checkpoint; a cancelled acquire holds nothing.

        :raises ValueError: if the size is negative or larger than the whole budget, and so could never be granted.
        """
        if not 0 <= size_bytes <= self.total_bytes:
            msg = f"{size_bytes} bytes can never be had from a budget of {self.total_bytes}"
            raise ValueError(msg)
        waiter = _Waiter(size_bytes)
        self._line.append(waiter)
        self._admit()
        try:
            # Awaiting a future that is done does not suspend, and this must be a checkpoint.
            await (asyncio.sleep(0) if waiter.granted else waiter.future)
        except BaseException:
            if waiter.granted:
                self._give_back(size_bytes)
            else:
                self._line.remove(waiter)
                self._admit()
            raise
        return Lease(self, size_bytes)

    def _admit(self) -> None:
        while self._line and self._used_bytes + self._line[0].size_bytes <= self.total_bytes:
            waiter = self._line.popleft()
            self._used_bytes += waiter.size_bytes
            self._peak_bytes = max(self._peak_bytes, self._used_bytes)
            waiter.granted = True
            # A task that was cancelled and has not resumed yet gives the room back when it does.
            if not waiter.future.done():
                waiter.future.set_result(None)

    def _give_back(self, size_bytes: int) -> None:
        self._used_bytes -= size_bytes
        self._admit()
