"""Connections to PostgreSQL: the pool for short statements, and lanes, each with a name that its successor can find."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID

import asyncpg
import structlog

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.ledger.errors import is_gone, translated

log = structlog.get_logger()

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    LaneConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    LaneConnection = asyncpg.Connection
    Connection = asyncpg.Connection

#: `pg_input_error_info` came with it, and the validator rests on that.
LEAST_VERSION: Final = 16
#: How long a statement of the ledger waits for a row that somebody else holds. Those are held for milliseconds, but
#: by a frozen worker, and the taking of a load, which deals with such, goes round again after this long.
LOCK_TIMEOUT_SECONDS: Final = 2.0

#: For a connection of the pool, when all are in use.
_ACQUIRE_SECONDS: Final = 30.0
#: How long lanes may take to say goodbye before they are cut off.
_CLOSE_SECONDS: Final = 2.0

#: Everything that decides how PostgreSQL reads a value or a statement of ours, whatever the defaults of the server,
#: the database and the role are.
SESSION_SETTINGS: Final[dict[str, str]] = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    # The fence and the takings are reasoned out for READ COMMITTED: who has waited for a row sees it as it has become.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    # Statements are short or a COPY: compiling them costs more than it brings.
    "jit": "off",
    # The server notices within a minute that the client's machine is gone.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}

_POOL_SETTINGS: Final[dict[str, str]] = SESSION_SETTINGS | {
    "application_name": "stream-api",
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms",
    # No transaction of the pool spans a pause of ours; a process frozen inside one must not hold its locks.
    "idle_in_transaction_session_timeout": "10s",
    # Its commits are the promises: a completed upload's data is deleted after one.
    "synchronous_commit": "on",
}

_LANE_SETTINGS: Final[dict[str, str]] = SESSION_SETTINGS | {
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms",
    # The successor terminates the session of a frozen worker; where none comes, this frees the table at last.
    "idle_in_transaction_session_timeout": "10min",
    # Rows and ledger row are lost together or not at all, and the completing commit, which is synchronous and comes
    # later in the log, makes all of them durable.
    "synchronous_commit": "off",
}

#: What a lane sets after connecting: settings that not every version knows or not every role may set.
#: `transaction_timeout` came with 17 and would cut a COPY that waits for a locked table; English messages let the
#: feeder read the line of a failed COPY from the error's context.
_LANE_INTRODUCTION: Final = """
SELECT CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
            THEN set_config('transaction_timeout', '0', false) END,
       CASE WHEN has_parameter_privilege('lc_messages', 'SET') THEN set_config('lc_messages', 'C', false) END
"""


async def open_pool(settings: Settings) -> Pool:
    """A pool for the short statements of ledger, catalogue and judge. It connects at first use; `close()` closes it.

    Its connections refuse a server that is older than `LEAST_VERSION` with `Failure` `database_refused`, raised where
    a connection is asked for.
    """
    with translated():
        return await asyncpg.create_pool(
            settings.database_url.get_secret_value(),
            min_size=0,
            # A load holds one at a time for the ledger and one for a question to the judge; the rest is for requests.
            max_size=4 + 2 * settings.load_concurrency,
            timeout=settings.database_connect_timeout_seconds,
            command_timeout=settings.database_command_timeout_seconds,
            server_settings=_POOL_SETTINGS,
            init=_introduce,
        )


@asynccontextmanager
async def using(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool, with the errors of what is done on it in the words of the error table.

    Whoever is cancelled or out of time is let go at once: the pool would first wait for an answer to the statement that
    was given up, and a server that is frozen gives none.

    :raises Failure: `database_unavailable`, `database_refused`.
    """
    with translated():
        async with pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
            with translated(connection):
                try:
                    yield connection
                except (asyncio.CancelledError, TimeoutError):
                    if not is_gone(connection):
                        connection.terminate()
                    raise


def lane_name(upload_id: UUID, run: int) -> str:
    """The `application_name` of the lanes of one run: how a successor finds the sessions that it has to end.

    At most 63 bytes, what PostgreSQL keeps of it (NAMEDATALEN): 48 and the run's digits.
    """
    return f"{lane_prefix(upload_id)}{run}"


def lane_prefix(upload_id: UUID) -> str:
    """What the names of all lanes of one upload begin with."""
    return f"stream-api:{upload_id}:"


async def connect_lane(settings: Settings, upload_id: UUID, run: int) -> LaneConnection:
    """A connection for one lane: named after upload and run, with no time limit on commands (COPY has none).

    The caller closes it.

    :raises Failure: `database_unavailable`, `database_refused`.
    """
    with translated():
        connection: LaneConnection = await asyncpg.connect(
            settings.database_url.get_secret_value(),
            timeout=settings.database_connect_timeout_seconds,
            server_settings=_LANE_SETTINGS | {"application_name": lane_name(upload_id, run)},
        )
        try:
            await _introduce(connection)
            with translated(connection):
                await connection.execute(_LANE_INTRODUCTION, timeout=settings.database_connect_timeout_seconds)
        except BaseException:
            connection.terminate()
            raise
    return connection


async def disconnect(connection: LaneConnection) -> None:
    """Close a lane; one that is in the middle of a COPY, or whose server is gone, is cut off."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await connection.close()
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        log.debug("ledger.lane_cut_off", error=repr(exc))
    finally:
        connection.terminate()


async def _introduce(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Check the server's version, and let the kernel notice when the server's machine is gone."""
    check_version(connection)
    # asyncpg gives no access to its socket but this.
    transport: Any = getattr(connection, "_transport")  # noqa: B009 (the stubs do not know it)
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Keepalive is silent while data is under way that nobody acknowledges; then the last one counts (milliseconds).
        for option, value in (
            ("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60_000),
        ):  # fmt: skip
            if hasattr(socket, option):  # macOS has not all of them
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def check_version(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Refuse a server that is too old.

    :raises Failure: `database_refused`, naming both versions.
    """
    version = connection.get_server_version()
    if version.major < LEAST_VERSION:
        raise Failure(
            "database_refused",
            f"PostgreSQL {LEAST_VERSION} or later is needed, and the server is PostgreSQL "
            f"{version.major}.{version.minor}: upgrade it, or let DATABASE_URL name another",
        )
