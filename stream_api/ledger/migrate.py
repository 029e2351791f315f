"""Migrations: plain SQL files, applied once each, in the order of their numbers, under a lock."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import asyncpg

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.ledger.errors import translated
from stream_api.ledger.pool import SESSION_SETTINGS, Connection, check_version

#: Key of the advisory lock under which migrations run: the first bytes of SHA-256("stream-api migrate"), as a bigint.
_LOCK: Final = int.from_bytes(hashlib.sha256(b"stream-api migrate").digest()[:8], "big", signed=True)
_NUMBERED: Final = re.compile(r"(?P<number>\d{4})_\w+\.sql")
_LEAVE_OWN_SCHEMA: Final = """
SELECT set_config('search_path', coalesce(string_agg(quote_ident(name), ', ' ORDER BY position), 'public'), true)
FROM unnest(current_schemas(false)) WITH ORDINALITY AS path (name, position) WHERE name <> 'stream_api'
"""


@dataclass(frozen=True, slots=True)
class _Migration:
    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def migrate(settings: Settings) -> list[str]:
    """Bring the database to what this version needs. Any number of processes may do so at once.

    Creates the schema `stream_api` with its tables, and `webhook_events` where it is missing. Each file is applied in
    a transaction of its own, which it shares with the note that it has been applied.

    :returns: names of the files that were applied, in their order; empty when nothing was to be done.
    :raises Failure: `database_unavailable`; `database_refused`, among others when a file that has been applied has
        changed since, for then nobody knows what the database holds.
    """
    with translated():
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            settings.database_url.get_secret_value(),
            timeout=settings.database_connect_timeout_seconds,
            server_settings=SESSION_SETTINGS | {"application_name": "stream-api migrate", "synchronous_commit": "on"},
        )
        try:
            check_version(connection)
            return await _apply(connection)
        finally:
            await connection.close(timeout=settings.database_connect_timeout_seconds)


async def _apply(connection: Connection) -> list[str]:
    applied = []
    async with connection.transaction():
        await _lock(connection)
        await _create_missing(connection, "stream_api", "to_regnamespace", "CREATE SCHEMA stream_api")
        await _create_missing(
            connection,
            "stream_api.migrations",
            "to_regclass",
            "CREATE TABLE stream_api.migrations ("
            "number integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now())",
        )
    for migration in _migrations():
        async with connection.transaction():
            await _lock(connection)
            known = await connection.fetchval(
                "SELECT sha256 FROM stream_api.migrations WHERE number = $1", migration.number
            )
            if known is None:
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO stream_api.migrations (number, name, sha256) VALUES ($1, $2, $3)",
                    migration.number,
                    migration.name,
                    migration.sha256,
                )
                applied.append(migration.name)
            elif known != migration.sha256:
                raise Failure(
                    "database_refused",
                    f"The migration {migration.name} was applied to this database in another form: its file was "
                    "changed after that. Give it back its old content and put the change into a new migration",
                )
    async with connection.transaction():
        await _lock(connection)
        sql = files(__package__).joinpath("migrations", "webhook_events.sql").read_text("utf-8")
        # A role that is called stream_api has the schema of that name first in its path (as "$user"): our own schema
        # is no place for the user's table.
        await connection.execute(_LEAVE_OWN_SCHEMA)
        if await _create_missing(connection, "webhook_events", "to_regclass", sql):
            applied.append("webhook_events.sql")
    return applied


async def _lock(connection: Connection) -> None:
    # For the transaction and not for the session: it works through a pooler, and is gone with the transaction.
    await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")


async def _create_missing(connection: Connection, name: str, lookup: str, sql: str) -> bool:
    # `IF NOT EXISTS` asks for the privilege to create before it looks; a role without it must be able to find
    # everything in place.
    if await connection.fetchval(f"SELECT {lookup}($1) IS NOT NULL", name):
        return False
    await connection.execute(sql)
    return True


def _migrations() -> list[_Migration]:
    found = []
    for file in files(__package__).joinpath("migrations").iterdir():
        match = _NUMBERED.fullmatch(file.name)
        if match:
            found.append(_Migration(int(match["number"]), file.name, file.read_text("utf-8")))
    return sorted(found, key=lambda migration: migration.number)
