"""Cancelling against every state, and against everything that may happen at the same moment."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from stream_api.errors import Failure, RunLost
from stream_api.ledger import uploads
from stream_api.ledger.expiry import Expiry
from stream_api.ledger.rows import UploadRow
from stream_api.ledger.segments import claim_segment, commit_segment
from stream_api.ledger.uploads import Ended, Taken
from tests.ledger.conftest import Loads, figures
from tests.support.patience import PATIENCE_SECONDS


async def cancel(loads: Loads, upload_id: UUID) -> UploadRow:
    return await loads.ledger.cancel(loads.intake(upload_id))


async def test_what_nobody_has_taken_gets_a_row_that_is_cancelled(loads: Loads, upload_id: UUID) -> None:
    row = await cancel(loads, upload_id)
    assert (row.state, row.started_at, row.size_bytes, row.rows_read) == ("cancelled", None, 100, 0)
    assert row.ended_at is not None
    assert await loads.take_or_ended(upload_id) == Ended(row)
    assert await cancel(loads, upload_id) == row  # again: nothing has changed


async def test_a_load_under_way_stops_at_what_it_has_committed(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    await loads.load(upload_id, 1, figures(0, 0, 40, rows=4))
    row = await cancel(loads, upload_id)
    assert (row.state, row.run, row.rows_processed, row.progress) == ("cancelled", 2, 4, 0.4)
    with pytest.raises(RunLost):
        await loads.load(upload_id, 1, figures(1, 40, 100, rows=6))
    for ending in (
        loads.ledger.complete(upload_id, 1),
        loads.ledger.fail(upload_id, 1, code="internal_error", message="too late"),
    ):
        with pytest.raises(RunLost):
            await ending
    with pytest.raises(Failure) as failed:
        await loads.ledger.reopen(upload_id)
    assert failed.value.code == "upload_gone"
    assert await loads.ledger.get(upload_id) == row


async def test_a_segment_in_flight_that_ends_counts(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    assert await claim_segment(lane, upload_id, 1, 0)
    cancelling = asyncio.create_task(cancel(loads, upload_id))
    await waits_for_a_lock(loads)
    await commit_segment(lane, upload_id, figures(0, 0, 40, rows=4), "webhook_events")
    row = await cancelling
    assert (row.state, row.segments, row.rows_processed) == ("cancelled", 1, 4)
    await lane.close()


async def test_a_segment_in_flight_that_does_not_end_is_cut_off(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    await loads.load(upload_id, 1, figures(0, 0, 40, rows=4))
    frozen = await loads.lane(upload_id, 1)
    assert await claim_segment(frozen, upload_id, 1, 1)
    row = await cancel(loads, upload_id)
    assert (row.state, row.segments, row.rows_processed) == ("cancelled", 1, 4)
    with pytest.raises(Failure) as failed:
        await commit_segment(frozen, upload_id, figures(1, 40, 100, rows=6), "webhook_events")
    assert failed.value.code == "database_unavailable"
    assert await loads.ledger.get(upload_id) == row


async def test_cancelling_gives_up_at_some_time_when_somebody_else_holds_the_row(
    loads: Loads, upload_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_SEIZE_SECONDS", 1.0)
    await loads.take(upload_id)
    stranger = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    async with stranger.transaction():
        await stranger.execute("SELECT FROM stream_api.uploads WHERE id = $1 FOR UPDATE", upload_id)
        with pytest.raises(Failure) as failed:
            await cancel(loads, upload_id)
        assert (failed.value.code, failed.value.transient) == ("database_unavailable", True)
    assert (await cancel(loads, upload_id)).state == "cancelled"
    await stranger.close()


async def test_a_failed_upload_is_cancelled_and_its_error_is_gone(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    failed = await loads.ledger.fail(upload_id, 1, code="internal_error", message="x")
    row = await cancel(loads, upload_id)
    assert (row.state, row.error) == ("cancelled", None)
    assert row.revision > failed.revision


async def test_what_is_completed_or_expired_is_not_cancelled(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    await loads.load(upload_id, 1, figures(0, 0, 100, rows=1))
    await loads.ledger.complete(upload_id, 1)
    with pytest.raises(Failure) as failed:
        await cancel(loads, upload_id)
    assert (failed.value.code, failed.value.extra) == ("upload_completed", {"uploadStatus": "completed"})
    await Expiry(loads.ledger._pool).expire(retention_seconds=-1, limit=10)
    with pytest.raises(Failure) as failed:
        await cancel(loads, upload_id)
    assert failed.value.code == "upload_gone"


async def test_twenty_at_once_cancel_it_once(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    rows = await asyncio.gather(*(cancel(loads, upload_id) for _ in range(20)))
    assert all(row == rows[0] for row in rows)
    assert (rows[0].state, rows[0].run, rows[0].webhook_round) == ("cancelled", 2, 1)


async def test_against_a_completing_one_wins_and_the_other_is_told(loads: Loads) -> None:
    seen = set()
    for _ in range(20):
        upload_id = uuid4()
        await loads.take(upload_id)
        await loads.load(upload_id, 1, figures(0, 0, 100, rows=3))
        cancelled, completed = await asyncio.gather(
            cancel(loads, upload_id), loads.ledger.complete(upload_id, 1), return_exceptions=True
        )
        row = await loads.ledger.get(upload_id)
        assert row is not None
        seen.add(row.state)
        if row.state == "completed":
            assert isinstance(cancelled, Failure)
            assert cancelled.code == "upload_completed"
            assert completed == row
        else:
            assert isinstance(completed, RunLost)
            assert cancelled == row
        assert row.rows_processed == 3
    assert seen <= {"completed", "cancelled"}


async def test_against_takings_and_retries_it_ends_cancelled(loads: Loads) -> None:
    for _ in range(10):
        upload_id = uuid4()
        await loads.take(upload_id)
        await loads.ledger.fail(upload_id, 1, code="internal_error", message="x")
        results = await asyncio.gather(
            loads.ledger.reopen(upload_id),
            cancel(loads, upload_id),
            loads.take_or_ended(upload_id),
            loads.take_or_ended(upload_id),
            return_exceptions=True,
        )
        assert isinstance(results[0], UploadRow | Failure)
        assert isinstance(results[1], UploadRow)
        assert all(isinstance(taken, Taken | Ended) for taken in results[2:])
        row = await loads.ledger.get(upload_id)
        assert row is not None
        assert row == results[1]


async def waits_for_a_lock(loads: Loads) -> None:
    """Until a session of the test's database waits for another."""
    connection = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await connection.fetchval(  # noqa: ASYNC110 - Postgres tells nobody
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ):
                await asyncio.sleep(0.01)
    finally:
        await connection.close()
