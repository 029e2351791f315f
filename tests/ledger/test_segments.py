from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from stream_api.errors import Failure, RunLost
from stream_api.ledger.segments import SegmentFigures, claim_segment, record_segment
from tests.ledger.conftest import Loads, figures

ROW = b'00000000-0000-0000-0000-%012d,type,source,"{}",2026-11-24T00:00:00Z,,\n'


async def copy(lane: asyncpg.Connection[asyncpg.Record], rows: range) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"".join(ROW % row for row in rows)

    await lane.copy_to_table("webhook_events", source=source(), format="csv")


async def count(lane: asyncpg.Connection[asyncpg.Record]) -> int:
    return int(await lane.fetchval("SELECT count(*) FROM webhook_events"))


async def test_rows_and_ledger_row_are_committed_together(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    transaction = lane.transaction()
    await transaction.start()
    assert await claim_segment(lane, upload_id, 1, 0)
    await copy(lane, range(10))
    await transaction.rollback()
    assert await count(lane) == 0

    async with lane.transaction():
        assert await claim_segment(lane, upload_id, 1, 0)
        await copy(lane, range(10))
        await record_segment(lane, upload_id, figures(0, 0, 100, rows=10), '"public"."webhook_events"')
    assert await count(lane) == 10

    async with lane.transaction():
        assert not await claim_segment(lane, upload_id, 1, 0)
    assert (await loads.ledger.complete(upload_id, 1)).rows_inserted == 10
    await lane.close()


async def test_the_copy_may_wait_for_its_table_and_the_next_claim_may_not(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    assert await lane.fetchval("SHOW lock_timeout") == "2s"
    async with lane.transaction():
        await claim_segment(lane, upload_id, 1, 0)
        assert await lane.fetchval("SHOW lock_timeout") == "0"
        await record_segment(lane, upload_id, figures(0, 0, 100), "webhook_events")
    assert await lane.fetchval("SHOW lock_timeout") == "2s"
    await lane.close()


async def test_a_missed_fence_has_no_effect_and_the_connection_is_usable(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    watcher = await loads.lane(upload_id, 999)
    await loads.ledger.fail(upload_id, 1, code="internal_error", message="x")
    for _ in range(2):
        with pytest.raises(RunLost):
            async with lane.transaction():
                await claim_segment(lane, upload_id, 1, 0)
    assert await watcher.fetchval("SELECT count(*) FROM stream_api.segments") == 0
    assert await lane.fetchval("SELECT 1") == 1
    await lane.close()
    await watcher.close()


async def blocked(watcher: asyncpg.Connection[asyncpg.Record], waiting: asyncio.Task[object]) -> bool:
    """Whether a session waits for a lock; waits until one does or the task is done."""
    while not waiting.done():
        if await watcher.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            return True
    return False


@pytest.mark.parametrize("ending", ["complete", "fail"])
async def test_an_end_waits_for_the_segments_in_flight(loads: Loads, upload_id: UUID, ending: str) -> None:
    await loads.take(upload_id)
    await loads.load(upload_id, 1, figures(0, 0, 50))
    lanes = [await loads.lane(upload_id, 1) for _ in range(2)]
    watcher = await loads.lane(upload_id, 999)
    transactions = [lane.transaction() for lane in lanes]
    for number, (lane, transaction) in enumerate(zip(lanes, transactions, strict=True), start=1):
        await transaction.start()
        assert await claim_segment(lane, upload_id, 1, number)  # FOR SHARE is shared by the lanes
    # In the statement's snapshot the file is covered already, so that `complete`, too, has to wait.
    await record_segment(lanes[0], upload_id, figures(1, 50, 100), "webhook_events")
    await transactions[0].commit()
    end: asyncio.Task[object] = asyncio.create_task(
        loads.ledger.complete(upload_id, 1)
        if ending == "complete"
        else loads.ledger.fail(upload_id, 1, code="internal_error", message="x")
    )
    assert await blocked(watcher, end)
    # A segment of that run which begins behind it waits for it, or passes before it; either is whole or not at all.
    await transactions[1].rollback()
    await end
    with pytest.raises(RunLost):
        async with lanes[0].transaction():
            await claim_segment(lanes[0], upload_id, 1, 7)
    for connection in (*lanes, watcher):
        await connection.close()


async def test_a_segment_waits_for_an_end_under_way_and_then_finds_its_run_over(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane, other, watcher = [await loads.lane(upload_id, run) for run in (1, 998, 999)]
    transaction = other.transaction()
    await transaction.start()
    await other.execute("UPDATE stream_api.uploads SET state = 'cancelled' WHERE id = $1", upload_id)

    async def claim() -> bool:
        async with lane.transaction():
            return await claim_segment(lane, upload_id, 1, 0)

    claiming: asyncio.Task[object] = asyncio.create_task(claim())
    assert await blocked(watcher, claiming)
    await transaction.commit()
    with pytest.raises(RunLost):
        await claiming
    assert await watcher.fetchval("SELECT count(*) FROM stream_api.segments") == 0
    for connection in (lane, other, watcher):
        await connection.close()


async def test_a_lane_does_not_wait_without_end_for_a_row_or_a_segment(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane, other = [await loads.lane(upload_id, 1) for _ in range(2)]
    for statement in (
        "UPDATE stream_api.uploads SET updated_at = now()",  # the row
        f"INSERT INTO stream_api.segments (upload_id, number) VALUES ('{upload_id}', 0)",  # the segment
    ):
        transaction = other.transaction()
        await transaction.start()
        await other.execute(statement)
        with pytest.raises(Failure) as failed:
            async with lane.transaction():
                await claim_segment(lane, upload_id, 1, 0)
        assert (failed.value.code, failed.value.transient) == ("database_unavailable", True)
        assert failed.value.extra["sqlstate"] == "55P03"
        await transaction.rollback()
    async with lane.transaction():
        assert await claim_segment(lane, upload_id, 1, 0)
        await record_segment(lane, upload_id, figures(0, 0, 100), "webhook_events")
    await lane.close()
    await other.close()


async def test_a_segment_of_another_table_is_refused(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    await lane.execute("CREATE TABLE another (a int)")
    for table in ("another", "missing"):
        transaction = lane.transaction()
        await transaction.start()
        assert await claim_segment(lane, upload_id, 1, 0)
        with pytest.raises(Failure) as failed:
            await record_segment(lane, upload_id, figures(0, 0, 100), table)
        assert failed.value.code == "plan_changed"
        await transaction.rollback()
    async with lane.transaction():
        assert await claim_segment(lane, upload_id, 1, 0)
        await record_segment(lane, upload_id, figures(0, 0, 100), "webhook_events")
    await lane.close()


async def test_a_claim_without_figures_never_counts(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    async with lane.transaction():
        await claim_segment(lane, upload_id, 1, 0)  # a bug: committed without record_segment
    await lane.close()
    row = await loads.ledger.get(upload_id)
    assert row is not None
    assert row.segments == 0
    assert (await loads.take(upload_id)).segments == []
    with pytest.raises(Failure) as failed:
        await loads.ledger.complete(upload_id, 2)
    assert failed.value.code == "ledger_incomplete"


def test_figures_must_add_up() -> None:
    with pytest.raises(ValueError, match="10 rows read, but 8 processed and 1 failed"):
        SegmentFigures(
            number=0, start=0, end=1, first_line=1, lines=1, rows_read=10, rows_inserted=8, rejected={"bad_uuid": 1}
        )
