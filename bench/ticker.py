"""How late an event loop is: a task that wants to wake up every 10 ms, and notes how much later it does."""

from __future__ import annotations

import asyncio
import json
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PERIOD_SECONDS: Final = 0.01


class Ticks:
    """Moments by `time.monotonic`, which all processes of a machine share, and a number of seconds for each."""

    def __init__(self) -> None:
        self._moments: Final = array("d")
        self._seconds: Final = array("d")

    def add(self, moment: float, seconds: float) -> None:
        """Note one."""
        self._moments.append(moment)
        self._seconds.append(seconds)

    def between(self, since: float, until: float) -> list[float]:
        """The seconds that were noted in a time."""
        return [
            seconds for moment, seconds in zip(self._moments, self._seconds, strict=True) if since <= moment <= until
        ]

    def write(self, file: Path) -> None:
        """Write them for `read`, at once or not at all."""
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps([self._moments.tolist(), self._seconds.tolist()]), encoding="ascii")
        fresh.replace(file)

    @classmethod
    def read(cls, file: Path) -> Ticks:
        """:raises OSError: when there is no such file."""
        ticks = cls()
        for moment, seconds in zip(*json.loads(file.read_text(encoding="ascii")), strict=True):
            ticks.add(moment, seconds)
        return ticks


@contextmanager
def ticking(ticks: Ticks) -> Iterator[None]:
    """A ticker in the running loop while the body runs.

    The loop's own timers are exact to a millisecond (epoll's), so an idle loop is late by half of one.
    """
    ticker = asyncio.create_task(_tick(ticks), name="ticker")
    try:
        yield
    finally:
        ticker.cancel()


async def _tick(ticks: Ticks) -> None:
    while True:
        due = time.monotonic() + PERIOD_SECONDS
        await asyncio.sleep(PERIOD_SECONDS)
        ticks.add(due, time.monotonic() - due)
