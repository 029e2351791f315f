"""The servers that the service needs, joined: PostgreSQL, Valkey and an S3-compatible store."""

from __future__ import annotations

import fcntl
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final, Literal, Self

from stream_api.dev.postgres import Postgres
from stream_api.dev.server import Server
from stream_api.dev.stores import REGION, MinIO, SeaweedFS, Store
from stream_api.dev.valkey import Valkey

StoreName = Literal["seaweedfs", "minio"]
STORES: Final[dict[StoreName, type[Store]]] = {"seaweedfs": SeaweedFS, "minio": MinIO}


class StackInUse(Exception):
    """Another process runs a stack on this folder."""


class Stack:
    """PostgreSQL, Valkey and a store with their data in one folder; a context manager.

    :param folder: made where missing; a later stack on the same folder finds the same data.
    :param store: which S3-compatible store.
    :param bucket: made at the start.
    :param durable: see `Postgres`.
    """

    def __init__(
        self, folder: Path, *, store: StoreName = "seaweedfs", bucket: str = "stream-api", durable: bool = True
    ) -> None:
        self.folder: Final = folder.resolve()
        self.bucket: Final = bucket
        self.postgres: Final = Postgres(self.folder / "postgres", durable=durable)
        self.valkey: Final = Valkey(self.folder / "valkey")
        self.store: Final = STORES[store](self.folder / store)
        self._lock: IO[bytes] | None = None

    @property
    def servers(self) -> tuple[Server, ...]:
        """All of them."""
        return (self.postgres, self.valkey, self.store)

    def start(self) -> None:
        """Start all at once and make the bucket; when one fails, the others are stopped.

        :raises StackInUse: when another stack runs on the folder.
        :raises ServerFailed: when a server did not start.
        """
        self._take_folder()
        try:
            with ThreadPoolExecutor(len(self.servers)) as pool:
                for start in [pool.submit(server.start) for server in self.servers]:
                    start.result()
            self.store.create_bucket(self.bucket)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all at once; does nothing to those that do not run."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            for stop in [pool.submit(server.stop) for server in self.servers]:
                stop.result()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def environment(self) -> dict[str, str]:
        """The settings of a service that uses this stack, as environment variables."""
        return {
            "DATABASE_URL": self.postgres.dsn,
            "REDIS_URL": self.valkey.url,
            "AWS_ENDPOINT_URL_S3": self.store.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.store.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.store.secret_access_key,
            "AWS_REGION": REGION,
            "STREAM_API_BUCKET": self.bucket,
            "STREAM_API_S3_ADDRESSING_STYLE": "path",
        }

    def write_environment(self, *, extra: dict[str, str] | None = None) -> Path:
        """Write `dev.env` for a shell to source (`. DIR/dev.env`).

        :param extra: further variables.
        """
        path = self.folder / "dev.env"
        lines = [
            f"export {name}={shlex.quote(value)}" for name, value in {**self.environment(), **(extra or {})}.items()
        ]
        fresh = path.with_suffix(".env.new")
        fresh.touch(mode=0o600)
        fresh.write_text("\n".join([*lines, ""]), encoding="utf-8")
        fresh.replace(path)
        return path

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _take_folder(self) -> None:
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            # As root, Postgres runs as another user, who has to get through.
            self.folder.chmod(0o755)
        # The lock goes with the process that holds it, however that ends; servers do not inherit it.
        lock = (self.folder / "dev.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            lock.close()
            msg = f"another stack runs on {self.folder}"
            raise StackInUse(msg) from exc
        self._lock = lock


def default_folder() -> Path:
    """Where data goes that nobody named a place for: `.dev` in the working directory.

    Root's Postgres runs as `nobody`; where that user cannot get there, it is a folder under /var/tmp.
    """
    here = Path.cwd()
    if os.geteuid() == 0 and not all(folder.stat().st_mode & 0o001 for folder in (here, *here.parents)):
        return Path("/var/tmp/stream-api-dev")  # noqa: S108 - root's, made with root's umask, held by a lock
    return here / ".dev"
