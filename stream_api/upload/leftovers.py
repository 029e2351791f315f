"""Removes what failed uploads have left in the object storage, also when that is away for a while."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from stream_api.errors import Failure
from stream_api.flow.tasks import cancel_and_wait
from stream_api.upload.transfer import Transfer

log = structlog.stdlib.get_logger(__name__)

#: How long requests under way may take before they are cancelled.
_SETTLE_SECONDS: Final = 10.0
#: Transfers that wait for the store to come back. What does not fit is left to whoever looks for orphans.
_MAX_WAITING: Final = 10_000
_RETRY_SECONDS: Final = 1.0
_MAX_RETRY_SECONDS: Final = 30.0


class Leftovers:
    """Made by `open_leftovers`. A removal is tried at once, and later again and again while the store is away."""

    def __init__(self) -> None:
        self._removals: Final[set[asyncio.Task[None]]] = set()
        self._waiting: Final[deque[Transfer]] = deque()
        self._retrying: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """Uploads of which something may still be there."""
        return len(self._removals) + len(self._waiting)

    async def remove(self, transfer: Transfer, *, wait_seconds: float) -> None:
        """Remove what a failed upload may have stored. Waits for it so long, and goes on with it in any case.

        Cancelling this does not stop the removal.
        """
        if not transfer.touched:
            return
        removal = asyncio.create_task(self._remove(transfer))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.wait({removal}, timeout=wait_seconds)

    async def aclose(self, *, wait_seconds: float) -> None:
        """End; removals under way get so long."""
        if self._retrying is not None:
            await cancel_and_wait(self._retrying)
        if self._removals:
            await asyncio.wait(self._removals, timeout=wait_seconds)
        left = list(self._removals)
        await cancel_and_wait(*left)
        if left or self._waiting:
            log.warning("upload.leftovers_given_up", count=len(left) + len(self._waiting))

    async def _remove(self, transfer: Transfer) -> None:
        await transfer.settle(_SETTLE_SECONDS)
        try:
            await transfer.discard()
        except Failure as failure:
            log.warning("upload.discard_failed", upload_id=str(transfer.upload_id), key=transfer.key, code=failure.code)
            if len(self._waiting) >= _MAX_WAITING:
                log.warning("upload.leftovers_full", upload_id=str(transfer.upload_id), key=transfer.key)
                return
            self._waiting.append(transfer)
            if self._retrying is None or self._retrying.done():
                self._retrying = asyncio.create_task(self._retry())

    async def _retry(self) -> None:
        """One at a time: the store is in trouble as it is."""
        pause_seconds = _RETRY_SECONDS
        while self._waiting:
            await asyncio.sleep(pause_seconds)
            transfer = self._waiting[0]
            try:
                await transfer.discard()
            except Failure as failure:
                log.info("upload.discard_failed", upload_id=str(transfer.upload_id), code=failure.code)
                pause_seconds = min(_MAX_RETRY_SECONDS, pause_seconds * 2)
                self._waiting.rotate(-1)
            else:
                pause_seconds = 0.0
                self._waiting.remove(transfer)
                log.info("upload.discarded", upload_id=str(transfer.upload_id), key=transfer.key)


@asynccontextmanager
async def open_leftovers(*, close_seconds: float = 5.0) -> AsyncIterator[Leftovers]:
    """For the life of the process. At the end removals under way get `close_seconds`."""
    leftovers = Leftovers()
    try:
        yield leftovers
    finally:
        await leftovers.aclose(wait_seconds=close_seconds)
