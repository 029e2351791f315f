"""The end of a process, from the first signal on: begun once, seen everywhere."""

from __future__ import annotations

import asyncio


class Stopping:
    """Whether the process is about to end.

    Whoever waits for something that may take long waits for this too, and then answers with what there is.
    """

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    @property
    def begun(self) -> bool:
        """The process has been told to stop."""
        return self._begun.is_set()

    def begin(self) -> None:
        """Tell everybody. There is no way back."""
        self._begun.set()

    async def wait(self) -> None:
        """Return when the process has been told to stop."""
        await self._begun.wait()
