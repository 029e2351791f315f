"""Servers that faults may kill: one each of Postgres, Valkey and SeaweedFS, for nobody else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from stream_api.config import Settings
from stream_api.dev.postgres import Postgres
from stream_api.dev.stores import SeaweedFS, Store
from stream_api.dev.valkey import Valkey
from tests.conftest import Bucket, make_settings, migrate_database
from tests.support.folders import temporary_server_folder


@dataclass(frozen=True)
class Servers:
    """Three servers, and a bucket on the store."""

    postgres: Postgres
    redis: Valkey
    store: Store
    bucket: Bucket

    @property
    def settings(self) -> Settings:
        """Settings for them."""
        return make_settings(self.postgres.dsn, self.redis.url, self.bucket)


@contextmanager
def running_servers() -> Iterator[Servers]:
    """Start them in a folder that is removed at the end. Blocks."""
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_server_folder())
        postgres = Postgres(folder / "postgres", durable=False)
        redis, store = Valkey(folder / "valkey"), SeaweedFS(folder / "seaweedfs")
        for server in (postgres, redis, store):
            stack.callback(server.stop)
            server.start()
        migrate_database(postgres.dsn)
        bucket = Bucket(store, f"chaos-{uuid.uuid4().hex}")
        store.create_bucket(bucket.name)
        yield Servers(postgres, redis, store, bucket)
