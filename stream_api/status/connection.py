"""Connections to Redis for requests: short time-outs, and its errors in the words of the error table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, RedisError

from stream_api.config import Settings
from stream_api.errors import Failure

#: For one command. Redis answers in under a millisecond or has a problem; a request does not wait for it.
SOCKET_TIMEOUT_SECONDS: Final = 2.0
#: For everything that one request asks of Redis.
REQUEST_TIMEOUT_SECONDS: Final = 3.0


def open_redis(settings: Settings, *, single_connection: bool = False) -> Redis:
    """A client that connects at first use, gives up soon, and tries again with the next command.

    :param single_connection: one connection instead of a pool.
    """
    client: Redis = Redis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
        # A connection of the pool that the server has closed in the meantime is the one thing worth another try.
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 1),
        single_connection_client=single_connection,
    )
    return client


@asynccontextmanager
async def redis_failures(timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> AsyncIterator[None]:
    """Bounds what is done inside in time, and turns errors of Redis into `Failure`.

    :raises Failure: `queue_unavailable`.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            yield
    except AuthenticationError as error:
        raise Failure("queue_unavailable", "Redis refused the credentials: check REDIS_URL") from error
    except (RedisError, OSError) as error:  # TimeoutError is an OSError
        raise Failure("queue_unavailable", f"Redis could not be used ({type(error).__name__})") from error
