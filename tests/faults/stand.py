"""A whole deployment to break: processes of the service, proxies before its servers, and exact checks of the outcome.

`check_loaded` is what every fault test ends with: table, ledger, status, bucket and Redis are compared with the file.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import aiohttp
import asyncpg
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.storage.manifests import read_manifest
from stream_api.storage.objects import open_object_store
from tests.conftest import Bucket
from tests.faults.files import CHECKSUM, File
from tests.support.faults import FaultProxy
from tests.support.patience import PATIENCE_SECONDS
from tests.support.service import Client, Service
from tests.support.settings import change

#: Short leases and time-outs, and small segments: faults are to hit between many of them, and to be over soon.
FAST: Final[dict[str, Any]] = {
    "segment_bytes": 64 * 1024,
    "batch_bytes": 32 * 1024,
    "job_lease_seconds": 2,
    "reconcile_seconds": 0.5,
    "s3_backoff_seconds": 0.05,
    "s3_connect_timeout_seconds": 2,
    "s3_read_timeout_seconds": 3,
    "database_connect_timeout_seconds": 2,
    "database_command_timeout_seconds": 5,
    "webhook_allow": "127.0.0.0/8",
    "webhook_backoff_seconds": 0.2,
    "webhook_connect_timeout_seconds": 1,
    "webhook_timeout_seconds": 2,
    "webhook_sweep_seconds": 0.5,
}
#: Queues of BullMQ that hold jobs.
_JOB_LISTS: Final = ("wait", "active", "delayed", "paused", "prioritized", "completed", "failed", "stalled")
#: What else lies in Redis under our prefix at rest: nothing of it belongs to a job.
_AT_REST: Final = ("meta", "events", "id", "marker", "stalled-check", "limiter", "repeat", "metrics")


class Process(Service):
    """The service with the places at which it can be killed."""

    module = "tests.faults.process"

    async def census(self) -> dict[str, Any]:
        """How many tasks, file descriptors and threads it has, and `names`: what the tasks run."""
        before = len(self._censuses())
        self.signal(signal.SIGUSR1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self._censuses()) == before:  # noqa: ASYNC110 - it writes to a file
                await asyncio.sleep(0.01)
        return {name: count for name, count in self._censuses()[-1].items() if name != "event"}

    def _censuses(self) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == "faults.census"]


@dataclass
class Stand:
    """One database, one bucket, one Redis; any number of processes.

    :param settings: reach the servers directly.
    :param behind: reach them by way of the proxies.
    """

    settings: Settings
    behind: Settings
    folder: Path
    bucket: Bucket
    postgres: FaultProxy
    redis: FaultProxy
    s3: FaultProxy
    database: Database
    processes: list[Process] = field(default_factory=list)
    http: aiohttp.ClientSession = field(init=False)

    async def start(self, role: Any, *options: str, through: Settings | None = None, **values: Any) -> Process:
        """Start `serve` or `worker` and wait until it serves. It is killed at the end of the test.

        :param through: other settings than `behind`.
        """
        process = Process(role, through or self.behind, self.folder, *options, **(FAST | values))
        self.processes.append(process)
        await process.started()
        return process

    async def start_api(self, *, through: Settings | None = None, **values: Any) -> Client:
        """Start an API without a worker; a client of it. Arguments as for `start`."""
        return Client(self.http, (await self.start("serve", "--no-worker", through=through, **values)).url)

    async def data_key(self, upload_id: str) -> str:
        """Where the data of an upload lies, or lay."""
        async with open_object_store(self.settings) as store:
            manifest = await read_manifest(store, UUID(upload_id))
        assert manifest is not None
        return manifest.key

    async def flush(self) -> None:
        """Empty Redis, as FLUSHALL does on one that is ours alone."""
        async with self.redis_client() as client:
            await client.flushdb()

    @asynccontextmanager
    async def redis_client(self) -> AsyncIterator[Redis]:
        """A client that reaches Redis directly."""
        async with Redis.from_url(self.settings.redis_url.get_secret_value()) as client:
            yield client

    async def restore(self) -> None:
        """End the faults of all proxies."""
        for proxy in (self.postgres, self.redis, self.s3):
            await proxy.restore()

    # -- checks --------------------------------------------------------------------------------------------------

    async def check_table(self, file: File) -> None:
        """Every good row of the file is in the table once, and as it is in the file."""
        found = await self.database.row("SELECT count(*), count(DISTINCT id) AS ids FROM webhook_events")
        assert (found["count"], found["ids"]) == (file.good, file.good)
        assert int(await self.database.value(CHECKSUM)) == file.checksum

    async def check_consistent(self, upload_id: str) -> int:
        """In the middle of a load: the table holds what the ledger says, to the row. Gives back the rows."""
        # One statement sees one state of both.
        found = await self.database.row(
            "SELECT (SELECT count(*) FROM webhook_events) AS count, (SELECT count(DISTINCT id) FROM webhook_events)"
            " AS ids, (SELECT coalesce(sum(rows_inserted), 0) FROM stream_api.segments JOIN stream_api.uploads AS u"
            " ON u.id = upload_id WHERE upload_id = $1 AND staging_table IS NULL) AS ledger",
            upload_id,
        )
        assert found["count"] == found["ids"] == found["ledger"]
        return int(found["count"])

    async def check_ledger(self, upload_id: str, file: File) -> None:
        """The segments cover the file without gap or overlap, and their figures are those of the file."""
        segments = await self.database.rows(
            "SELECT * FROM stream_api.segments WHERE upload_id = $1 ORDER BY number", upload_id
        )
        assert all(segment["table_oid"] for segment in segments)
        ends = [0, *(segment["end_byte"] for segment in segments)]
        assert [segment["start_byte"] for segment in segments] == ends[:-1]
        assert ends[-1] == len(file.data)
        assert sum(segment["rows_read"] for segment in segments) == file.rows
        assert sum(segment["rows_inserted"] for segment in segments) == file.good

    async def check_at_rest(self, *, kept: Callable[[str], bool] = lambda _: False) -> None:
        """Nothing waits, nothing runs, nothing is left: in the bucket, in Redis, in Postgres.

        :param kept: whether a key of the bucket, other than a manifest's, is to be there.
        """
        await _until_empty("bucket", lambda: self._bucket_leftovers(kept))
        await _until_empty("Redis", self._redis_leftovers)
        await _until_empty("lanes", lambda: self.database.sessions("stream-api:%"))
        staging = "SELECT tablename FROM pg_tables WHERE schemaname = 'stream_api' AND tablename LIKE 'staging%'"
        await _until_empty("the schema", lambda: self.database.rows(staging))

    async def check_loaded(
        self, client: Client, upload_id: str, file: File, *, kept: Callable[[str], bool] = lambda _: False
    ) -> dict[str, Any]:
        """Wait for the end of the load and compare everything with the file. Gives back the status.

        :param kept: as for `check_at_rest`.
        """
        status = await self.ended(client, upload_id)
        assert status["status"] == "completed", status
        assert (status["rowsRead"], status["rowsProcessed"], status["rowsFailed"]) == (file.rows, file.good, file.bad)
        assert (status["rowsInserted"], status["progress"], status["error"]) == (file.good, 1, None)
        assert status["waitingFor"] is None
        assert sum(status["rejected"].values()) == file.bad
        await self.check_table(file)
        await self.check_ledger(upload_id, file)
        await self.check_at_rest(kept=kept)
        await self._check_final(client, status)
        return status

    async def check_cancelled(
        self, client: Client, upload_id: str, file: File, *, kept: Callable[[str], bool] = lambda _: False
    ) -> dict[str, Any]:
        """Wait for the end of a load that was cancelled: what was committed is there, once, and known to the row.

        :param kept: as for `check_at_rest`.
        """
        status = await self.ended(client, upload_id)
        assert (status["status"], status["error"], status["waitingFor"]) == ("cancelled", None, None)
        done = status["rowsProcessed"] + status["rowsStaged"]
        assert status["rowsRead"] == done + status["rowsFailed"] <= file.rows
        assert await self.check_consistent(upload_id) == status["rowsProcessed"]
        assert status["progress"] < 1
        await self.check_at_rest(kept=kept)
        # Nothing has been added since.
        assert await self.check_consistent(upload_id) == status["rowsProcessed"]
        await self._check_final(client, status)
        return status

    async def ended(self, client: Client, upload_id: str) -> dict[str, Any]:
        """The status once the upload has ended, and once its webhook, if it has one, is delivered."""
        await client.end(upload_id)
        return await client.until(
            upload_id, lambda status: status["webhook"] is None or status["webhook"]["state"] != "pending"
        )

    async def _check_final(self, client: Client, status: dict[str, Any]) -> None:
        """It stays so, also when Redis no longer knows it."""
        assert await client.status(status["uploadId"]) == status
        await self.flush()
        assert await client.status(status["uploadId"]) == status

    async def check_stopped(self) -> None:
        """Stop every process that still runs: in order, and without a connection left."""
        for process in self.processes:
            if process.process.poll() is None:
                assert await process.stop() == 0
            assert process.errors() == [], process.log
        await _until_empty("sessions", lambda: self.database.sessions("stream-api%"))

    async def _bucket_leftovers(self, kept: Callable[[str], bool]) -> list[str]:
        keys = await asyncio.to_thread(self.bucket.keys)
        keys += [f"{key} (multipart)" for key in await asyncio.to_thread(self.bucket.open_multipart_uploads)]
        return [key for key in keys if not key.endswith("/manifest.json") and not kept(key)]

    async def _redis_leftovers(self) -> list[str]:
        async with self.redis_client() as client:
            found = []
            async for key in client.scan_iter("stream-api:*"):
                name = key.decode()
                queue, _, rest = name.removeprefix("stream-api:").partition(":")
                if queue not in {"loads", "webhooks"} or rest in _AT_REST:
                    if queue == "again":
                        found.append(name)
                    continue
                if rest in _JOB_LISTS or ":" in rest or rest not in _AT_REST:
                    found.append(name)
            return found


class Database:
    """Looks into the database, directly."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def _ask(self, ask: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[Any]]) -> Any:
        # A connection for each question: the server may have been restarted since the last one.
        connection = await asyncpg.connect(self._url)
        try:
            return await ask(connection)
        finally:
            await connection.close()

    async def value(self, query: str, *values: object) -> Any:
        """The first value of the first row."""
        return await self._ask(lambda connection: connection.fetchval(query, *values))

    async def row(self, query: str, *values: object) -> Any:
        """The first row."""
        return await self._ask(lambda connection: connection.fetchrow(query, *values))

    async def rows(self, query: str, *values: object) -> list[Any]:
        """All rows."""
        rows: list[Any] = await self._ask(lambda connection: connection.fetch(query, *values))
        return rows

    async def sessions(self, like: str) -> list[str]:
        """The names of the service's sessions."""
        rows = await self.rows(
            "SELECT application_name FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE $1",
            like,
        )
        return [row["application_name"] for row in rows]

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """The target table is locked against everybody while the body runs."""
        connection = await asyncpg.connect(self._url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE webhook_events IN ACCESS EXCLUSIVE MODE")
                yield
        finally:
            await connection.close()


@asynccontextmanager
async def open_stand(settings: Settings, bucket: Bucket, folder: Path) -> AsyncIterator[Stand]:
    """A stand on these servers, without any process yet."""
    database_url, redis_url = settings.database_url.get_secret_value(), settings.redis_url.get_secret_value()
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(FaultProxy.before(database_url))
        redis_ = await stack.enter_async_context(FaultProxy.before(redis_url))
        s3 = await stack.enter_async_context(FaultProxy.before(str(settings.s3_endpoint_url)))
        behind = change(
            settings,
            database_url=postgres.url(database_url),
            redis_url=redis_.url(redis_url),
            s3_endpoint_url=s3.url(str(settings.s3_endpoint_url)),
        )
        stand = Stand(settings, behind, folder, bucket, postgres, redis_, s3, Database(database_url))
        stand.http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)))
        try:
            yield stand
        finally:
            for process in stand.processes:
                if process.process.poll() is None:
                    process.signal(signal.SIGCONT)
                    await process.kill()


async def _until_empty(what: str, look: Callable[[], Awaitable[list[str]]]) -> None:
    left: list[str] = []
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while left := await look():  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.05)
    except TimeoutError:
        msg = f"left in {what}: {left}"
        raise AssertionError(msg) from None
