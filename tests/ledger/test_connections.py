from __future__ import annotations

import asyncio
import ssl
from uuid import uuid4

import asyncpg
import pytest
from pydantic import SecretStr
from yarl import URL

from stream_api.config import Settings
from stream_api.dev.postgres import Postgres
from stream_api.errors import Failure
from stream_api.ledger import pool as pool_module
from stream_api.ledger.errors import translate
from stream_api.ledger.pool import connect_lane, open_pool, using
from stream_api.ledger.uploads import Ledger
from tests.ledger.conftest import Loads
from tests.support.faults import FaultProxy


async def test_sessions_read_values_the_same_way_whatever_the_defaults_are(loads: Loads) -> None:
    owner = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    name = await owner.fetchval("SELECT current_database()")
    for setting in (
        "timezone = 'Asia/Tokyo'", "datestyle = 'German, DMY'", "intervalstyle = 'iso_8601'", "array_nulls = off",
        "standard_conforming_strings = off", "statement_timeout = '1s'", "transaction_timeout = '1s'",
        "bytea_output = 'escape'", "extra_float_digits = -10", "default_transaction_read_only = on",
    ):  # fmt: skip
        await owner.execute(f'ALTER DATABASE "{name}" SET {setting}')
    await owner.close()
    lane = await loads.lane(uuid4(), 1)
    async with using(loads.ledger._pool) as session:
        for connection in (lane, session):
            assert await connection.fetchval("SELECT '2026-02-03'::timestamptz::text") == "2026-02-03 00:00:00+00"
            assert str(await connection.fetchval("SELECT '02/03/2026'::date")) == "2026-02-03"
            assert await connection.fetchval("SELECT '1 day'::interval::text") == "1 day"
            assert await connection.fetchval("SELECT '{NULL}'::text[]") == [None]
            assert await connection.fetchval(r"SELECT length('\n')") == 2
            assert await connection.fetchval("SELECT '\\x00'::bytea::text") == "\\x00"
            assert await connection.fetchval("SHOW statement_timeout") == "0"
            assert await connection.fetchval("SHOW client_encoding") == "UTF8"
            assert await connection.fetchval("SHOW transaction_read_only") == "off"
    assert await lane.fetchval("SHOW transaction_timeout") == "0"
    assert await lane.fetchval("SHOW lc_messages") == "C"
    await lane.close()


async def test_a_server_that_is_too_old_is_named(database_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LEAST_VERSION", 99)
    async with await open_pool(database_settings) as pool:
        for attempt in (Ledger(pool).check(), connect_lane(database_settings, uuid4(), 1)):
            with pytest.raises(Failure, match=r"PostgreSQL 99 or later is needed, and the server is PostgreSQL 18\."):
                await attempt
        monkeypatch.undo()
        await Ledger(pool).check()


async def test_a_pool_opens_while_the_server_is_away_and_works_when_it_is_back(own_postgres: Postgres) -> None:
    await asyncio.to_thread(own_postgres.kill)
    settings = Settings(database_url=SecretStr(own_postgres.dsn))
    async with await open_pool(settings) as pool:
        ledger = Ledger(pool)
        for _ in range(2):
            with pytest.raises(Failure) as failed:
                await ledger.check()
            assert (failed.value.code, failed.value.transient) == ("database_unavailable", True)
        with pytest.raises(Failure) as failed:
            await connect_lane(settings, uuid4(), 1)
        assert failed.value.code == "database_unavailable"
        await asyncio.to_thread(own_postgres.start)
        await ledger.check()
        # And stopped under a pool that has connections.
        await asyncio.to_thread(own_postgres.stop)
        with pytest.raises(Failure) as failed:
            await ledger.get(uuid4())
        assert failed.value.code == "database_unavailable"
        await asyncio.to_thread(own_postgres.start)
        assert await ledger.get(uuid4()) is None


async def test_a_connection_that_is_cut_or_silent_is_unavailable(database_settings: Settings) -> None:
    url = database_settings.database_url.get_secret_value()
    async with FaultProxy.before(url) as proxy:
        settings = Settings(
            database_url=SecretStr(proxy.url(url)),
            database_connect_timeout_seconds=0.5,
            database_command_timeout_seconds=0.5,
        )
        async with await open_pool(settings) as pool:
            ledger = Ledger(pool)
            await ledger.check()
            async with using(pool) as session:
                await proxy.refuse()
                with pytest.raises(Failure) as failed:
                    await Ledger(pool).check()
                assert failed.value.code == "database_unavailable"
                with pytest.raises(
                    (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
                ):
                    await session.fetchval("SELECT 1")
            await proxy.restore()
            await ledger.check()
            await proxy.stall()
            with pytest.raises(Failure) as failed:
                await ledger.check()
            assert failed.value.code == "database_unavailable"
            await proxy.restore()
            await ledger.check()


async def test_whoever_gives_up_a_silent_server_is_let_go_at_once(database_settings: Settings) -> None:
    url = database_settings.database_url.get_secret_value()
    async with FaultProxy.before(url) as proxy:
        settings = Settings(database_url=SecretStr(proxy.url(url)))
        async with await open_pool(settings) as pool:
            ledger = Ledger(pool)
            await ledger.check()
            await proxy.stall()
            loop = asyncio.get_running_loop()
            begun = loop.time()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await ledger.check()
            # The statement's own limit is far away, and so is the end of the polite way out.
            assert loop.time() - begun < settings.database_command_timeout_seconds / 3
            await proxy.restore()
            await ledger.check()


async def test_what_a_person_has_to_put_right_is_refused(database_settings: Settings, empty_database: str) -> None:
    url = URL(database_settings.database_url.get_secret_value())
    for wrong in (url.with_password("wrong"), url.with_path("/nowhere"), url.with_user("nobody-here")):
        async with await open_pool(Settings(database_url=SecretStr(str(wrong)))) as pool:
            with pytest.raises(Failure) as failed:
                await Ledger(pool).check()
            assert (failed.value.code, failed.value.transient) == ("database_refused", False)
    async with await open_pool(Settings(database_url=SecretStr(empty_database))) as pool:
        with pytest.raises(Failure, match="stream-api migrate") as failed:
            await Ledger(pool).check()
        assert failed.value.code == "database_refused"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (asyncpg.TooManyConnectionsError("x"), "database_unavailable"),
        (asyncpg.CannotConnectNowError("x"), "database_unavailable"),
        (asyncpg.AdminShutdownError("x"), "database_unavailable"),
        (asyncpg.CrashShutdownError("x"), "database_unavailable"),
        (asyncpg.DeadlockDetectedError("x"), "database_unavailable"),
        (asyncpg.SerializationError("x"), "database_unavailable"),
        (asyncpg.DiskFullError("x"), "database_unavailable"),
        (asyncpg.ReadOnlySQLTransactionError("x"), "database_unavailable"),
        (asyncpg.ConnectionDoesNotExistError("x"), "database_unavailable"),
        (ConnectionResetError(), "database_unavailable"),
        (TimeoutError(), "database_unavailable"),
        (ssl.SSLCertVerificationError(), "database_refused"),
        (asyncpg.InvalidPasswordError("x"), "database_refused"),
        (asyncpg.InsufficientPrivilegeError("x"), "database_refused"),
        (asyncpg.UniqueViolationError("x"), None),
        (asyncpg.InvalidTextRepresentationError("x"), None),
        (asyncpg.InternalClientError("x"), "database_unavailable"),
        (asyncpg.InterfaceError("x"), None),
        (ValueError(), None),
    ],
)
def test_errors_are_translated_by_type_and_sqlstate(error: Exception, code: str | None) -> None:
    failure = translate(error)
    assert (failure.code if failure else None) == code
    if failure is not None:
        assert failure.transient == (code == "database_unavailable")


async def test_a_connection_that_is_lost_in_the_middle_of_a_transaction(database_settings: Settings) -> None:
    """The pool has taken it back by then, and not even its state can be asked for."""
    async with await open_pool(database_settings) as pool:
        with pytest.raises(Failure) as failed:
            async with using(pool) as connection, connection.transaction():
                connection.terminate()
        assert failed.value.code == "database_unavailable"

        async def cancelled() -> None:
            async with using(pool) as connection:
                connection.terminate()
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await cancelled()
        async with using(pool) as connection:
            assert await connection.fetchval("SELECT 1") == 1
