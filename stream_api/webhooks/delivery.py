"""Delivering a webhook: the row decides what is to be done, whoever drives it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

import structlog

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.ledger.outbox import INTERRUPTED, Delivery, NotDue, Outbox
from stream_api.ledger.rows import UploadRow
from stream_api.webhooks.payload import payload_of, webhook_id
from stream_api.webhooks.sender import Attempt, Sender, loggable
from stream_api.webhooks.signing import headers_for

log = structlog.get_logger()

#: One try and three retries.
MAX_ATTEMPTS: Final = 4
_FACTOR: Final = 5.0
#: A try is ours for so much longer than it may take: its outcome has to be recorded too.
_MARGIN_SECONDS: Final = 10.0
#: For recording that a try was cut off, while the worker stops.
_INTERRUPTED_SECONDS: Final = 2.0


class Deliverer:
    """Makes the tries of deliveries, and records how each has ended.

    :param changed: called with the row after each outcome. Raises nothing, and takes little time.
    """

    def __init__(
        self, settings: Settings, outbox: Outbox, sender: Sender, changed: Callable[[UploadRow], Awaitable[None]]
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._changed = changed
        self._keys: Sequence[bytes] = settings.webhook_keys
        self._backoff_seconds = settings.webhook_backoff_seconds
        self._lease_seconds = settings.webhook_timeout_seconds + _MARGIN_SECONDS

    async def deliver(self, upload_id: UUID, round_: int) -> float | None:
        """Make a try, if one is due.

        :returns: in how many seconds to call again; `None` when there is nothing left to do.
        :raises Failure: PostgreSQL could not be used. Nothing was sent, or it is sent again.
        """
        delivery = Delivery(upload_id, round_)
        with structlog.contextvars.bound_contextvars(upload_id=str(upload_id)):
            row = await self._outbox.claim(delivery, lease_seconds=self._lease_seconds, max_attempts=MAX_ATTEMPTS)
            if isinstance(row, NotDue):
                return row.seconds
            if row is None:
                return None
            if row.webhook_state == "failed":
                log.warning("webhooks.failed", attempts=row.webhook_attempts, error=row.webhook_error)
                await self._changed(row)
                return None
            try:
                attempt = await self._send(row)
            except asyncio.CancelledError:
                with suppress(Failure, TimeoutError):
                    async with asyncio.timeout(_INTERRUPTED_SECONDS):
                        await self._outbox.postpone(delivery, error=INTERRUPTED, seconds=0)
                raise
            return await self._record(delivery, row, attempt)

    async def _send(self, row: UploadRow) -> Attempt:
        body, name = payload_of(row), webhook_id(row)
        headers = headers_for(self._keys, webhook_id=name, timestamp=int(time.time()), body=body)
        return await self._sender.send(row.callback_url or "", body, headers)

    async def _record(self, delivery: Delivery, row: UploadRow, attempt: Attempt) -> float | None:
        seconds: float | None = None
        url, attempts = loggable(row.callback_url or ""), row.webhook_attempts
        if attempt.error is None:
            log.info("webhooks.delivered", url=url, attempts=attempts)
            recorded = await self._outbox.delivered(delivery)
        elif attempt.final or attempts >= MAX_ATTEMPTS:
            log.warning("webhooks.failed", url=url, attempts=attempts, error=attempt.error)
            recorded = await self._outbox.give_up(delivery, error=attempt.error)
        else:
            seconds = pause_seconds(attempts, base_seconds=self._backoff_seconds)
            seconds = max(seconds, attempt.retry_after_seconds or 0.0)
            log.info("webhooks.postponed", url=url, attempts=attempts, error=attempt.error, seconds=round(seconds, 3))
            recorded = await self._outbox.postpone(delivery, error=attempt.error, seconds=seconds)
        if recorded is None:
            return None  # Another round has begun.
        await self._changed(recorded)
        return seconds


def pause_seconds(attempts: int, *, base_seconds: float) -> float:
    """Seconds until the next try, after so many: 1, 5 and 25 times the base, each half of that more or less by chance.

    Not any time from nothing on, as for our own services: a receiver that restarts needs a while.
    """
    return base_seconds * _FACTOR ** (attempts - 1) * random.uniform(0.5, 1.5)  # noqa: S311
