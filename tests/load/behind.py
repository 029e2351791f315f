"""Loads that are broken from outside: how they begin, and how all of them end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.storage.manifests import Manifest
from tests.load.conftest import Loading, events, open_loading
from tests.support.faults import FaultProxy
from tests.support.patience import PATIENCE_SECONDS
from tests.support.settings import change

ROWS: Final = 20_000
SEGMENT_BYTES: Final = 64 * 1024


@dataclass
class Behind:
    """A loader whose servers stand behind proxies, and one that reaches them directly."""

    loading: Loading
    direct: Loading
    postgres: FaultProxy
    s3: FaultProxy

    async def stored(self) -> Manifest:
        """A file of `ROWS` rows in many segments."""
        return await self.direct.stored(events(range(ROWS)), segment_bytes=SEGMENT_BYTES)

    async def begun(self, manifest: Manifest) -> asyncio.Task[None]:
        """A load that has committed something and has more to do."""
        task = asyncio.create_task(self.loading.loader.load(manifest.upload_id))

        def committed() -> bool:
            records = self.loading.statuses.records
            return task.done() or bool(records and records[-1].rows_processed)

        await until(committed)
        assert not task.done()
        return task

    async def under_way(self, bytes_per_second: float) -> tuple[Manifest, asyncio.Task[None]]:
        """A load as `begun`, that writes no faster to Postgres than so, until `recovered`."""
        manifest = await self.stored()
        await self.postgres.throttle(bytes_per_second, "up")
        return manifest, await self.begun(manifest)

    async def recovered(self, manifest: Manifest) -> None:
        """What every load that was broken off ends with: nothing is broken any more, and the next one completes it."""
        await self.postgres.restore()
        await self.s3.restore()
        await finishes(self.loading, manifest)


@asynccontextmanager
async def behind_proxies(settings: Settings, *, load_attempts: int = 1) -> AsyncIterator[Behind]:
    """With a single attempt what interrupts a load comes out of it: what becomes of several is in `test_retrying`."""
    assert settings.s3_endpoint_url is not None
    dsn = settings.database_url.get_secret_value()
    async with FaultProxy.before(dsn) as postgres, FaultProxy.before(settings.s3_endpoint_url) as s3:
        proxied = change(
            settings,
            database_url=postgres.url(dsn),
            s3_endpoint_url=s3.url(settings.s3_endpoint_url),
            # Small, so that a file of a few megabytes is many of them.
            batch_bytes=32 * 1024,
            s3_backoff_seconds=0.01,
            load_attempts=load_attempts,
        )
        async with open_loading(settings) as direct, open_loading(proxied) as loading:
            yield Behind(loading, direct, postgres, s3)


async def ended_for_now(load: asyncio.Task[None]) -> Failure:
    """The failure that a load ends with, which passes."""
    with pytest.raises(Failure) as caught:
        await load
    assert caught.value.transient
    return caught.value


async def finishes(loading: Loading, manifest: Manifest) -> None:
    """The load completes, the count is exact, and nothing is left."""
    row = await loading.load(manifest)
    assert (row.state, row.rows_read, row.rows_inserted) == ("completed", ROWS, ROWS)
    await check_complete(loading)


async def check_complete(loading: Loading) -> None:
    """The whole file is in the table once, its status says so, and nothing is left of the load."""
    record = loading.statuses.records[-1]
    assert (record.status, record.rows_inserted, record.waiting_for) == ("completed", ROWS, None)
    assert await loading.count() == ROWS
    assert await loading.keys() == []
    assert await loading.lanes() == []


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that nobody tells us of."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
