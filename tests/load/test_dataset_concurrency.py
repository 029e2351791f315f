"""No more loads of one dataset at once than may, over all workers; a slot is freed with the session that holds it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from stream_api.config import Settings
from stream_api.datasets.dataset import built_in
from stream_api.errors import Failure, RunLost
from stream_api.jobs.queue import LoadQueue
from stream_api.jobs.worker import LoadWorker
from stream_api.ledger.rows import UploadRow
from stream_api.ledger.slots import Slots, _key
from stream_api.load.loader import intake_of
from stream_api.status.connection import open_redis
from stream_api.storage.manifests import Manifest
from tests.jobs.conftest import until_idle
from tests.load.behind import ROWS, Behind, behind_proxies, finishes, until
from tests.load.conftest import Loading, events, open_loading
from tests.support.patience import PATIENCE_SECONDS
from tests.support.settings import change


@pytest.fixture
async def one(settings: Settings) -> AsyncIterator[Behind]:
    """One load at once."""
    async with behind_proxies(change(settings, dataset_concurrency=1)) as made:
        yield made


async def held(loading: Loading) -> int:
    """Slots in use."""
    return int(
        await loading.value(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    )


async def until_free(loading: Loading) -> None:
    """A session that has ended lets go of its locks a moment later."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await held(loading):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.01)


async def loaded_soon(loading: Loading, manifest: Manifest) -> UploadRow:
    """Load, as a job does that is told that the dataset is busy: a session that was ended needs a moment to be gone."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Failure):
                return await loading.load(manifest)


async def test_a_second_load_waits_and_its_run_is_not_raised(one: Behind) -> None:
    first = await one.stored()
    second = await one.direct.stored(events(range(ROWS, ROWS + 10)))
    await one.postgres.throttle(300_000, "up")
    load = await one.begun(first)
    for _ in range(3):
        with pytest.raises(Failure) as caught:
            await one.direct.loader.load(second.upload_id)
        assert (caught.value.code, caught.value.transient) == ("dataset_busy", True)
    assert await one.direct.ledger.get(second.upload_id) is None
    assert not load.done()
    await one.postgres.restore()
    await load
    row = await one.direct.load(second)
    assert (row.state, row.run, row.rows_inserted) == ("completed", 1, 10)
    assert await one.direct.count() == ROWS + 10
    await until_free(one.direct)
    assert await one.direct.lanes() == []


async def test_the_slot_of_a_frozen_worker_is_free_for_its_successor(one: Behind) -> None:
    manifest = await one.stored()
    await one.postgres.throttle(300_000, "up")
    load = await one.begun(manifest)
    await one.postgres.stall()
    assert await held(one.direct) == 1
    row = await loaded_soon(one.direct, manifest)
    assert (row.state, row.rows_inserted) == ("completed", ROWS)
    await one.postgres.restore()
    with pytest.raises(Failure) as caught:
        await load
    assert caught.value.transient
    await finishes(one.direct, manifest)


async def test_the_slot_of_a_worker_that_froze_before_it_took_the_load(one: Behind) -> None:
    manifest = await one.direct.stored(events(range(10)))
    settings = one.direct.settings
    async with AsyncExitStack() as frozen:
        await frozen.enter_async_context(Slots(settings, one.direct.pool).hold(manifest.upload_id, manifest.dataset))
        assert await held(one.direct) == 1
        async with open_loading(settings) as other:
            upload = await other.stored(events(range(10, 20)))
            # Another upload's worker has to wait, the upload's own next worker has not.
            with pytest.raises(Failure):
                await other.loader.load(upload.upload_id)
            row = await loaded_soon(other, manifest)
            assert (row.state, row.run) == ("completed", 1)


async def test_a_load_that_fails_or_is_cancelled_frees_its_slot(one: Behind) -> None:
    manifest = await one.stored()
    load = await one.begun(manifest)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    await until_free(one.direct)
    wrong = await one.direct.stored(b"no,such,columns\n1,2,3\n")
    assert (await one.direct.load(wrong)).state == "failed"
    await until_free(one.direct)
    assert (await one.loading.load(manifest)).rows_inserted == ROWS


async def test_as_many_as_may_and_no_more_each_dataset_by_itself(settings: Settings) -> None:
    two = change(settings, dataset_concurrency=2)
    async with open_loading(two) as loading, AsyncExitStack() as stack:
        slots = Slots(two, loading.pool)
        manifests = [await loading.stored(events(range(1))) for _ in range(3)]
        first, second, third = [manifest.upload_id for manifest in manifests]
        assert await stack.enter_async_context(slots.hold(first, "a")) is not None
        await stack.enter_async_context(slots.hold(second, "a"))
        with pytest.raises(Failure) as caught:
            await stack.enter_async_context(slots.hold(third, "a"))
        assert "STREAM_API_DATASET_CONCURRENCY" in caught.value.detail
        await stack.enter_async_context(slots.hold(third, "b"))
        assert await held(loading) == 3
    assert 0 <= _key("a") < 2**31


async def test_a_run_that_is_over_gets_no_slot_and_ends_no_sessions(settings: Settings) -> None:
    bound = change(settings, dataset_concurrency=1)
    async with open_loading(bound) as loading:
        manifest = await loading.stored(events(range(1)))
        intake = intake_of(manifest, built_in("webhook_events"))
        await loading.ledger.take(intake)
        async with Slots(bound, loading.pool).hold(manifest.upload_id, "a", only_run=1) as slot:
            await loading.ledger.take(intake)
            with pytest.raises(RunLost):
                async with Slots(bound, loading.pool).hold(manifest.upload_id, "a", only_run=1):
                    pass
            assert slot is not None
            assert await slot.fetchval("SELECT 1") == 1


async def test_workers_take_turns_and_the_status_says_so(settings: Settings) -> None:
    bound = change(settings, dataset_concurrency=1, job_lease_seconds=2)
    async with behind_proxies(bound) as behind, open_redis(settings) as redis:
        await behind.postgres.throttle(1_000_000, "up")
        first = await behind.stored()
        second = await behind.direct.stored(events(range(ROWS, ROWS + 10)))
        queue = LoadQueue(bound)
        worker = LoadWorker(bound, behind.direct.loader.load)
        load = await behind.begun(first)
        # The record of an upload that nobody has taken is the API's; here it stands for it.
        record = behind.loading.statuses.records[-1]
        statuses = behind.direct.statuses.records
        statuses.append(
            type(record)(
                upload_id=second.upload_id,
                status="uploaded",
                size_bytes=second.size_bytes,
                sha256=second.sha256,
                dataset=second.dataset,
                created_at=second.created_at,
                updated_at=second.created_at,
            )
        )
        await worker.start()
        await queue.enqueue(second.upload_id)
        await until(lambda: statuses[-1].waiting_for == "dataset")
        assert (statuses[-1].status, statuses[-1].run) == ("uploaded", 0)
        await load
        await until(lambda: statuses[-1].status == "completed")
        assert (statuses[-1].run, statuses[-1].waiting_for) == (1, None)
        await until_idle(redis)
        await worker.stop()
        await queue.close()
        assert await behind.direct.count() == ROWS + 10
