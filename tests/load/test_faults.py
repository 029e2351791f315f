"""Loads whose stores fail under them: nothing is lost, nothing doubled, nothing hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from stream_api.config import Settings
from stream_api.dev.postgres import Postgres
from stream_api.errors import Failure
from stream_api.ledger.segments import commit_segment
from tests.load.behind import ROWS, SEGMENT_BYTES, Behind, behind_proxies, ended_for_now, finishes, until
from tests.load.conftest import events
from tests.support.patience import PATIENCE_SECONDS
from tests.support.settings import change


@pytest.fixture
async def behind(settings: Settings) -> AsyncIterator[Behind]:
    async with behind_proxies(settings) as made:
        yield made


async def test_a_download_that_breaks_goes_on(behind: Behind) -> None:
    manifest = await behind.stored()
    for end in (behind.s3.reset_after, behind.s3.close_after):
        await end(manifest.size_bytes // 3)
        row = await behind.loading.load(manifest)
        assert (row.state, row.rows_inserted) == ("completed", ROWS)
        assert await behind.direct.count() == ROWS
        await behind.direct.execute("TRUNCATE webhook_events")
        manifest = await behind.stored()
    await finishes(behind.loading, manifest)


async def test_a_store_that_goes_away_ends_the_load_for_now(behind: Behind) -> None:
    manifest = await behind.stored()
    await behind.s3.throttle(1_000_000, "down")
    load = await behind.begun(manifest)
    await behind.s3.refuse()
    assert (await ended_for_now(load)).code == "storage_unavailable"
    assert behind.loading.statuses.records[-1].waiting_for == "storage"
    assert 0 < await behind.direct.count() < ROWS
    await behind.recovered(manifest)


async def test_a_database_that_goes_away_while_copy_is_throttled_does_not_hang_the_load(behind: Behind) -> None:
    manifest, load = await behind.under_way(200_000)
    await behind.postgres.drop()
    assert (await ended_for_now(load)).code == "database_unavailable"
    assert behind.loading.statuses.records[-1].waiting_for == "database"
    await behind.recovered(manifest)


async def test_a_terminated_lane_ends_the_load(behind: Behind) -> None:
    manifest, load = await behind.under_way(200_000)
    for lane in await behind.direct.lanes():
        await behind.direct.value("SELECT pg_terminate_backend($1)", lane["pid"])
    await ended_for_now(load)
    await behind.recovered(manifest)


async def test_a_worker_that_is_cut_off_does_not_block_its_successor(behind: Behind) -> None:
    """As SIGSTOP in the middle of a COPY: the connections stay open, nothing moves."""
    manifest, load = await behind.under_way(500_000)
    await behind.postgres.stall()
    assert await behind.direct.lanes()
    await finishes(behind.direct, manifest)
    # The first worker wakes up, finds its sessions gone and its run taken, and touches nothing.
    await behind.postgres.restore()
    await ended_for_now(load)
    records = len(behind.loading.statuses.records)
    await behind.loading.loader.load(manifest.upload_id)
    assert [record.status for record in behind.loading.statuses.records[records:]] == ["completed"]
    assert await behind.direct.count() == ROWS


async def test_a_commit_whose_answer_is_lost(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells the worker that the segment is committed: the next run finds it in the ledger."""
    manifest = await behind.stored()

    async def unanswered(connection: asyncpg.Connection, *rest: object, **more: object) -> None:
        await behind.postgres.stall("down")
        committing = asyncio.create_task(commit_segment(connection, *rest, **more))  # type: ignore[arg-type]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await behind.direct.count():
                pass  # asked again: the question itself waits for an answer
        await behind.postgres.drop()
        await committing

    with monkeypatch.context() as patched:
        patched.setattr("stream_api.load.recorder.commit_segment", unanswered)
        failure = await ended_for_now(asyncio.create_task(behind.loading.loader.load(manifest.upload_id)))
    assert failure.code == "database_unavailable"
    row = await behind.direct.ledger.get(manifest.upload_id)
    assert row is not None
    assert 0 < await behind.direct.count() == row.rows_inserted < ROWS
    await behind.recovered(manifest)


async def test_a_load_cancelled_in_the_middle_of_a_commit(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is committed or not: the cancellation is not held up, and the rows are there once."""
    manifest = await behind.stored()
    sent = asyncio.Event()

    async def unanswered(connection: asyncpg.Connection, *rest: object, **more: object) -> None:
        await behind.postgres.stall("down")
        sent.set()
        await commit_segment(connection, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("stream_api.load.recorder.commit_segment", unanswered)
        load = asyncio.create_task(behind.loading.loader.load(manifest.upload_id))
        await sent.wait()
        load.cancel()
        async with asyncio.timeout(8):
            with pytest.raises(asyncio.CancelledError):
                await load
    await behind.recovered(manifest)


async def test_a_cancelled_load_leaves_the_rest_to_the_next(behind: Behind) -> None:
    manifest, load = await behind.under_way(500_000)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert await behind.direct.lanes() == []
    row = await behind.direct.ledger.get(manifest.upload_id)
    assert row is not None
    assert row.state == "processing"
    assert 0 < await behind.direct.count() == row.rows_inserted < ROWS
    await behind.recovered(manifest)


async def test_a_load_cancelled_while_the_server_takes_nothing(behind: Behind) -> None:
    """Nothing can be rolled back then: that must neither hide the cancellation nor hold it up."""
    manifest, load = await behind.under_way(200_000)
    await behind.postgres.stall("up")
    load.cancel()
    async with asyncio.timeout(8):
        with pytest.raises(asyncio.CancelledError):
            await load
    row = await behind.direct.ledger.get(manifest.upload_id)
    assert row is not None
    assert row.state == "processing"
    await behind.recovered(manifest)


async def test_two_workers_at_once(behind: Behind) -> None:
    manifest = await behind.stored()
    load = await behind.begun(manifest)
    results = await asyncio.gather(load, behind.direct.loader.load(manifest.upload_id), return_exceptions=True)
    assert all(result is None or (isinstance(result, Failure) and result.transient) for result in results)
    await finishes(behind.direct, manifest)


async def test_a_locked_table_stops_the_reading_of_s3(behind: Behind) -> None:
    rows = 60_000
    manifest = await behind.direct.stored(events(range(rows)), segment_bytes=SEGMENT_BYTES)
    async with behind.direct.pool.acquire() as locker:
        transaction = locker.transaction()
        await transaction.start()
        await locker.execute("LOCK TABLE webhook_events IN ACCESS EXCLUSIVE MODE")
        load = asyncio.create_task(behind.loading.loader.load(manifest.upload_id))
        await until(lambda: bool(behind.loading.pipelines))
        (pipeline,) = behind.loading.pipelines
        # From the last channel back to the first, each has a sender that waits.
        await until(lambda: all(stats.blocked_senders == 1 for stats in pipeline.stats[:3]))
        blocked = pipeline.stats
        for stats in blocked:
            assert stats.peak_bytes <= stats.max_bytes
        # What the reader has sent is in the channels, in the hands of stages and lanes, and nowhere else.
        lanes = behind.loading.settings.lanes
        bound = sum(stats.max_bytes for stats in blocked) + (lanes + 2) * 4 * 32 * 1024 + 6 * 32 * 1024
        assert blocked[0].sent_bytes <= bound < manifest.size_bytes
        for _ in range(1000):
            await asyncio.sleep(0)
        assert [stats.sent_items for stats in pipeline.stats[:3]] == [stats.sent_items for stats in blocked[:3]]
        await transaction.rollback()
        await load
    row = await behind.direct.ledger.get(manifest.upload_id)
    assert row is not None
    assert (row.state, row.rows_inserted, await behind.direct.count()) == ("completed", rows, rows)


async def test_postgres_killed_and_started_again(own_postgres: Postgres, settings: Settings) -> None:
    own = change(settings, database_url=own_postgres.dsn, batch_bytes=32 * 1024)
    async with behind_proxies(own) as behind:
        manifest, load = await behind.under_way(500_000)
        await asyncio.to_thread(own_postgres.kill)
        assert (await ended_for_now(load)).code == "database_unavailable"
        await asyncio.to_thread(own_postgres.start)
        await behind.recovered(manifest)
