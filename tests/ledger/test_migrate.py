from __future__ import annotations

import asyncio

import asyncpg
import pytest
from pydantic import SecretStr
from yarl import URL

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.ledger.migrate import migrate

NUMBERED = [
    "0001_uploads_and_segments.sql",
    "0002_decoded_size.sql",
    "0003_rejects.sql",
    "0004_modes.sql",
    "0005_amendments.sql",
    "0006_segments_in_few_trips.sql",
]
ALL = [*NUMBERED, "webhook_events.sql"]


async def test_migrations_are_applied_once(empty_database: str) -> None:
    settings = Settings(database_url=SecretStr(empty_database))
    assert await migrate(settings) == ALL
    assert await migrate(settings) == []


async def test_the_table_is_the_one_of_the_issue(empty_database: str) -> None:
    await migrate(Settings(database_url=SecretStr(empty_database)))
    connection = await asyncpg.connect(empty_database)
    columns = await connection.fetch("""
        SELECT attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END
        FROM pg_attribute WHERE attrelid = 'public.webhook_events'::regclass AND attnum > 0 ORDER BY attnum""")
    assert [column[0] for column in columns] == [
        "id uuid not null",
        "event_type text not null",
        "source text not null",
        "payload jsonb not null",
        "occurred_at timestamp with time zone not null",
        "amount numeric(12,2)",
        "status text",
    ]
    key = await connection.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = 'public.webhook_events'::regclass AND contype = 'p'"
    )
    assert key == "PRIMARY KEY (id)"
    await connection.close()


async def test_processes_may_migrate_at_once(empty_database: str) -> None:
    settings = Settings(database_url=SecretStr(empty_database))
    applied = await asyncio.gather(*(migrate(settings) for _ in range(5)))
    assert sorted(name for names in applied for name in names) == ALL


async def test_a_table_that_is_there_is_left_alone_and_a_dropped_one_comes_back(empty_database: str) -> None:
    connection = await asyncpg.connect(empty_database)
    await connection.execute("CREATE TABLE webhook_events (a int); INSERT INTO webhook_events VALUES (7)")
    settings = Settings(database_url=SecretStr(empty_database))
    assert await migrate(settings) == NUMBERED
    assert await connection.fetchval("SELECT a FROM webhook_events") == 7
    await connection.execute("DROP TABLE webhook_events")
    assert await migrate(settings) == ["webhook_events.sql"]
    assert await connection.fetchval("SELECT count(*) FROM webhook_events") == 0
    await connection.close()


async def test_an_applied_file_that_has_changed_is_refused_and_nothing_is_left_locked(empty_database: str) -> None:
    settings = Settings(database_url=SecretStr(empty_database))
    await migrate(settings)
    connection = await asyncpg.connect(empty_database)
    await connection.execute("UPDATE stream_api.migrations SET sha256 = 'x' RETURNING sha256")
    for _ in range(2):
        with pytest.raises(Failure, match="0001_uploads_and_segments") as failed:
            await migrate(settings)
        assert failed.value.code == "database_refused"
    assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    await connection.close()


async def test_a_role_that_may_not_create_finds_everything_in_place(empty_database: str) -> None:
    owner = await asyncpg.connect(empty_database)
    role = f"role_{URL(empty_database).name}"
    await migrate(Settings(database_url=SecretStr(empty_database)))
    await owner.execute(f"""
        CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA stream_api TO {role};
        GRANT SELECT ON ALL TABLES IN SCHEMA stream_api, public TO {role}""")
    try:
        url = str(URL(empty_database).with_user(role).with_password("x"))
        assert await migrate(Settings(database_url=SecretStr(url))) == []
    finally:
        await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await owner.close()


async def test_a_server_that_is_away_is_unavailable() -> None:
    with pytest.raises(Failure) as failed:
        await migrate(Settings(database_url=SecretStr("postgresql://u:p@127.0.0.1:1/d")))
    assert failed.value.code == "database_unavailable"
