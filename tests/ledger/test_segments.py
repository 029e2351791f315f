from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from stream_api.errors import Failure, RunLost
from stream_api.ledger.literals import Sql
from stream_api.ledger.segments import Kept, SegmentFigures, claim_segment, commit_segment
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
    assert await claim_segment(lane, upload_id, 1, 0)
    await copy(lane, range(10))
    await lane.execute("ROLLBACK")
    assert await count(lane) == 0

    assert await claim_segment(lane, upload_id, 1, 0)
    await copy(lane, range(10))
    await commit_segment(lane, upload_id, figures(0, 0, 100, rows=10), '"public"."webhook_events"')
    assert not lane.is_in_transaction()
    assert await count(lane) == 10

    assert not await claim_segment(lane, upload_id, 1, 0)
    assert not lane.is_in_transaction()
    assert (await loads.ledger.complete(upload_id, 1)).rows_inserted == 10
    await lane.close()


async def test_the_copy_may_wait_for_its_table_and_the_next_claim_may_not(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    assert await lane.fetchval("SHOW lock_timeout") == "2s"
    await claim_segment(lane, upload_id, 1, 0)
    assert await lane.fetchval("SHOW lock_timeout") == "0"
    await commit_segment(lane, upload_id, figures(0, 0, 100), "webhook_events")
    assert await lane.fetchval("SHOW lock_timeout") == "2s"
    await lane.close()


async def test_a_missed_fence_has_no_effect_and_the_connection_is_usable(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    watcher = await loads.lane(upload_id, 999)
    await loads.ledger.fail(upload_id, 1, code="internal_error", message="x")
    for _ in range(2):
        with pytest.raises(RunLost):
            await claim_segment(lane, upload_id, 1, 0)
        await lane.execute("ROLLBACK")
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
    for number, lane in enumerate(lanes, start=1):
        assert await claim_segment(lane, upload_id, 1, number)  # FOR SHARE is shared by the lanes
    # In the statement's snapshot the file is covered already, so that `complete`, too, has to wait.
    await commit_segment(lanes[0], upload_id, figures(1, 50, 100), "webhook_events")
    end: asyncio.Task[object] = asyncio.create_task(
        loads.ledger.complete(upload_id, 1)
        if ending == "complete"
        else loads.ledger.fail(upload_id, 1, code="internal_error", message="x")
    )
    assert await blocked(watcher, end)
    # A segment of that run which begins behind it waits for it, or passes before it; either is whole or not at all.
    await lanes[1].execute("ROLLBACK")
    await end
    with pytest.raises(RunLost):
        await claim_segment(lanes[0], upload_id, 1, 7)
    for connection in (*lanes, watcher):
        await connection.close()


async def test_a_segment_waits_for_an_end_under_way_and_then_finds_its_run_over(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane, other, watcher = [await loads.lane(upload_id, run) for run in (1, 998, 999)]
    transaction = other.transaction()
    await transaction.start()
    await other.execute("UPDATE stream_api.uploads SET state = 'cancelled' WHERE id = $1", upload_id)
    claiming: asyncio.Task[object] = asyncio.create_task(claim_segment(lane, upload_id, 1, 0))
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
            await claim_segment(lane, upload_id, 1, 0)
        await lane.execute("ROLLBACK")
        assert (failed.value.code, failed.value.transient) == ("database_unavailable", True)
        assert failed.value.extra["sqlstate"] == "55P03"
        await transaction.rollback()
    assert await claim_segment(lane, upload_id, 1, 0)
    await commit_segment(lane, upload_id, figures(0, 0, 100), "webhook_events")
    await lane.close()
    await other.close()


async def test_a_segment_of_another_table_is_refused(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    await lane.execute("CREATE TABLE another (a int)")
    for table in ("another", "missing"):
        assert await claim_segment(lane, upload_id, 1, 0)
        with pytest.raises(Failure) as failed:
            await commit_segment(lane, upload_id, figures(0, 0, 100), table)
        assert failed.value.code == "plan_changed"
        await lane.execute("ROLLBACK")
    assert await claim_segment(lane, upload_id, 1, 0)
    await commit_segment(lane, upload_id, figures(0, 0, 100), "webhook_events")
    await lane.close()


async def test_a_segment_takes_one_statement_at_its_beginning_and_one_at_its_end(loads: Loads, upload_id: UUID) -> None:
    """Each is a round trip: no further one for BEGIN and COMMIT, none to prepare it."""
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    sent = list[str]()
    lane.add_query_logger(lambda logged: sent.append(logged.query))
    assert await claim_segment(lane, upload_id, 1, 0)
    await commit_segment(lane, upload_id, figures(0, 0, 100), "webhook_events")
    await lane.close()
    assert [statement[:11] for statement in sent] == ["BEGIN; SELE", "SELECT stre"]
    assert [statement.endswith("; COMMIT") for statement in sent] == [False, True]


async def test_everything_of_a_ledger_row_arrives_as_it_is(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    odd = 'it\'s \\ "x" \n \0 \ud800 $1 ✓'
    segment = SegmentFigures(
        number=0,
        start=0,
        end=100,
        first_line=1,
        lines=12,
        rows_read=10,
        rows_inserted=1,
        rows_updated=2,
        rows_skipped=3,
        rejected={"bad": 3, odd: 1},
        first_rejects=({"line": 4, "column": odd, "reason": "'; DROP TABLE webhook_events; --"},),
    )
    kept = Kept(rejects=bytes(range(256)), header=b"a,'b\\\0\xff")
    assert await claim_segment(lane, upload_id, 1, 0)
    await commit_segment(lane, upload_id, segment, "webhook_events", kept)
    row = await lane.fetchrow("SELECT * FROM stream_api.segments")
    assert row is not None
    said = odd.replace("\0", "\ufffd").replace("\ud800", "?")
    assert json.loads(row["rejected"]) == {"bad": 3, said: 1}
    assert json.loads(row["first_rejects"]) == [
        {"line": 4, "column": said, "reason": "'; DROP TABLE webhook_events; --"}
    ]
    assert (row["rejects"], row["rejects_key"], row["header"]) == (kept.rejects, None, kept.header)
    counts = [row[name] for name in ("rows_read", "rows_inserted", "rows_updated", "rows_skipped", "lines")]
    assert counts == [10, 1, 2, 3, 12]
    assert row["table_oid"] == await lane.fetchval("SELECT 'webhook_events'::regclass::oid")
    await lane.close()


async def test_a_segment_of_a_table_that_is_not_as_it_was_meant_is_not_committed(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    for as_meant in (Sql("false"), Sql("NULL")):
        assert await claim_segment(lane, upload_id, 1, 0)
        await copy(lane, range(10))
        with pytest.raises(Failure) as failed:
            await commit_segment(lane, upload_id, figures(0, 0, 100, rows=10), "webhook_events", as_meant=as_meant)
        assert (failed.value.code, failed.value.transient) == ("database_unavailable", True)
        await lane.execute("ROLLBACK")
    assert await count(lane) == await lane.fetchval("SELECT count(*) FROM stream_api.segments") == 0
    await lane.close()


async def test_what_is_refused_at_the_commit_is_no_word_of_ours(loads: Loads, upload_id: UUID) -> None:
    """A trigger may choose any SQLSTATE; then nothing is committed, and the connection is usable at once."""
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    await lane.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE 'no' USING ERRCODE = 'SA003'; END $$;
        CREATE CONSTRAINT TRIGGER refusing AFTER INSERT ON webhook_events DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION refuse()""")
    assert await claim_segment(lane, upload_id, 1, 0)
    await copy(lane, range(10))
    with pytest.raises(asyncpg.PostgresError) as refused:
        await commit_segment(lane, upload_id, figures(0, 0, 100, rows=10), "webhook_events")
    assert (refused.value.sqlstate, refused.value.message) == ("SA003", "no")
    assert not lane.is_in_transaction()
    assert await count(lane) == await lane.fetchval("SELECT count(*) FROM stream_api.segments") == 0
    await lane.close()


async def test_a_database_that_is_not_migrated_yet_is_waited_for(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    await lane.execute("ALTER FUNCTION stream_api.claim_segment RENAME TO of_a_later_version")
    with pytest.raises(Failure, match="stream-api migrate") as failed:
        await claim_segment(lane, upload_id, 1, 0)
    assert (failed.value.code, failed.value.transient) == ("database_refused", True)
    await lane.close()


async def test_a_claim_without_figures_never_counts(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    lane = await loads.lane(upload_id, 1)
    await claim_segment(lane, upload_id, 1, 0)
    await lane.execute("COMMIT")  # a bug: without its figures
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
