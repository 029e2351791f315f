"""Fixtures that every test may use. All servers are real ones, started by `stream_api.dev` once for the whole session.

Servers (session): `postgres` (PostgreSQL 18), `redis_server` (Valkey 9), `seaweedfs_server`, and `s3_server`, which
runs its tests once against SeaweedFS and once against MinIO. Their methods block: in a coroutine,
`await asyncio.to_thread(server.restart)`. A test that kills, freezes or stops one uses a server of its own
(`own_postgres`, `own_redis`, `own_s3`), or puts `tests.support.faults.FaultProxy` before the shared one.

Per test: `settings` is a `Settings` with a fresh migrated database, a fresh Redis database and a fresh bucket on
SeaweedFS. `settings_each_store` is the same, once on SeaweedFS and once on MinIO: for tests of what we ask of S3.
`empty_database` is the URL of a database without any migration. `bucket` is the bucket of `settings`, to look into;
`change(settings, part_bytes=…)` of `tests.support.settings` gives a copy with some values changed.

`make test` runs the tests by several workers of pytest-xdist, each a session with servers and ports of its own: they
share nothing. A test may look at its own servers, ports, processes and folders, never at those of the whole machine.

MinIO is built by `make minio`; where it is missing its tests are skipped, or fail if STREAM_API_REQUIRE_MINIO is 1.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import redis
import structlog
from hypothesis import HealthCheck
from pydantic import SecretStr

from stream_api.config import Settings
from stream_api.dev import ports
from stream_api.dev.postgres import Postgres
from stream_api.dev.stack import STORES, StoreName
from stream_api.dev.stores import REGION, SeaweedFS, Store, find_minio
from stream_api.dev.valkey import Valkey
from tests.support.folders import temporary_server_folder

_REDIS_DATABASES = 512


# How long an example takes says something of the machine and of who else is at work on it.
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")


def _ports_of_this_worker() -> None:
    """Give each of pytest-xdist's workers ports of its own: one is looked for first, and taken only some time later."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (ports.HIGHEST - ports.LOWEST) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports.LOWEST += number * size
    ports.HIGHEST = ports.LOWEST + size - 1


_ports_of_this_worker()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For several workers: spread the long tests, which start processes, and let none be the last.

    Those are the ones that are allowed more time than others.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    long = [item for item in items if item.get_closest_marker("timeout")]
    short = [item for item in items if not item.get_closest_marker("timeout")]
    at = {item: number / len(short) for number, item in enumerate(short)}
    at |= {item: 0.8 * number / len(long) for number, item in enumerate(long)}
    items.sort(key=at.__getitem__)


_REQUIRE_MINIO = os.environ.get("STREAM_API_REQUIRE_MINIO") == "1"
# The settings of a shell that has sourced dev.env are not those of the tests, nor of the programs that they run.
for _name in [name for name in os.environ if name.startswith("STREAM_API_") or name in {"DATABASE_URL", "REDIS_URL"}]:
    del os.environ[_name]


@dataclass(frozen=True)
class Bucket:
    """A bucket of a test, to look into. Its methods block for some milliseconds."""

    store: Store
    name: str

    def keys(self) -> list[str]:
        """Every object's key."""
        return self.store.keys(self.name)

    def open_multipart_uploads(self) -> list[str]:
        """The key of every unfinished multipart upload."""
        return self.store.open_multipart_uploads(self.name)


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Where the servers keep their data."""
    with temporary_server_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[Postgres]:
    server = Postgres(server_folder / "postgres", durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server(server_folder: Path) -> Iterator[Valkey]:
    server = Valkey(server_folder / "valkey", databases=_REDIS_DATABASES)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def store_of(server_folder: Path) -> Iterator[Callable[[StoreName], Store]]:
    """The store of a name, started when it is first asked for."""
    started: dict[StoreName, Store] = {}

    def get(name: StoreName) -> Store:
        if name == "minio" and find_minio() is None:
            message = "MinIO is not there: `make minio` builds it"
            if _REQUIRE_MINIO:
                pytest.fail(message)
            pytest.skip(message)
        if name not in started:
            store = STORES[name](server_folder / name)
            store.start()
            started[name] = store
        return started[name]

    yield get
    for store in started.values():
        store.stop()


@pytest.fixture(scope="session")
def seaweedfs_server(store_of: Callable[[StoreName], Store]) -> Store:
    return store_of("seaweedfs")


@pytest.fixture(scope="session", params=["seaweedfs", "minio"])
def s3_server(request: pytest.FixtureRequest, store_of: Callable[[StoreName], Store]) -> Store:
    return store_of(request.param)


@pytest.fixture
def own_postgres(server_folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL server for this test alone, with the migrations applied to its database."""
    server = Postgres(server_folder / f"postgres-{uuid.uuid4().hex}", durable=False)
    server.start()
    migrate_database(server.dsn)
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def own_redis(server_folder: Path) -> Iterator[Valkey]:
    """A Valkey server for this test alone."""
    server = Valkey(server_folder / f"valkey-{uuid.uuid4().hex}")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def own_s3(server_folder: Path) -> Iterator[Store]:
    """A SeaweedFS server for this test alone."""
    server = SeaweedFS(server_folder / f"seaweedfs-{uuid.uuid4().hex}")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh database without any migration."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.execute(f'CREATE DATABASE "{name}" TEMPLATE template0', database="postgres")
    yield postgres.dsn_for(name)
    postgres.execute(f'DROP DATABASE "{name}" WITH (FORCE)', database="postgres")


@pytest.fixture(scope="session")
def migrated_template(postgres: Postgres) -> str:
    """A database with all migrations, to be copied: that is faster than to migrate each."""
    name = "migrated_template"
    postgres.execute(f'CREATE DATABASE "{name}" TEMPLATE template0', database="postgres")
    migrate_database(postgres.dsn_for(name))
    return name


@pytest.fixture
def database(postgres: Postgres, migrated_template: str) -> Iterator[str]:
    """The URL of a fresh database with all migrations."""
    name = f"test_{uuid.uuid4().hex}"
    copy = f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}" STRATEGY FILE_COPY'
    postgres.execute(copy, database="postgres")
    yield postgres.dsn_for(name)
    postgres.execute(f'DROP DATABASE "{name}" WITH (FORCE)', database="postgres")


_redis_numbers = itertools.cycle(range(1, _REDIS_DATABASES))


@pytest.fixture
def redis_url(redis_server: Valkey) -> str:
    """The URL of an empty Redis database."""
    url = redis_server.url_for(next(_redis_numbers))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def _fresh_bucket(store: Store) -> Iterator[Bucket]:
    bucket = Bucket(store, f"test-{uuid.uuid4().hex}")
    store.create_bucket(bucket.name)
    yield bucket
    store.remove_bucket(bucket.name)


@pytest.fixture
def bucket(seaweedfs_server: Store) -> Iterator[Bucket]:
    """The bucket of `settings`."""
    yield from _fresh_bucket(seaweedfs_server)


@pytest.fixture
def bucket_each_store(s3_server: Store) -> Iterator[Bucket]:
    """The bucket of `settings_each_store`."""
    yield from _fresh_bucket(s3_server)


@pytest.fixture
def settings(database: str, redis_url: str, bucket: Bucket) -> Settings:
    return make_settings(database, redis_url, bucket)


@pytest.fixture
def settings_each_store(database: str, redis_url: str, bucket_each_store: Bucket) -> Settings:
    return make_settings(database, redis_url, bucket_each_store)


@pytest.fixture
def kept_logging() -> Iterator[None]:
    """For tests that set up logging: as it was, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def make_settings(database_url: str, redis_url: str, bucket: Bucket) -> Settings:
    """Settings for these servers."""
    return Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        s3_endpoint_url=bucket.store.endpoint_url,
        s3_access_key_id=bucket.store.access_key_id,
        s3_secret_access_key=SecretStr(bucket.store.secret_access_key),
        s3_region=REGION,
        bucket=bucket.name,
        host="127.0.0.1",
        port=0,
    )


def migrate_database(database_url: str) -> None:
    """Apply all migrations. Blocks."""
    try:
        from stream_api.ledger.migrate import migrate  # noqa: PLC0415 - another part of the project, being built
    except ImportError:
        return
    done = migrate(Settings(database_url=SecretStr(database_url)))
    if inspect.isawaitable(done):
        asyncio.run(done)
