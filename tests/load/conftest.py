"""A loader with everything that it needs, against real servers."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest

from stream_api.config import Settings
from stream_api.datasets.dataset import Datasets, built_in
from stream_api.dialects.dialect import Dialect
from stream_api.ledger.pool import Pool, open_pool
from stream_api.ledger.rejects import RejectsLedger
from stream_api.ledger.rows import UploadRow
from stream_api.ledger.uploads import Ledger
from stream_api.load.answering import RejectsReader
from stream_api.load.loader import Loader
from stream_api.load.pipeline import Pipeline
from stream_api.load.reporting import Reporter
from stream_api.options import Options
from stream_api.status.record import StatusRecord
from stream_api.storage.keys import data_key
from stream_api.storage.manifests import Manifest, mark_pending, write_manifest
from stream_api.storage.objects import ObjectStore, open_object_store
from tests.support.patience import PATIENCE_SECONDS

Result = TypeVar("Result")

HEADER = b"id,event_type,source,payload,occurred_at,amount,status\n"


def event(number: int, **values: str) -> bytes:
    """One row of webhook_events; `values` are put in as they are."""
    row = {
        "id": f"00000000-0000-4000-8000-{number:012x}",
        "event_type": "order.created",
        "source": "shop",
        "payload": f'"{{""n"": {number}}}"',
        "occurred_at": "2026-11-23T10:00:00Z",
        "amount": f"{number}.50",
        "status": "ok",
    } | values
    return ",".join(row.values()).encode() + b"\n"


def events(numbers: range) -> bytes:
    """A file of that many rows."""
    return HEADER + b"".join(event(number) for number in numbers)


@dataclass
class Statuses:
    """Keeps status records in memory."""

    records: list[StatusRecord] = field(default_factory=list)

    async def read(self, upload_id: UUID, /) -> StatusRecord | None:
        return next((record for record in reversed(self.records) if record.upload_id == upload_id), None)

    async def write(self, record: StatusRecord, /) -> None:
        self.records.append(record)


@dataclass
class Loading:
    """Loads and looks."""

    settings: Settings
    store: ObjectStore
    pool: Pool
    ledger: Ledger
    loader: Loader
    statuses: Statuses
    pipelines: list[Pipeline]
    #: Ended uploads that were announced.
    announced: list[UploadRow]

    async def stored(
        self,
        data: bytes,
        *,
        segment_bytes: int | None = None,
        dialect: Dialect | None = None,
        max_rejects: str | None = None,
        options: Options | None = None,
        dataset: str = "webhook_events",
    ) -> Manifest:
        """Put a file where Stage 1 would; without a dialect, as it did before there were any."""
        upload_id = uuid4()
        key = data_key(upload_id)
        manifest = Manifest(
            upload_id=upload_id,
            key=key,
            etag=await self.store.put(key, data),
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            file_name="test.csv",
            content_type="text/csv",
            dataset=dataset,
            callback_url=None,
            fields={},
            segment_bytes=segment_bytes or self.settings.segment_bytes,
            max_rejects=max_rejects,
            options=options or Options(),
            created_at=datetime.now(UTC),
            dialect=dialect or Dialect(),
        )
        await mark_pending(self.store, upload_id)
        await write_manifest(self.store, manifest)
        return manifest

    async def rejects(self, upload_id: UUID) -> list[dict[str, str]]:
        """What `GET /upload/{id}/rejects` answers, line by line."""
        reader = RejectsReader(self.store, RejectsLedger(self.pool))
        text = b"".join([chunk async for chunk in reader.as_csv(upload_id)]).decode()
        return list(csv.DictReader(io.StringIO(text, newline="")))

    async def original(self, upload_id: UUID) -> bytes:
        """The same with `?format=original`."""
        reader = RejectsReader(self.store, RejectsLedger(self.pool))
        return b"".join([chunk async for chunk in reader.original(upload_id)])

    async def load(self, manifest: Manifest) -> UploadRow:
        """Load and return the upload's row."""
        await self.loader.load(manifest.upload_id)
        row = await self.ledger.get(manifest.upload_id)
        assert row is not None
        return row

    async def value(self, query: str, *args: Any) -> Any:
        async with self.pool.acquire() as connection:
            return await connection.fetchval(query, *args)

    async def execute(self, statement: str) -> None:
        async with self.pool.acquire() as connection:
            await connection.execute(statement)

    async def fetch(self, query: str) -> list[tuple[Any, ...]]:
        async with self.pool.acquire() as connection:
            return [tuple(record.values()) for record in await connection.fetch(query)]

    async def count(self) -> int:
        """Rows in the table."""
        return int(await self.value("SELECT count(*) FROM webhook_events"))

    async def keys(self) -> list[str]:
        """What lies in the bucket, manifests left out."""
        return [key async for key in self.store.list_keys("") if not key.endswith("manifest.json")]

    async def lanes(self) -> list[asyncpg.Record]:
        """Sessions of lanes in this database."""
        async with self.pool.acquire() as connection:
            return list(
                await connection.fetch(
                    "SELECT pid, application_name, state FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name LIKE 'stream-api:%'"
                )
            )


@asynccontextmanager
async def open_loading(
    settings: Settings, datasets: Datasets | None = None, *, instead: ObjectStore | None = None
) -> AsyncIterator[Loading]:
    """A loader of its own: another worker, as far as the servers can tell.

    :param instead: of the store of the settings.
    """
    statuses, pipelines, announced = Statuses(), list[Pipeline](), list[UploadRow]()

    def started(_upload_id: UUID, pipeline: Pipeline) -> None:
        pipelines.append(pipeline)

    async def announce(row: UploadRow) -> None:
        announced.append(row)

    with ThreadPoolExecutor(2) as threads:

        async def run_in_thread(function: Callable[..., Result], /, *args: Any) -> Result:
            return await asyncio.get_running_loop().run_in_executor(threads, function, *args)

        async with open_object_store(settings) if instead is None else nullcontext(instead) as store:
            pool = await open_pool(settings)
            try:
                ledger = Ledger(pool)
                loader = Loader(
                    settings=settings,
                    store=store,
                    pool=pool,
                    ledger=ledger,
                    reporter=Reporter(statuses),
                    datasets=built_in(settings.target_table) if datasets is None else datasets,
                    run_in_thread=run_in_thread,
                    announce=announce,
                    started=started,
                )
                yield Loading(settings, store, pool, ledger, loader, statuses, pipelines, announced)
            finally:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await pool.close()


@pytest.fixture
async def loading(settings: Settings) -> AsyncIterator[Loading]:
    async with open_loading(settings) as opened:
        yield opened
