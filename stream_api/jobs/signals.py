"""Signals between the processes of the service, by Redis: an upload has ended, and an upload is to be cancelled.

They make things quick and nothing right: Redis keeps no message for whoever is away at that moment, so each may get
lost. Who waits looks again in PostgreSQL, also whenever the subscription begins anew; a load of a cancelled upload that
nobody stopped is stopped by the fence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from stream_api.errors import Failure
from stream_api.flow.jitter import full_jitter
from stream_api.jobs.queue import PREFIX
from stream_api.status.connection import SOCKET_TIMEOUT_SECONDS, redis_failures

log = structlog.get_logger()

Kind = Literal["ended", "cancel"]

#: For publishing one signal. Whoever publishes has something better to do than to wait for a Redis that is away.
_PUBLISH_SECONDS: Final = 1.0
#: A subscription that is silent for so long is asked whether it lives: a connection can end without a word.
_QUIET_SECONDS: Final = 10.0
#: Between two attempts to subscribe, at most.
_RECONNECT_SECONDS: Final = 5.0
_LOG_AGAIN_SECONDS: Final = 30.0


class Signals:
    """The signals of one process: sent, and received over one connection while `run` runs.

    What is sent by this process reaches its own listeners at once, whatever state Redis is in.

    :param redis: of `open_redis`; stays the caller's.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Final = redis
        # Channels know nothing of the numbered databases that separate all else.
        number = redis.connection_pool.connection_kwargs.get("db") or 0
        self._channel: Final = f"{PREFIX}:signals:{number}"
        self._waiting: Final[dict[UUID, set[asyncio.Event]]] = {}
        self._cancelling: Final[list[Callable[[UUID], object]]] = []
        self._logged_at = -_LOG_AGAIN_SECONDS

    async def tell_ended(self, upload_id: UUID, /) -> None:
        """Have whoever waits for the end of an upload look again. Raises nothing, and takes a second at most."""
        self._wake(upload_id)
        await self._publish("ended", upload_id)

    async def tell_cancelled(self, upload_id: UUID, /) -> None:
        """Have the worker that loads this upload stop. Raises nothing, and takes a second at most."""
        self._cancel(upload_id)
        await self._publish("cancel", upload_id)

    @contextmanager
    def waiting(self, upload_id: UUID, /) -> Iterator[asyncio.Event]:
        """Wait for the end of an upload: the event is set whenever it is time to look again. The waiter clears it."""
        event = asyncio.Event()
        self._waiting.setdefault(upload_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[upload_id]
            events.discard(event)
            if not events:
                del self._waiting[upload_id]

    @contextmanager
    def cancelling(self, cancel: Callable[[UUID], object]) -> Iterator[None]:
        """Call `cancel` with each upload that is to be cancelled, while the body runs."""
        self._cancelling.append(cancel)
        try:
            yield
        finally:
            self._cancelling.remove(cancel)

    async def run(self) -> None:
        """Receive until cancelled. A Redis that is away is tried again and again, with growing pauses."""
        failed = 0
        while True:
            began = time.monotonic()
            try:
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    await self._receive(subscription)
            except (RedisError, OSError) as error:
                self._log(error)
            except Exception:
                log.exception("signals.crashed")
            failed = 0 if time.monotonic() - began > _QUIET_SECONDS else failed + 1
            await asyncio.sleep(full_jitter(max(1, failed), base_seconds=0.2, cap_seconds=_RECONNECT_SECONDS))

    async def _receive(self, subscription: PubSub) -> None:
        """Pass on what comes, until the connection fails.

        :raises RedisError, OSError: it did.
        """
        while True:
            message = await subscription.get_message(timeout=_QUIET_SECONDS)
            if message is None:
                await subscription.ping()
                message = await subscription.get_message(timeout=SOCKET_TIMEOUT_SECONDS)
                if message is None:
                    raise TimeoutError
            if message["type"] == "subscribe":
                # The first time, and when redis-py has renewed the connection: what was sent until now, nobody heard.
                self._wake_all()
            elif message["type"] == "message":
                self._pass_on(str(message["data"]))

    def _pass_on(self, text: str) -> None:
        kind, _, name = text.partition(" ")
        try:
            upload_id = UUID(name)
        except ValueError:
            log.debug("signals.not_understood", text=text[:100])
            return
        if kind == "ended":
            self._wake(upload_id)
        elif kind == "cancel":
            self._cancel(upload_id)

    def _wake(self, upload_id: UUID) -> None:
        for event in self._waiting.get(upload_id, ()):
            event.set()

    def _wake_all(self) -> None:
        for upload_id in self._waiting:
            self._wake(upload_id)

    def _cancel(self, upload_id: UUID) -> None:
        for cancel in self._cancelling:
            cancel(upload_id)

    async def _publish(self, kind: Kind, upload_id: UUID) -> None:
        try:
            async with redis_failures(_PUBLISH_SECONDS):
                await self._redis.publish(self._channel, f"{kind} {upload_id}")
        except Failure as failure:
            log.info("signals.not_sent", kind=kind, upload_id=str(upload_id), code=failure.code)

    def _log(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _LOG_AGAIN_SECONDS:
            self._logged_at = now
            log.warning("signals.interrupted", error=f"{type(error).__name__}: {error}")
